"""What bodies that have come in part hold together, in one process.

One body is bounded by its length, and by the time that it may take. Ten thousand connections that each send
all but the last byte of one would still fill the memory: so there is a bound for all of them, and whoever
began first gives way. Who sends at a usual speed is done before it comes to that.
"""

from __future__ import annotations

from typing import Protocol

from cloister.serve.memory_watch import total_bytes

SHARE = 4
"""One part in so many of the memory is for unfinished bodies, where nothing else is said."""
UNKNOWN_BYTES = 1 << 30
REASON = "requests that have come in part hold too much memory; try again"


class Holder(Protocol):
    """Whoever reads a body."""

    def give_way(self) -> None:
        """Refuse the request; what it holds is taken off the count already."""


class HeldBodies:
    """Counts them.

    Args:
        max_bytes: what they may hold together; 0 means a quarter of this process's memory.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes or (total_bytes() or UNKNOWN_BYTES * SHARE) // SHARE
        self.bytes = 0
        self._held: dict[Holder, int] = {}

    def hold(self, holder: Holder, size: int) -> None:
        """Keep so many bytes more; others, or ``holder`` itself, give way where that is too much."""
        self._held[holder] = self._held.get(holder, 0) + size
        self.bytes += size
        if self.bytes > self.max_bytes:
            self._make_room()

    def release(self, holder: Holder) -> None:
        """Its body is whole, or gone."""
        self.bytes -= self._held.pop(holder, 0)

    def _make_room(self) -> None:
        for holder in list(self._held):  # in the order in which they began
            if self.bytes <= self.max_bytes // 4 * 3:
                return
            self.release(holder)
            holder.give_way()
