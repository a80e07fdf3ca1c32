"""Counters of a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.serve.stats import BUCKETS_S, Histogram, ModelStats


@given(st.lists(st.floats(0, 100), max_size=50))
def test_one_by_one_or_together(durations: list[float]) -> None:
    """Durations that are noted together count like each by itself, in the bucket that holds it."""
    single, together = Histogram(), Histogram()
    for seconds in durations:
        single.observe(seconds)
    together.observe_all(durations)
    assert single.buckets == together.buckets
    assert together.count == len(durations)
    for place, bound in enumerate(BUCKETS_S):
        assert sum(together.buckets[: place + 1]) == sum(seconds <= bound for seconds in durations)


def test_classes_of_statuses() -> None:
    """Answers are counted by the class of their status; what is no status counts as a failure."""
    stats = ModelStats("m", "1")
    for status in (200, 404, 503, 599, 7000):
        stats.count(status, 0.1)
    assert stats.by_class == [0, 0, 1, 0, 1, 3]
    assert stats.request.count == 5
