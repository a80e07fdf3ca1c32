"""``ts.metrics``: what handlers measure, by the names that TorchServe's have.

Values are gathered until the worker sends them with its answers. In protected mode nothing is kept: a metric
that a handler names and sets freely would be a way out for what it was asked.

Source: pytorch/serve 0.12, docs/metrics.md "Custom Metrics API" and ts/metrics (names, units, dimensions).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from typing import Any

from cloister.serve.frames import MetricSample

MAX_SAMPLES = 1000
"""Between two answers; what a handler measures beyond is dropped."""
MAX_TEXT = 200
"""Characters of a name, a unit or a dimension."""
_UNITS = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
    None: "unit",
}
_log = logging.getLogger("ts.metrics")


class MetricTypes(enum.Enum):
    """How values of one name go together."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Dimension:
    """One label of a metric."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def to_dict(self) -> dict[str, Any]:
        return {"Name": self.name, "Value": self.value}


class Units:
    """Units by their short names."""

    def __init__(self) -> None:
        self.units: dict[str | None, str] = dict(_UNITS)


class GeneralMetricsCacheError(Exception):
    """Root of nothing: TorchServe's errors each derive from what they are like."""


class MetricsCacheIOError(OSError):
    """A metrics file cannot be read."""


class MetricsCachePyYamlError(Exception):
    """A metrics file is not YAML."""


class MetricsCacheTypeError(TypeError):
    """A name, unit or type of the wrong type."""


class MetricsCacheValueError(ValueError):
    """A value that cannot be."""


class MetricsCacheKeyError(KeyError):
    """No such metric."""


class Collector:
    """Samples since they were last taken: counters summed, gauges newest, histograms each."""

    def __init__(self, *, keep: bool = True) -> None:
        self._keep = keep
        self._values: dict[tuple[str, MetricTypes, str, tuple[tuple[str, str], ...]], list[float]] = {}
        self._count = 0

    def add(
        self, name: str, kind: MetricTypes, unit: str, dimensions: Sequence[tuple[str, str]], value: float
    ) -> None:
        """Take in one value."""
        if not self._keep:
            return
        key = (name[:MAX_TEXT], kind, unit[:MAX_TEXT], tuple(dimensions))
        values = self._values.get(key)
        if values is not None and kind is MetricTypes.COUNTER:
            values[0] += value
        elif values is not None and kind is MetricTypes.GAUGE:
            values[0] = value
        elif self._count < MAX_SAMPLES:
            self._count += 1
            self._values.setdefault(key, []).append(value)

    def take(self) -> list[MetricSample]:
        """All samples; afterwards there are none."""
        if not self._values:
            return []
        samples = [
            MetricSample(name, kind.value, unit, list(dimensions), value)
            for (name, kind, unit, dimensions), values in self._values.items()
            for value in values
        ]
        self._values.clear()
        self._count = 0
        return samples


class CachingMetric:
    """A metric of one name; handlers keep it and give it values."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
        collector: Collector | None = None,
    ) -> None:
        self.metric_name = metric_name
        self.unit = _UNITS.get(unit, unit)
        self.dimension_names = list(dimension_names or [])
        self.metric_type = metric_type
        self._collector = collector or Collector(keep=False)

    def add_or_update(self, value: float, dimension_values: Sequence[Any] = (), request_id: str = "") -> None:
        """Give it a value. One that does not fit is dropped and logged, as TorchServe does."""
        values = list(dimension_values or ())
        if len(values) != len(self.dimension_names):
            _log.error(
                "metric %s has %d dimensions, given %d",
                self.metric_name,
                len(self.dimension_names),
                len(values),
            )
            return
        if self.metric_type is MetricTypes.COUNTER and value < 0:
            _log.error("metric %s is a counter and cannot be given a negative value", self.metric_name)
            return
        pairs = [
            (str(name)[:MAX_TEXT], str(item)[:MAX_TEXT])
            for name, item in zip(self.dimension_names, values, strict=True)
        ]
        self._collector.add(self.metric_name, self.metric_type, self.unit, pairs, float(value))

    def update(self, value: float, request_id: str = "", dimensions: Sequence[Dimension] = ()) -> None:
        """Give it a value under other dimensions than it had."""
        self.dimension_names = [item.name for item in dimensions]
        self.add_or_update(value, [item.value for item in dimensions], request_id)


class MetricsCache:
    """``context.metrics``."""

    def __init__(
        self,
        config_file_path: str = "",
        *,
        model_name: str = "",
        keep: bool = True,
    ) -> None:
        self.config_file_path = config_file_path
        self.model_name = model_name
        self.request_ids: dict[int, str] | str | None = None
        self.cache: dict[MetricTypes, dict[str, CachingMetric]] = {}
        self.store: list[Any] = []
        self._collector = Collector(keep=keep)
        for name in ("HandlerTime", "PredictionTime"):
            self.add_metric_to_cache(name, "ms", ["ModelName", "Level"], MetricTypes.GAUGE)

    def take(self) -> list[MetricSample]:
        """What was measured since this was last called; for the worker."""
        return self._collector.take()

    def set_request_ids(self, request_ids: dict[int, str] | str | None) -> None:
        self.request_ids = request_ids

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str = "count",
        idx: Any = None,
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Give a value to the metric of this name and type, which is made if there is none."""
        labels = self._with_defaults(dimensions)
        self._metric(name, unit, labels, metric_type).add_or_update(value, [item.value for item in labels])

    def add_counter(
        self, name: str, value: float, idx: Any = None, dimensions: Sequence[Dimension] | None = None
    ) -> None:
        self.add_metric(name, value, "count", idx, dimensions, MetricTypes.COUNTER)

    def add_time(
        self,
        name: str,
        value: float,
        idx: Any = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        if unit not in ("ms", "s"):
            raise MetricsCacheValueError("the unit for a timed metric should be one of ['ms', 's']")
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: Any = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        if unit not in ("MB", "kB", "GB", "B"):
            raise MetricsCacheValueError("The unit for size based metric is one of ['MB','kB', 'GB', 'B']")
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: Any = None,
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: Any, dimensions: Sequence[Dimension] | None = None) -> None:
        """Count an error. A text given for its value is not kept."""
        labels = list(dimensions or ())
        if all(item.name != "Level" for item in labels):
            labels.append(Dimension("Level", "Error"))
        amount = value if isinstance(value, int | float) else 1
        metric = self._metric(name, "", labels, MetricTypes.COUNTER)
        metric.add_or_update(amount, [item.value for item in labels])

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Make a metric without a value; one of this name and type is replaced."""
        if not isinstance(metric_name, str) or not isinstance(unit, str):
            raise MetricsCacheTypeError("`metric_name` and `unit` must be a str")
        if not isinstance(metric_type, MetricTypes):
            raise MetricsCacheTypeError("`metric_type` must be a MetricTypes enum")
        if dimension_names and not isinstance(dimension_names, list | tuple):
            raise MetricsCacheTypeError("`dimension_names` should be a list of dimension name strings")
        metric = CachingMetric(metric_name, unit, dimension_names, metric_type, self._collector)
        self.cache.setdefault(metric_type, {})[metric_name] = metric
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """The metric of this name and type.

        Raises:
            MetricsCacheKeyError: there is none.
        """
        try:
            return self.cache[metric_type][metric_name]
        except KeyError:
            raise MetricsCacheKeyError(
                f"Metric of type '{metric_type}' and name '{metric_name}' doesn't exist"
            ) from None

    def cache_keys(self) -> list[str]:
        return [f"{kind.value}:{name}" for kind, metrics in self.cache.items() for name in metrics]

    def _metric(
        self, name: str, unit: str, dimensions: Sequence[Dimension], metric_type: MetricTypes
    ) -> CachingMetric:
        found = self.cache.get(metric_type, {}).get(name)
        if found is not None:
            return found
        return self.add_metric_to_cache(name, unit, [item.name for item in dimensions], metric_type)

    def _with_defaults(self, dimensions: Sequence[Dimension] | None) -> list[Dimension]:
        labels = list(dimensions or ())
        names = {item.name for item in labels}
        if "ModelName" not in names:
            labels.append(Dimension("ModelName", self.model_name))
        if "Level" not in names:
            labels.append(Dimension("Level", "Model"))
        return labels


class MetricsStore(MetricsCache):
    """TorchServe's older class, made with request numbers and a model's name."""

    def __init__(self, request_ids: dict[int, str] | str | None = None, model_name: str = "") -> None:
        super().__init__(model_name=model_name)
        self.request_ids = request_ids


class Metric:
    """TorchServe's older metric: name, value and dimensions in one."""

    def __init__(
        self,
        name: str,
        value: float,
        unit: str,
        dimensions: Sequence[Dimension],
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.unit = _UNITS.get(unit, unit)
        self.dimensions = list(dimensions)
        self.request_id = request_id
        self.metric_method = metric_method

    def update(self, value: float) -> None:
        self.value = self.value + value if self.metric_method == "counter" else value

    def reset(self) -> None:
        self.value = 0

    def __str__(self) -> str:
        return f"{self.name}.{self.unit}:{self.value}|#{','.join(map(str, self.dimensions))}"


MetricCacheAbstract = MetricsCacheYamlImpl = MetricsCache
MetricAbstract = CachingMetric
