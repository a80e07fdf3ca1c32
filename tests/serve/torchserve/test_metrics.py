"""The metrics API that handlers use, and what the worker sends of it."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.serve.torchserve.metrics import (
    MAX_SAMPLES,
    Dimension,
    MetricsCache,
    MetricsCacheKeyError,
    MetricsCacheTypeError,
    MetricsStore,
    MetricTypes,
)


def taken(cache: MetricsCache) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in cache.take():
        found.setdefault(item.name, []).append((item.kind, item.unit, item.value))
    return found


def test_kinds() -> None:
    """Counters sum, gauges keep the newest, histograms keep all; units have their long names."""
    cache = MetricsCache(model_name="m")
    for value in (1, 2):
        cache.add_counter("c", value)
        cache.add_time("t", value, unit="s")
        cache.add_percent("p", value, metric_type=MetricTypes.HISTOGRAM)
        cache.add_metric("g", value, "widgets", metric_type=MetricTypes.GAUGE)
    cache.add_error("e", "some text of a request")
    assert taken(cache) == {
        "c": [("counter", "Count", 3.0)],
        "t": [("gauge", "Seconds", 2.0)],
        "p": [("histogram", "Percent", 1.0), ("histogram", "Percent", 2.0)],
        "g": [("gauge", "widgets", 2.0)],
        "e": [("counter", "unit", 1.0)],
    }
    assert taken(cache) == {}


def test_metric_of_ones_own() -> None:
    """A metric made once is found again and given values with its own dimensions."""
    cache = MetricsCache(model_name="m")
    made = cache.add_metric_to_cache("n", "count", ["Kind"], MetricTypes.COUNTER)
    made.add_or_update(2, ["a"])
    cache.get_metric("n").add_or_update(3, ["b"])
    assert {(item.dimensions[0][1], item.value) for item in cache.take()} == {("a", 2.0), ("b", 3.0)}
    with pytest.raises(MetricsCacheKeyError):
        cache.get_metric("n", MetricTypes.GAUGE)
    assert "counter:n" in cache.cache_keys()
    assert cache.get_metric("HandlerTime", MetricTypes.GAUGE).dimension_names == ["ModelName", "Level"]


def test_default_dimensions_do_not_gather() -> None:
    """The caller's list of dimensions is not changed, and defaults are added once."""
    cache = MetricsCache(model_name="m")
    given = [Dimension("Level", "Mine")]
    cache.add_counter("c", 1, None, given)
    (sample,) = cache.take()
    assert (sample.dimensions, len(given)) == ([("Level", "Mine"), ("ModelName", "m")], 1)


@pytest.mark.parametrize("values", [(-1, ["x"]), (1, []), (1, ["x", "y"])])
def test_values_that_do_not_fit(values: tuple[float, list[str]]) -> None:
    """A negative count and a wrong number of dimensions are dropped, as with TorchServe."""
    cache = MetricsCache()
    cache.add_metric_to_cache("n", "count", ["Kind"]).add_or_update(*values)
    assert cache.take() == []


def test_wrong_arguments() -> None:
    """A wrong unit or type is the handler's error."""
    cache = MetricsCache()
    for call in (lambda: cache.add_time("t", 1, unit="h"), lambda: cache.add_size("s", 1, unit="TB")):
        with pytest.raises(ValueError, match="unit"):
            call()
    with pytest.raises(MetricsCacheTypeError):
        cache.add_metric_to_cache("n", "count", metric_type="counter")  # type: ignore[arg-type]


def test_limits() -> None:
    """A handler that measures without end costs a bounded amount."""
    cache = MetricsCache()
    for number in range(MAX_SAMPLES * 2):
        cache.add_counter(f"n{number}" + "x" * 1000, 1)
    samples = cache.take()
    assert len(samples) == MAX_SAMPLES
    assert max(len(item.name) for item in samples) <= 200


def test_nothing_is_kept_in_protected_mode() -> None:
    """What a handler measures does not leave a protected worker."""
    cache = MetricsCache(keep=False)
    cache.add_counter("secret", 1)
    assert cache.take() == []


def test_older_class() -> None:
    """TorchServe's older class is made with request numbers and a name."""
    store = MetricsStore({0: "id"}, "m")
    store.add_counter("c", 1)
    assert store.take()[0].dimensions[0] == ("ModelName", "m")
