"""Replay protection: memory that is bounded but never short, and dates that make forgetting safe."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput, Overloaded, Replayed
from cloister.ohttp.bhttp import Request
from cloister.ohttp.replay import ReplayGuard, check_date, render_date

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def dated(value: bytes | None) -> Request:
    """A request with this Date field."""
    return Request(b"GET", b"https", b"", b"/", () if value is None else ((b"date", value),))


def remember(guard: ReplayGuard, enc: bytes, now_s: float) -> None:
    """As a gateway does it with a request that opened."""
    guard.remember(guard.check_new(enc), now_s)


@given(st.lists(st.floats(0, 30), max_size=40))
def test_nothing_is_forgotten_early(steps: list[float]) -> None:
    """Each is remembered for at least the retention time, and not for two of them."""
    guard, now, seen = ReplayGuard(retention_s=60), 0.0, {}
    for number, step in enumerate(steps):
        now += step
        enc = number.to_bytes(32, "big")
        remember(guard, enc, now)
        seen[enc] = now
        for old, when in seen.items():
            if now < when + 60:
                with pytest.raises(Replayed):
                    guard.check_new(old)
    remember(guard, b"last", now + 120)
    assert len(guard) <= 1


def test_check_new_remembers_nothing() -> None:
    """Only a request that authenticated is remembered."""
    guard = ReplayGuard()
    first, second = guard.check_new(b"x"), guard.check_new(b"x")
    guard.remember(first, 0)
    with pytest.raises(Replayed):
        guard.remember(second, 1)
    assert len(guard) == 1


def test_date_as_http_writes_it() -> None:
    """The form is the fixed one of RFC 9110."""
    assert render_date(datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)) == b"Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize("shift_s", [-60, 0, 60])
def test_date_within_the_window(shift_s: int) -> None:
    """A date up to the window away is accepted, either way."""
    check_date(dated(render_date(NOW + timedelta(seconds=shift_s))), NOW)


@pytest.mark.parametrize("shift_s", [-61, 61, -86400])
def test_date_outside_the_window(shift_s: int) -> None:
    """An older or later date is refused."""
    with pytest.raises(Replayed, match="accepted: 60 s"):
        check_date(dated(render_date(NOW + timedelta(seconds=shift_s))), NOW)


def test_missing_date() -> None:
    """A request without a date could be any age, so it is refused."""
    with pytest.raises(Replayed, match="without a Date"):
        check_date(dated(None), NOW)


@given(st.binary(max_size=40))
@pytest.mark.parametrize("prefix", [b"", b"Sun, 01 Mar 2026 12:00:0"])
def test_malformed_dates(prefix: bytes, value: bytes) -> None:
    """What is not exactly an HTTP date raises only declared errors."""
    try:
        check_date(dated(prefix + value), NOW)
    except (MalformedInput, Replayed):
        return


@pytest.mark.parametrize(
    "value", [b"Mon, 01 Mar 2026 12:00:00 GMT", b"Sunday, 01-Mar-26 12:00:00 GMT", b"2026-03-01"]
)
def test_other_forms_are_refused(value: bytes) -> None:
    """A wrong weekday and the obsolete or foreign forms are malformed."""
    with pytest.raises(MalformedInput):
        check_date(dated(value), NOW)


def test_a_clock_that_is_set_back_brings_nothing_back() -> None:
    """What was forgotten stays refused by its date when the machine's clock is set back; the honest pass."""
    wall = [NOW.timestamp()]
    guard, start = ReplayGuard(wall=lambda: wall[0]), wall[0]
    ahead = dated(render_date(NOW + timedelta(seconds=60)))
    check_date(ahead, NOW, floor=guard.floor)
    remember(guard, b"old", 0.0)
    for second in range(0, 600, 10):
        wall[0] = start + second
        remember(guard, b"%d" % second, float(second))
        honest = datetime.fromtimestamp(wall[0], UTC)
        for shift_s in (-60, 0, 60):
            check_date(dated(render_date(honest + timedelta(seconds=shift_s))), honest, floor=guard.floor)
    guard.check_new(b"old")  # forgotten
    check_date(ahead, NOW)  # which its date would let in now
    with pytest.raises(Replayed, match="older than what is remembered"):
        check_date(ahead, NOW, floor=guard.floor)


def test_memory_is_bounded() -> None:
    """At its capacity a guard refuses what is new and forgets nothing; long keys take no more."""
    tracemalloc.start()
    guard = ReplayGuard(capacity=20_000)
    for number in range(20_000):
        remember(guard, number.to_bytes(1120, "big"), number / 1000)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 20_000 * 200
    with pytest.raises(Overloaded):
        remember(guard, b"one more", 20.0)
    for number in (0, 19_999):
        with pytest.raises(Replayed):
            guard.check_new(number.to_bytes(1120, "big"))
    remember(guard, b"one more", 400.0)
    assert len(guard) == 1
