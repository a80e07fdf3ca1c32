"""Rates and quotas by caller."""

from __future__ import annotations

from cloister.serve.access.limits import CallerLimits

NOON = 86_400 * 20_000 + 43_200


def test_rate() -> None:
    """Two seconds' worth at once, then one after the other; others are not concerned."""
    limits = CallerLimits(per_s=5)
    assert [limits.wait_s("a", NOON) for _ in range(10)] == [0] * 10
    assert limits.wait_s("a", NOON) == 1
    assert limits.wait_s("b", NOON) == 0
    assert limits.wait_s("a", NOON + 0.2) == 0
    assert limits.wait_s("a", NOON + 0.2) == 1


def test_quota() -> None:
    """So many a day; the answer says when the next day begins."""
    limits = CallerLimits(per_day=3)
    assert [limits.wait_s("a", NOON) for _ in range(4)] == [0, 0, 0, 43_200]
    assert limits.wait_s("a", NOON + 43_200) == 0


def test_refused_requests_do_not_count() -> None:
    """A request that the rate refuses does not use up the quota."""
    limits = CallerLimits(per_s=1, per_day=3)
    assert [limits.wait_s("a", NOON) for _ in range(5)] == [0, 0, 1, 1, 1]
    assert limits.wait_s("a", NOON + 10) == 0
    assert limits.wait_s("a", NOON + 20) > 40_000


def test_off() -> None:
    """Without limits nothing is counted."""
    limits = CallerLimits()
    assert not limits.is_on
    assert [limits.wait_s("a", NOON) for _ in range(1000)] == [0] * 1000
