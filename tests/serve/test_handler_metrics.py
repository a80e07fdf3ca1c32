"""What handlers measure, as the frontend keeps it."""

from __future__ import annotations

import math

from cloister.serve.frames import MetricSample
from cloister.serve.handler_metrics import MAX_SERIES, HandlerMetrics


def sample(name: str = "m", kind: str = "gauge", value: float = 1.0, **labels: str) -> MetricSample:
    return MetricSample(name, kind, "ms", list(labels.items()), value)


def values(metrics: HandlerMetrics) -> dict[str, list[float]]:
    return {name: [s.value for s in family.series.values()] for name, family in metrics.families()}


def test_kinds() -> None:
    """Counters add up and never fall, gauges are the last value, histograms count by bounds."""
    metrics = HandlerMetrics()
    for value in (1.0, 2.0, -5.0):
        metrics.take(
            [sample("c", "counter", value), sample("g", "gauge", value), sample("h", "histogram", value)]
        )
    assert values(metrics) == {"c": [3.0], "g": [-5.0], "h": [-2.0]}
    histogram = dict(metrics.families())["h"].series[()]
    assert sum(histogram.buckets) == 3


def test_labels() -> None:
    """Each set of labels is a series of its own."""
    metrics = HandlerMetrics()
    metrics.take([sample(ModelName="a", Level="Model"), sample(ModelName="b", Level="Model")])
    assert values(metrics) == {"m": [1.0, 1.0]}


def test_what_prometheus_could_not_hold() -> None:
    """Names, labels, kinds and numbers that cannot be are passed over."""
    metrics = HandlerMetrics()
    metrics.take(
        [
            sample("9m"), sample("a b"), sample("a\n# TYPE evil"), sample(kind="summary"),
            sample(value=math.nan), sample(value=math.inf), sample(**{"a-b": "x"}), sample(__name__="x"),
            MetricSample("m", "gauge", "ms", [("a", "1"), ("a", "2")], 1.0),
            MetricSample("m", "gauge", "ms", [(f"l{i}", "") for i in range(11)], 1.0),
        ]
    )  # fmt: skip
    assert [
        name for name, family in metrics.families() for series in family.series.values() if series.value
    ] == []


def test_a_name_keeps_its_kind() -> None:
    """A second kind under the same name is passed over."""
    metrics = HandlerMetrics()
    metrics.take([sample("m", "counter"), sample("m", "gauge", 9.0)])
    assert values(metrics) == {"m": [1.0]}


def test_bounded() -> None:
    """A handler cannot fill the frontend's memory with names or labels."""
    metrics = HandlerMetrics()
    metrics.take([sample(f"m{i}") for i in range(MAX_SERIES)])
    metrics.take([sample("m0", a=str(i)) for i in range(100)])
    metrics.take([sample(f"n{i}") for i in range(100)])
    assert sum(len(found) for found in values(metrics).values()) == MAX_SERIES
