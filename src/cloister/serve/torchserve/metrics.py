"""``ts.metrics.metrics_store``: what ``context.metrics`` offers to handlers.

Values stay in the worker: in protected mode a metric that a handler names and sets freely would be a way out
for what it was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_METRICS = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """The newest value of one name."""

    name: str
    value: float
    unit: str


class MetricsStore:
    """Remembers the newest value of each name, up to ``MAX_METRICS`` names."""

    def __init__(self, request_ids: dict[int, str] | None = None, model_name: str = "") -> None:
        self.request_ids = request_ids
        self.model_name = model_name
        self.cache: dict[str, Metric] = {}

    @property
    def store(self) -> list[Metric]:
        return list(self.cache.values())

    def add_metric(
        self, name: str, value: float, unit: str = "count", idx: Any = None, dimensions: Sequence[Any] = ()
    ) -> None:
        """Set a name's value."""
        if name in self.cache or len(self.cache) < MAX_METRICS:
            self.cache[name] = Metric(name, value, unit)

    def add_counter(self, name: str, value: float, idx: Any = None, dimensions: Sequence[Any] = ()) -> None:
        """Add to a name's value."""
        before = self.cache.get(name)
        self.add_metric(name, value + (before.value if before else 0), "count")

    def add_time(
        self, name: str, value: float, idx: Any = None, unit: str = "ms", dimensions: Sequence[Any] = ()
    ) -> None:
        self.add_metric(name, value, unit)

    def add_size(
        self, name: str, value: float, idx: Any = None, unit: str = "MB", dimensions: Sequence[Any] = ()
    ) -> None:
        self.add_metric(name, value, unit)

    def add_percent(self, name: str, value: float, idx: Any = None, dimensions: Sequence[Any] = ()) -> None:
        self.add_metric(name, value, "percent")

    def add_error(self, name: str, value: Any, dimensions: Sequence[Any] = ()) -> None:
        """Count an error; its text is not kept."""
        self.add_counter(name, 1)
