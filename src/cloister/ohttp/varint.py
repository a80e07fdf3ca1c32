"""Variable-length integers (RFC 9000, section 16) and exact reads, as Binary HTTP and chunked OHTTP use them.

========== ====== ===========
first bits bytes  range
========== ====== ===========
00         1      0..2^6-1
01         2      0..2^14-1
10         4      0..2^30-1
11         8      0..2^62-1
========== ====== ===========
"""

from __future__ import annotations

from cloister.errors import MalformedInput

MAX_VARINT = (1 << 62) - 1


def render_varint(value: int) -> bytes:
    """The shortest form of ``value``."""
    if 0 <= value < 1 << 6:
        return value.to_bytes(1, "big")
    if 0 <= value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if 0 <= value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    if 0 <= value <= MAX_VARINT:
        return (value | 3 << 62).to_bytes(8, "big")
    raise MalformedInput(f"variable-length integer: out of range: {value}")


class Cursor:
    """Reads forward through bytes; a read past the end is MalformedInput."""

    __slots__ = ("_raw", "position")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.position = 0

    def at_end(self) -> bool:
        """Whether everything has been read."""
        return self.position >= len(self._raw)

    def varint(self, what: str) -> int:
        """The next integer, in any of its forms."""
        raw, start = self._raw, self.position
        if start >= len(raw):
            raise MalformedInput(f"{what}: truncated")
        first = raw[start]
        if first < 1 << 6:
            self.position = start + 1
            return first
        size = 1 << (first >> 6)
        if start + size > len(raw):
            raise MalformedInput(f"{what}: truncated")
        self.position = start + size
        return int.from_bytes(raw[start : start + size], "big") & ((1 << (8 * size - 2)) - 1)

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes."""
        end = self.position + size
        if end > len(self._raw):
            left = len(self._raw) - self.position
            raise MalformedInput(f"{what}: truncated: expected {size} bytes, found {left}")
        taken = self._raw[self.position : end]
        self.position = end
        return taken

    def prefixed(self, limit: int | None, what: str) -> bytes:
        """The next bytes, after their length, which is of one byte in most cases."""
        raw, start = self._raw, self.position
        if start < len(raw) and (size := raw[start]) < 1 << 6:
            start += 1
        else:
            size = self.varint(what)
            start = self.position
        if limit is not None and size > limit:
            raise MalformedInput(f"{what}: at most {limit} bytes, found {size}")
        self.position = start
        return self.take(size, what)

    def expect_zeros(self) -> None:
        """Only zero bytes are left."""
        if self._raw.count(0, self.position) != len(self._raw) - self.position:
            raise MalformedInput("padding: not zero")
