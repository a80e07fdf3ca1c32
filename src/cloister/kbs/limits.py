"""How often somebody who has shown no credential may ask: a token bucket per client address.

A bucket holds two seconds' worth of requests, so a fleet that starts at once is not turned away. Addresses of
IPv6 are counted by their /64, which is what one client has. The table is bounded; the addresses that asked
least recently are forgotten, and begin with a full bucket.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

MAX_ADDRESSES = 10_000
BURST_S = 2.0


class RateLimit:
    """Token buckets; to be used from one thread.

    Args:
        per_s: requests per second and address; 0 allows any number.
    """

    def __init__(self, per_s: float, *, limit: int = MAX_ADDRESSES) -> None:
        self._per_s = per_s
        self._size = max(1.0, per_s * BURST_S)
        self._limit = limit
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, now: float) -> float:
        """0 if a request may be answered, and it is counted; else after how many seconds it may.

        Args:
            now: of a monotonic clock.
        """
        if self._per_s <= 0:
            return 0.0
        client = client_of(address)
        level = self._level(client, now)
        allowed = level >= 1.0
        self._buckets[client] = (level - 1.0 if allowed else level, now)
        self._buckets.move_to_end(client)
        while len(self._buckets) > self._limit:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - level) / self._per_s

    def peek_s(self, address: str, now: float) -> float:
        """As ``wait_s``, but counts nothing."""
        if self._per_s <= 0 or not self._buckets:
            return 0.0
        level = self._level(client_of(address), now)
        return 0.0 if level >= 1.0 else (1.0 - level) / self._per_s

    def _level(self, client: str, now: float) -> float:
        level, filled = self._buckets.get(client, (self._size, now))
        return min(self._size, level + (now - filled) * self._per_s)

    def __len__(self) -> int:
        return len(self._buckets)


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
