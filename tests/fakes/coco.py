"""A stand-in for Confidential Containers' REST service inside the guest, over real HTTP on loopback.

Same routes, status codes, texts and encodings as the service; only what makes the evidence is ours.

Source: confidential-containers/guest-components, ``api-server-rest/src/router.rs`` and ``utils.rs``.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

MakeEvidence = Callable[[bytes], Any]


class FakeCoco:
    """What the service knows; change it between requests."""

    def __init__(self, tee: str | None, make_evidence: MakeEvidence) -> None:
        self.tee = tee
        self.make_evidence = make_evidence
        self.failure = ""
        """Text of an internal error, instead of evidence."""
        self.raw: bytes | None = None
        """These bytes, instead of evidence."""
        self.runtime_data: list[bytes] = []

    def info(self) -> dict[str, Any]:
        """The answer of ``/info``; without attestation it names no TEE."""
        version = {"version": "v0.14.0"}
        if self.tee is None:
            return {**version, "feature": "resource"}
        return {**version, "tee": self.tee, "feature": "all"}


@contextmanager
def serve(service: FakeCoco) -> Iterator[str]:
    """The service on a free port of loopback; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = _answer(service, self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Tests are silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(service: FakeCoco, target: str) -> tuple[int, bytes]:
    parts = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.path == "/info":
        return 200, json.dumps(service.info()).encode()
    if service.tee is None and parts.path.startswith("/aa/"):
        return 404, b"Attestation Feature Not Enabled"
    if parts.path != "/aa/evidence":
        return 404, b"URL NOT FOUND"
    if "runtime_data" not in query:
        return 400, b"BAD REQUEST"
    try:
        runtime_data = _decode(query["runtime_data"], query.get("encoding"))
    except (binascii.Error, ValueError):
        return 400, b"BAD REQUEST"
    service.runtime_data.append(runtime_data)
    if service.failure:
        return 500, service.failure.encode()
    if service.raw is not None:
        return 200, service.raw
    return 200, json.dumps(service.make_evidence(runtime_data)).encode()


def _decode(text: str, encoding: str | None) -> bytes:
    """As the service does: base64 in the URL alphabet, and no padding is tolerated."""
    if encoding is None:
        return text.encode()
    if encoding != "base64" or "=" in text or "+" in text or "/" in text:
        raise ValueError
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
