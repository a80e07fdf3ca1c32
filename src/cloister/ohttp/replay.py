"""Refuses a sealed request that was seen before (RFC 9458, section 6.5).

Two halves that need each other. ``ReplayGuard`` remembers the ``enc`` of every request that opened, for a
time. ``check_date`` refuses a request whose sealed ``Date`` is further than ``WINDOW_S`` from now, so that a
request that the guard has forgotten is too old to be accepted.

The machine's clock is its host's, whom nobody trusts: set back, it would make forgotten requests young again.
So the guard counts by a clock that is never set, and knows the youngest date that it may have forgotten
(``floor``): nothing as old as that is accepted, whatever the clock says. A restarted server has other keys.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from cloister.errors import MalformedInput, Overloaded, Replayed
from cloister.ohttp.bhttp import Request

WINDOW_S = 60.0
"""How far a request's date may be from the gateway's clock, either way."""
DATE_PROBLEM = "https://iana.org/assignments/http-problem-types#date"
"""Problem type (RFC 9458, section 6.5.2) of the sealed answer to a request whose date is not acceptable."""

RETENTION_S = 2 * WINDOW_S + 10.0
"""A request dated ``WINDOW_S`` ahead is acceptable for twice that long; the rest is for clocks that drift."""
MARK_BYTES = 8
_SLICES = 4


@dataclass(slots=True)
class _Slice:
    since: float
    latest: float = 0.0
    """By the machine's clock."""
    seen: set[int] = field(default_factory=set)


class ReplayGuard:
    """Remembers what it was shown, in bounded memory.

    Nothing is forgotten early: at ``capacity`` new requests are refused until old ones expire, because a
    guard that forgets under load is one that an attacker can empty. Each is kept as 64 bits of a keyed hash,
    70 to 100 bytes of memory: two million of them, which are 13,000 requests a second, take 150 to 200 MB.
    """

    def __init__(
        self,
        *,
        retention_s: float = RETENTION_S,
        capacity: int = 1 << 21,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Make an empty guard.

        Args:
            retention_s: how long each is remembered at least.
            capacity: how many are remembered at most.
            wall: the machine's clock, seconds since 1970.
        """
        self._key = os.urandom(16)
        self._wall = wall
        self.floor = float("-inf")
        """Seconds since 1970: what is dated so or earlier may have been forgotten."""
        self._slice_s = retention_s / _SLICES
        self._capacity = capacity
        self._lock = threading.Lock()
        self._slices: deque[_Slice] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def check_new(self, enc: bytes) -> int:
        """Refuse ``enc`` if it is remembered; its mark, by which ``remember`` knows it.

        Raises:
            Replayed: it was seen before.
        """
        # Keyed, so that nobody can look for two requests with one mark.
        digest = hashlib.blake2b(enc, key=self._key, digest_size=MARK_BYTES).digest()
        mark = int.from_bytes(digest, "big")
        with self._lock:
            self._check(mark)
        return mark

    def remember(self, mark: int, now_s: float) -> None:
        """Remember a request that authenticated; refuse it if another thread was first.

        Args:
            mark: what ``check_new`` gave for its ``enc``.
            now_s: seconds of a monotonic clock.
        Raises:
            Replayed: it was seen before.
            Overloaded: at capacity.
        """
        with self._lock:
            self._check(mark)
            self._keep(mark, now_s)

    def remember_longer(self, mark: int, now_s: float) -> None:
        """Remember it from now on: a request that comes slowly has its date checked at its end.

        Raises:
            Overloaded: at capacity.
        """
        with self._lock:
            self._keep(mark, now_s)

    def _keep(self, mark: int, now_s: float) -> None:
        self._forget(now_s)
        if not self._slices or now_s >= self._slices[-1].since + self._slice_s:
            self._slices.append(_Slice(now_s))
        youngest = self._slices[-1]
        if mark not in youngest.seen:
            if self._count >= self._capacity:
                raise Overloaded(f"replay protection is at its capacity of {self._capacity} requests")
            youngest.seen.add(mark)
            self._count += 1
        youngest.latest = max(youngest.latest, self._wall())

    def _check(self, mark: int) -> None:
        for part in self._slices:
            if mark in part.seen:
                raise Replayed("this sealed request was received before")

    def _forget(self, now_s: float) -> None:
        # The youngest member of a slice may be one slice younger than its start.
        while self._slices and now_s >= self._slices[0].since + (_SLICES + 1) * self._slice_s:
            oldest = self._slices.popleft()
            self._count -= len(oldest.seen)
            self.floor = max(self.floor, oldest.latest + WINDOW_S)


def render_date(now: datetime) -> bytes:
    """``now`` as the value of a ``Date`` field (RFC 9110, section 5.6.7)."""
    return format_datetime(now.astimezone(UTC), usegmt=True).encode("ascii")


def check_date(
    request: Request, now: datetime, *, window_s: float = WINDOW_S, floor: float = float("-inf")
) -> None:
    """Refuse a request whose sealed ``Date`` is missing or too far from ``now``.

    Args:
        floor: the guard's.
    Raises:
        MalformedInput: the field is not a date.
        Replayed: missing, too old, or too far ahead.
    """
    value = request.header(b"date")
    if value is None:
        raise Replayed("sealed request without a Date field", hint="send Date inside the sealed request")
    dated = _parse_date(value)
    age_s = now.timestamp() - dated
    if dated <= floor:
        raise Replayed(
            "sealed request is older than what is remembered here", hint="this machine's clock was set back"
        )
    if abs(age_s) > window_s:
        raise Replayed(
            f"sealed request is {age_s:.0f} s old by this clock; accepted: {window_s:.0f} s either way",
            hint="check the clocks of both machines",
        )


@lru_cache(maxsize=64)
def _parse_date(value: bytes) -> float:
    # Exactly IMF-fixdate: the obsolete forms of RFC 9110 have no place in a new protocol.
    try:
        text = value.decode("ascii")
        day, month, year, clock = text[5:7], text[8:11], text[12:16], text[17:25]
        parsed = datetime.fromisoformat(f"{year}-{_MONTHS.index(month) + 1:02d}-{day}T{clock}+00:00")
    except ValueError as error:
        raise MalformedInput("Date field: not an HTTP date") from error
    if render_date(parsed) != value:
        raise MalformedInput("Date field: not an HTTP date")
    return parsed.timestamp()


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
