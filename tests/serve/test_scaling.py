"""How many workers the load asks for."""

from __future__ import annotations

from cloister.serve.scaling import Autoscaler


class Load:
    """Plays checks of one second each to an autoscaler."""

    def __init__(self, workers: int, low: int, high: int) -> None:
        self.scaler = Autoscaler(up_hold_s=2, down_hold_s=10)
        self.now, self.workers, self.low, self.high = 0.0, workers, low, high

    def play(self, seconds: int, *, busy: int, waiting: int) -> list[int]:
        seen = []
        for _ in range(seconds):
            self.now += 1
            self.workers = self.scaler.wanted(
                self.now, workers=self.workers, busy=busy, waiting=waiting, low=self.low, high=self.high
            )
            seen.append(self.workers)
        return seen


def test_up_after_a_hold() -> None:
    """One more worker at a time, each after requests have waited without a pause, up to the maximum."""
    load = Load(1, 1, 3)
    assert load.play(8, busy=3, waiting=5) == [1, 1, 2, 2, 3, 3, 3, 3]


def test_a_pause_starts_the_hold_anew() -> None:
    """A queue that empties now and then needs no more workers."""
    load = Load(1, 1, 3)
    for _ in range(10):
        assert load.play(2, busy=1, waiting=5) == [1, 1]
        assert load.play(1, busy=1, waiting=0) == [1]


def test_down_after_a_longer_hold() -> None:
    """One worker fewer when the rest is enough for long, and never under the minimum."""
    load = Load(3, 1, 3)
    seen = load.play(60, busy=0, waiting=0)
    assert seen[9:12] == [3, 2, 2]
    assert seen[-1] == 1
    assert sorted(seen, reverse=True) == seen


def test_busy_workers_stay() -> None:
    """Workers that are all at work stay, with or without a queue."""
    assert set(Load(3, 1, 3).play(60, busy=3, waiting=0)[20:]) == {3}


def test_from_nothing() -> None:
    """A model without workers gets one at once when somebody asks, if it may have one."""
    assert Load(0, 0, 2).play(1, busy=0, waiting=1) == [1]
    assert Load(0, 0, 0).play(1, busy=0, waiting=1) == [0]
    assert Load(0, 0, 2).play(3, busy=0, waiting=0) == [0, 0, 0]


def test_new_limits_hold_at_once() -> None:
    """Limits that were changed are kept without a hold."""
    assert Load(5, 1, 2).play(1, busy=5, waiting=9) == [2]
    assert Load(1, 3, 4).play(1, busy=0, waiting=0) == [3]
