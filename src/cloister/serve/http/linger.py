"""How long a refused request is still read, so that its sender gets to see the refusal.

A socket that is closed with unread bytes resets the connection, and a sender that has not read yet loses the
answer. So what still comes is read and dropped for a while, and only then the end follows. Nothing is kept of
it; it is bounded in bytes, in time, and in the time between two reads.
"""

from __future__ import annotations

LINGER_BYTES = 256 << 20
LINGER_S = 30.0
LINGER_IDLE_S = 2.0


class Linger:
    """What was dropped on one connection, and until when to go on. Times are those of one clock."""

    __slots__ = ("_bytes", "_end", "due")

    def __init__(self, now: float) -> None:
        self._bytes = 0
        self._end = now + LINGER_S
        self.due = min(self._end, now + LINGER_IDLE_S)
        """When it is over, unless more comes before."""

    def drop(self, size: int, now: float) -> bool:
        """Note that so much came and was dropped; whether to read on."""
        self._bytes += size
        self.due = min(self._end, now + LINGER_IDLE_S)
        return self._bytes <= LINGER_BYTES and now < self._end
