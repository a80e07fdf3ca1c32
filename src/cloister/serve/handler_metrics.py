"""What handlers measure: TorchServe's custom metrics, as one model's workers send them.

A guest chooses names, labels and values, so all three are checked and their number is bounded. In protected
mode workers send none: a value may hold what a caller sent.

Source: pytorch/serve 0.12, docs/metrics.md "Custom Metrics API"; Prometheus data model (names and labels).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cloister.serve.frames import MetricSample

MAX_SERIES = 500
"""Of one model; further ones are dropped."""
MAX_LABELS = 10
MAX_VALUE_CHARS = 128
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of histograms: the defaults of the library that TorchServe uses."""
KINDS = ("counter", "gauge", "histogram")
_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]{0,127}")
_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,63}")
Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Series:
    """One metric with one set of labels."""

    value: float = 0.0
    """The sum of a counter or histogram, the last value of a gauge."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))


@dataclass(slots=True)
class Family:
    """All series of one name."""

    kind: str
    unit: str
    series: dict[Labels, Series] = field(default_factory=dict)


class HandlerMetrics:
    """The metrics of one model."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._count = 0

    def take(self, samples: Sequence[MetricSample]) -> None:
        """Note what a worker has measured; what Prometheus could not hold is passed over."""
        for sample in samples:
            series = self._find(sample)
            if series is None or not math.isfinite(sample.value):
                continue
            if sample.kind == "counter":
                series.value += max(0.0, sample.value)
            elif sample.kind == "gauge":
                series.value = sample.value
            else:
                series.value += sample.value
                series.buckets[bisect_left(BOUNDS, sample.value)] += 1

    def families(self) -> Iterator[tuple[str, Family]]:
        """Names and their series."""
        yield from self._families.items()

    def _find(self, sample: MetricSample) -> Series | None:
        labels = tuple((name, value[:MAX_VALUE_CHARS]) for name, value in sample.dimensions)
        names = [name for name, _ in labels]
        if (
            not _NAME.fullmatch(sample.name)
            or sample.kind not in KINDS
            or len(labels) > MAX_LABELS
            or len(set(names)) != len(names)
            or not all(_LABEL.fullmatch(name) for name in names)
        ):
            return None
        family = self._families.get(sample.name)
        if family is None:
            if self._count >= MAX_SERIES:
                return None
            family = self._families[sample.name] = Family(sample.kind, sample.unit[:32])
        if family.kind != sample.kind:
            return None
        series = family.series.get(labels)
        if series is None:
            if self._count >= MAX_SERIES:
                return None
            self._count += 1
            series = family.series[labels] = Series()
        return series
