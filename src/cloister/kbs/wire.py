"""HTTP/1.1 for the broker: an answer leaves in one write, and a request knows its client certificate.

The server writes the two separately, each one a TLS record, a system call, and a client that wakes up for
half an answer. For the small answers of a key broker that is a fifth of the work.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class GatheringProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a transport that gathers what is written in one turn of the event loop."""

    _tls: dict[object, object] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        ssl_object = transport.get_extra_info("ssl_object")
        shown = None if ssl_object is None else ssl_object.getpeercert(binary_form=True)
        if shown:  # verified: one that did not verify has ended the handshake
            self._tls = {"client_cert_chain": (ssl.DER_cert_to_PEM_cert(shown),)}
        super().connection_made(cast(asyncio.Transport, _Gathering(transport, self.loop)))

    def on_message_begin(self) -> None:
        """See ``HttpToolsProtocol``."""
        super().on_message_begin()
        if self._tls is not None:
            self.scope["extensions"] = {"tls": self._tls}


class _Gathering:
    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            data = b"".join(self._written)
            self._written.clear()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
