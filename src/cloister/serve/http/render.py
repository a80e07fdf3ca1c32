"""Responses as bytes: heads are put together once for each kind of answer, not once for each answer.

Source of the headers that go with every response: pytorch/serve 0.12, NettyUtils.sendHttpResponse.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus

from cloister.serve.frames import Headers

NO_STORE = (b"cache-control", b"no-cache; no-store, must-revalidate, private")
NO_CACHE: Headers = [
    (b"pragma", b"no-cache"),
    NO_STORE,
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
]
KEPT = 1024
MAX_KEPT_HEADERS = 8
MAX_KEPT_BYTES = 2048
CLOSE = b"\r\nconnection: close\r\n\r\n"
KEEP = b"\r\n\r\n"
BODILESS = frozenset((204, 304))
"""These statuses have no body (RFC 9110, section 6.4.1)."""
LAST_CHUNK = b"0\r\n\r\n"

_STATUS_LINES = {item.value: f"HTTP/1.1 {item.value} {item.phrase}\r\n".encode() for item in HTTPStatus}


class Renderer:
    """Writes the responses of one port; ``date_second`` has to be called about once per second."""

    __slots__ = ("_dated_length", "_prefixes", "date")

    def __init__(self) -> None:
        self._prefixes: dict[tuple[int, tuple[tuple[bytes, bytes], ...]], bytes] = {}
        self.date_second()

    def date_second(self) -> None:
        """Make the Date header of this second."""
        self.date = b"\r\ndate: " + formatdate(time.time(), usegmt=True).encode()
        self._dated_length = self.date + b"\r\ncontent-length: "

    def known(self, status: int, headers: Headers) -> bytes | None:
        """The start of a response with these headers, which were checked when it was learnt."""
        return self._prefixes.get((status, tuple(headers)))

    def learn(self, status: int, headers: Headers) -> bytes:
        """Everything before the request id: status line, the answer's headers, TorchServe's.

        The headers have been checked.
        """
        key = (status, tuple(headers))
        prefix = self._prefixes.get(key)
        if prefix is None:
            own = {name for name, _ in headers}
            pairs = [pair for pair in headers if pair[0] != b"x-request-id"]
            pairs += [pair for pair in NO_CACHE if pair[0] not in own]
            line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
            prefix = b"".join((line, *(b"%b: %b\r\n" % pair for pair in pairs), b"x-request-id: "))
            if len(headers) <= MAX_KEPT_HEADERS and len(prefix) <= MAX_KEPT_BYTES:
                if len(self._prefixes) >= KEPT:
                    self._prefixes.clear()
                self._prefixes[key] = prefix
        return prefix

    def whole(
        self, status: int, prefix: bytes, body: bytes | memoryview, request_id: str, *, close: bool
    ) -> bytes:
        """A whole response."""
        end = CLOSE if close else KEEP
        if status in BODILESS:
            return b"".join((prefix, request_id.encode(), self.date, end))
        return b"".join((prefix, request_id.encode(), self._dated_length, b"%d" % len(body), end, body))

    def stream_head(self, prefix: bytes, request_id: str, *, close: bool) -> bytes:
        """The head of a response whose body comes in chunks."""
        chunked = b"\r\ntransfer-encoding: chunked"
        return b"".join((prefix, request_id.encode(), self.date, chunked, CLOSE if close else KEEP))


def chunk(data: bytes | memoryview) -> bytes:
    """One chunk of a chunked body (RFC 9112, section 7.1); nothing for no data, which would end the body."""
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if len(data) else b""
