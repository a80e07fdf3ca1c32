"""What the hot path keeps of a request's head, and the heads that it has seen before.

Most callers send the same head over and over. A head that the parser has read once, and that comes again byte
for byte, needs no second reading: what it means, where it goes and that it may are remembered with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import httptools

from cloister.serve.frames import Headers

if TYPE_CHECKING:
    from cloister.serve.stats import ModelStats

END = b"\r\n\r\n"
MAX_KEPT_BYTES = 2048
"""Longer heads are read anew each time."""
KEPT = 512
"""Heads of one generation; two generations are kept."""
DEFAULT_PRIORITY = 3
_URGENCY = re.compile(rb"(?:^|[,;\s])u=([0-7])(?=$|[,;\s])")
_DIGITS = re.compile(rb"[0-9]{1,15}")
_NOT_HOT = frozenset((b"transfer-encoding", b"upgrade", b"expect", b"trailer"))


class Target(Protocol):
    """What takes hot requests: a model's supervisor, or in a frontend process the link to the core."""

    @property
    def stats(self) -> ModelStats | None:
        """Of the model; None where that is known elsewhere."""

    def submit(self, job: Any) -> None:
        """Take one request; its ``deliver`` gets the answer. Raises ``CloisterError`` if it cannot."""


class Head:
    """A parsed head of ``HTTP/1.1`` with exactly one Content-Length. Its headers are shared.

    ``certificate`` is what its connection has shown: what is decided holds for both together.
    ``target``, ``generation`` and ``until`` are what the front has decided about it, and for how long.
    """

    __slots__ = (
        "body_bytes",
        "certificate",
        "close",
        "generation",
        "headers",
        "method",
        "model_headers",
        "path",
        "priority",
        "query",
        "sealed",
        "target",
        "until",
    )

    def __init__(
        self, method: str, path: str, query: bytes, headers: Headers, body_bytes: int, *, close: bool
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.model_headers = headers
        self.body_bytes = body_bytes
        self.close = close
        self.priority = find_priority(headers)
        self.certificate = b""
        self.sealed = False
        self.target: Target | None = None
        self.generation = -1
        self.until = 0.0


def read_head(method: str, url: bytes, headers: Headers, *, close: bool) -> Head | None:
    """The head of a request that the hot path can take; None if it needs the general one.

    Args:
        headers: names in lower case, as the parser gave them; the parser has refused conflicting lengths.
    """
    if method not in ("POST", "PUT"):
        return None
    length: bytes | None = None
    for name, value in headers:
        if name == b"content-length":
            if length is not None:
                return None
            length = value.strip(b" \t")
        elif name in _NOT_HOT:
            return None
    if length is None or not _DIGITS.fullmatch(length):
        return None
    path, query = split_url(url)
    return Head(method, path, query, headers, int(length), close=close)


def split_url(url: bytes) -> tuple[str, bytes]:
    """Decoded path and raw query of a request target."""
    parsed = httptools.parse_url(url)
    path = (parsed.path or b"/").decode("ascii")
    return (unquote(path) if "%" in path else path), parsed.query or b""


def find_priority(headers: Headers) -> int:
    """Urgency 0 (highest) to 7 of RFC 9218's header ``priority``; 3 without one."""
    for name, value in headers:
        if name == b"priority":
            found = _URGENCY.search(value)
            return int(found[1]) if found else DEFAULT_PRIORITY
    return DEFAULT_PRIORITY


def render_without_upgrade(url: bytes, headers: Headers, method: str) -> bytes:
    """A head of HTTP/1.1 as bytes again, without its wish for another protocol.

    The parser takes a body for that protocol's bytes, but who does not switch has to read the body (RFC 9110,
    section 7.8). Java's own client asks for HTTP/2 in its first request, whatever that is.
    """
    lines = [b"%b %b HTTP/1.1" % (method.encode(), url)]
    for name, value in headers:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(t for t in tokens if t.lower() not in (b"upgrade", b"http2-settings"))
        if name not in (b"upgrade", b"http2-settings"):
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join((*lines, b"", b""))


class HeadCache:
    """Heads by their exact bytes, in bounded memory.

    Two dicts: when the younger is full it becomes the older, so that a hit needs no bookkeeping, and what was
    not asked for during one whole generation is dropped.
    """

    __slots__ = ("_kept", "_old", "_young")

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._young: dict[bytes, Head] = {}
        self._old: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, raw: bytes) -> Head | None:
        """The head of these bytes, which end with the empty line."""
        head = self._young.get(raw)
        if head is None:
            head = self._old.get(raw)
            if head is not None:
                self.add(raw, head)
        return head

    def learn(self, raw: bytes, head: Head) -> None:
        """Remember what the parser made of ``raw``, if these bytes are nothing but the head.

        The parser refuses bare line feeds and folded lines, so that as many lines as there are headers, and
        the request line first, leave no room for another reading.
        """
        if (
            len(raw) <= MAX_KEPT_BYTES
            and raw.startswith(head.method.encode() + b" ")
            and raw.count(b"\n") == raw.count(b"\r\n") == len(head.headers) + 2
        ):
            self.add(raw, head)

    def clear(self) -> None:
        """Forget everything, credentials in heads included."""
        self._young.clear()
        self._old.clear()

    def add(self, raw: bytes, head: Head) -> None:
        """Remember ``head``; ``raw`` may say in any way of its own what is in it."""
        if len(self._young) >= self._kept:
            self._old, self._young = self._young, {}
        self._young[raw] = head
