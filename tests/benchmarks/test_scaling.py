"""From measured costs to a larger machine."""

from __future__ import annotations

import pytest
from bench_scaling import expect
from rig.scaling import Costs, predict_here, predict_machine


def test_one_core_does_one_thing_at_a_time() -> None:
    """However many callers there are, one core answers as many as their costs allow."""
    costs = Costs(engine_s=0.008, frontend_s=0.001, callers_s=0.001)
    for callers in (1, 16):
        assert predict_here(costs, 1, callers).per_s == pytest.approx(100)


def test_interference_counts_only_where_cores_are_shared() -> None:
    """Two cores that slow each other down by a quarter do 1.6 times the work of one."""
    costs = Costs(engine_s=0.01, frontend_s=0.0, callers_s=0.0, interference=1.25)
    assert predict_here(costs, 1, 64).per_s == pytest.approx(100)
    assert predict_here(costs, 2, 64).per_s == pytest.approx(160, rel=0.01)


def test_a_frontend_is_the_limit_of_a_quick_model() -> None:
    """48 cores at 5 ms want 9,600 requests per second; a frontend of 0.5 ms gives 2,000, four give 8,000."""
    costs = Costs(engine_s=0.005, frontend_s=0.0005, callers_s=0.0)
    one = predict_machine(costs, workers=12, cores_each=4, frontends=1, callers=500)
    four = predict_machine(costs, workers=12, cores_each=4, frontends=4, callers=500)
    assert (one.bottleneck, four.bottleneck) == ("frontend", "frontend")
    assert one.per_s == pytest.approx(2000, rel=0.01)
    assert four.per_s == pytest.approx(8000, rel=0.02)


def test_protection_costs_nothing_where_the_workers_are_the_limit() -> None:
    """On a slow model the ratio of protected to open is near 1, and says so with its bottleneck."""
    costs = {"open": Costs(0.2, 0.0002, 0.0), "ohttp": Costs(0.2, 0.0006, 0.0)}
    for row in expect(costs):
        assert row["bottleneck"] == "workers"
        assert 0.999 < row["ratio"] <= 1 + 1e-9


def test_a_faster_core_is_faster() -> None:
    """Twice the speed, twice the requests."""
    costs = Costs(0.05, 0.001, 0.0, 1.1)
    slow, fast = (
        predict_machine(costs, workers=2, cores_each=4, frontends=1, callers=16, speed=speed)
        for speed in (1.0, 2.0)
    )
    assert fast.per_s == pytest.approx(2 * slow.per_s)
