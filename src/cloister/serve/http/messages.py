"""A request and a response without their transport: the same over TLS, plain HTTP and OHTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cloister.serve.frames import Headers

JSON = (b"content-type", b"application/json")


@dataclass(slots=True)
class Request:
    """One whole request. Its repr leaves out what it carries."""

    method: str
    path: str
    """Decoded, without the query."""
    query: bytes
    headers: Headers = field(repr=False)
    content: bytes = field(repr=False)
    certificate: bytes = field(default=b"", repr=False)
    """DER of the client certificate that TLS has verified. A sealed request has none: see decision 0011."""

    def header(self, name: bytes) -> bytes:
        """Value of the first header of this lower-case name; empty if there is none."""
        return next((value for key, value in self.headers if key == name), b"")


@dataclass(slots=True)
class Response:
    """One response, without Content-Length: the transport adds it."""

    status: int
    headers: Headers = field(repr=False)
    content: bytes | AsyncIterator[bytes] = field(repr=False)
    """Whole, or in parts as they come. Parts that end with an error break the connection off."""

    def header(self, name: bytes) -> bytes:
        """Value of the first header of this lower-case name; empty if there is none."""
        return next((value for key, value in self.headers if key == name), b"")

    async def whole(self) -> bytes:
        """The content; parts come joined."""
        if isinstance(self.content, bytes):
            return self.content
        return b"".join([part async for part in self.content])


def json_response(document: Any, status: int = 200) -> Response:
    """A response with a JSON body, indented and ended by a line feed as TorchServe's are."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2)
    return Response(status, [JSON], text + b"\n")


def error_response(status: int, kind: str, message: str) -> Response:
    """An error in TorchServe's form: ``{"code", "type", "message"}``."""
    return json_response({"code": status, "type": kind, "message": message}, status)
