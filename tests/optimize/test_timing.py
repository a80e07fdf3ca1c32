"""Times are measured as BigDL Nano did: warm-ups, a trimmed mean, a cap, and an early end."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.optimize.timing import TooSlow, measure_latency, measure_throughput, percentile, trimmed_mean

VALUES = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=60)


class Clock:
    """Time that passes only when a call takes some."""

    def __init__(self, *durations: float) -> None:
        self.now, self._durations, self.calls = 0.0, list(durations), 0

    def __call__(self) -> float:
        return self.now

    def call(self, number: int) -> None:
        self.now += self._durations[min(self.calls, len(self._durations) - 1)]
        self.calls += 1


def test_warm_ups_do_not_count() -> None:
    """The first two calls are slow, and no part of the result."""
    clock = Clock(9.0, 9.0, 0.01)
    found = measure_latency(clock.call, samples=20, clock=clock)
    assert (found.calls, clock.calls) == (20, 22)
    assert found.mean_ms == pytest.approx(10)
    assert found.p99_ms == pytest.approx(10)


def test_a_tenth_at_either_end_is_left_out() -> None:
    """Two outliers among twenty do not move the mean."""
    values = [1.0] * 18 + [1000.0, 0.0]
    assert trimmed_mean(values) == 1.0
    assert trimmed_mean([5.0]) == 5.0


def test_ten_seconds_are_enough() -> None:
    """A slow model is not called a hundred times."""
    clock = Clock(3.0)
    assert measure_latency(clock.call, samples=100, clock=clock).calls == 4


def test_a_model_four_times_slower_is_given_up() -> None:
    """After three calls over four times the original's, no more are made."""
    clock = Clock(0.5)
    with pytest.raises(TooSlow, match=r"500 ms a call"):
        measure_latency(clock.call, original_s=0.12, clock=clock)
    assert clock.calls == 5
    assert measure_latency(Clock(0.5).call, samples=5, original_s=0.13).calls == 5


def test_calls_that_are_done_at_once_are_all_made() -> None:
    """An end saves no time with calls of a tenth of a millisecond."""
    clock = Clock(1e-4)
    assert measure_latency(clock.call, samples=100, original_s=1e-5, clock=clock).calls == 100


def test_a_call_that_was_interrupted_proves_nothing() -> None:
    """Two of the first three calls that take long do not end the measurement of a fast model."""
    clock = Clock(0.001, 0.001, 0.5, 0.5, 0.001)
    assert measure_latency(clock.call, samples=20, original_s=0.01, clock=clock).calls == 20


def test_throughput_counts_whole_waves() -> None:
    """Rows of complete waves, over the time that they took."""
    clock = Clock(0.3)

    def wave() -> int:
        clock.call(0)
        return 8

    per_s, rows = measure_throughput(wave, seconds=1.0, clock=clock)
    assert rows == 32
    assert per_s == pytest.approx(32 / 1.2)


@given(VALUES, st.floats(0, 1))
def test_a_percentile_lies_between_its_neighbours(values: list[float], share: float) -> None:
    """It is never outside of the values, and grows with the share."""
    found = percentile(values, share)
    assert min(values) <= found <= max(values) * (1 + 1e-12)
    assert percentile(values, 0.5) == pytest.approx(statistics.median(values), rel=1e-9, abs=1e-9)


@given(VALUES)
def test_a_trimmed_mean_lies_within(values: list[float]) -> None:
    """Leaving values out does not lead outside of them."""
    assert min(values) - 1e-6 <= trimmed_mean(values) <= max(values) * (1 + 1e-12) + 1e-6
