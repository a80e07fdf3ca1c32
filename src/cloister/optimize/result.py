"""What a search found: a row for each method, and the best under the user's constraints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cloister.errors import ConfigError
from cloister.optimize.job import Measured, Status, Timing
from cloister.optimize.methods import Method
from cloister.optimize.metrics import Metric
from cloister.optimize.quantities import Drop

Objective = Literal["throughput", "latency", "memory", "size"]
OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency", "memory", "size")
UNJUDGED_COSINE = 0.9
"""Where no limit of a metric judges them, outputs must be at least this much like the original's."""


@dataclass(frozen=True)
class Row:
    """What became of one method."""

    name: str
    status: Status
    reason: str = ""
    method: Method | None = None
    measured: Measured | None = None
    metric: float | None = None
    drop: float | None = None
    """How much worse than the original, in the metric's unit."""
    cosine: float | None = None
    size_bytes: int = 0
    took_s: float = 0.0
    """What the trial took, conversions for this method included."""
    folder: Path | None = None
    """Of its artifact, where it has a form that can be served."""
    file: str = ""
    max_latency_s: float | None = None
    """The goal's: it is not run in a way in which one request takes longer, if there is another."""

    @property
    def best_timing(self) -> Timing | None:
        """The way to run it with the highest throughput, of those that are quick enough."""
        if self.measured is None or not self.measured.timings:
            return None
        limit_ms = math.inf if self.max_latency_s is None else self.max_latency_s * 1e3
        quick = [timing for timing in self.measured.timings if timing.p50_ms <= limit_ms]
        return max(quick or self.measured.timings, key=lambda timing: timing.per_s)

    @property
    def servable(self) -> bool:
        """Whether it has a form for an archive; no sandbox lets a compiler start when a model is loaded."""
        return self.folder is not None and self.method is not None and not self.method.compiled

    @property
    def is_measure(self) -> bool:
        """Whether others may be compared with it: the original, or another form that computes as exactly."""
        return self.method is None or self.method.precision == "fp32"

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found: dict[str, Any] = {"method": self.name, "status": str(self.status)}
        if self.reason:
            found["reason"] = self.reason
        measured, timing = self.measured, self.best_timing
        if measured is not None and timing is not None:
            found |= {
                "latency_ms": {"mean": measured.mean_ms, "p50": measured.p50_ms, "p99": measured.p99_ms},
                "latency_calls": measured.calls,
                "throughput_per_s": timing.per_s,
                "streams": timing.streams,
                "rows": timing.rows,
                "timings": [
                    {"streams": t.streams, "rows": t.rows, "per_s": t.per_s, "p50_ms": t.p50_ms}
                    for t in measured.timings
                ],
                "memory_bytes": measured.memory_bytes,
                "size_bytes": self.size_bytes,
                "evaluated_rows": measured.evaluated_rows,
            }
        named = {"metric": self.metric, "drop": self.drop, "cosine": self.cosine}
        found |= {name: value for name, value in named.items() if value is not None and math.isfinite(value)}
        return found | {"took_s": self.took_s}


@dataclass(frozen=True)
class Goal:
    """What the user wants of the best method."""

    objective: Objective = "throughput"
    max_drop: Drop | None = None
    max_latency_s: float | None = None
    min_cosine: float | None = None
    """None: ``UNJUDGED_COSINE`` where no metric limits the drop, and nothing where one does."""

    def objections(self, row: Row, original: Row | None, metric: Metric | None) -> list[str]:
        """Why a row is not acceptable, in words; nothing if it is."""
        if row.status is not Status.SUCCESSFUL or row.measured is None:
            return [str(row.status)]
        found: list[str] = []
        if self.max_drop is not None:
            limit = None
            if metric is not None and original is not None and original.metric is not None:
                limit = self.max_drop.allowed(original.metric, share=metric.share)
            if limit is None or row.drop is None:
                found.append("its accuracy is not known")
            elif not row.drop <= limit + 1e-12:
                found.append(f"loses {row.drop:.4g}, over {self.max_drop.render()}")
        if self.max_latency_s is not None and row.measured.p50_ms > self.max_latency_s * 1e3:
            found.append(f"takes {row.measured.p50_ms:.3g} ms, over {self.max_latency_s * 1e3:g} ms")
        least = self.min_cosine
        if least is None and (metric is None or self.max_drop is None):
            least = UNJUDGED_COSINE
        if least is not None and row.cosine is None:
            found.append("its outputs were not compared with the original's")
        elif least is not None and row.cosine is not None and not row.cosine >= least:
            found.append(f"its outputs are like the original's to {row.cosine:.3f}, under {least:g}")
        return found


@dataclass(frozen=True)
class Result:
    """All rows of a search."""

    rows: tuple[Row, ...]
    goal: Goal
    metric: Metric | None = None
    concurrency: int = 16
    threads: int = 0
    took_s: float = 0.0
    interrupted: bool = False
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def original(self) -> Row | None:
        """The row that all others are compared with."""
        return next((row for row in self.rows if row.status is Status.SUCCESSFUL and row.is_measure), None)

    def row(self, name: str) -> Row:
        """The row of a method.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"{name!r} was not tried", hint=f"tried: {', '.join(r.name for r in self.rows)}")

    def objections(self, row: Row) -> list[str]:
        """Why a row is not acceptable."""
        return self.goal.objections(row, self.original, self.metric)

    def best(self, *, servable: bool = False) -> Row | None:
        """The acceptable row that is best by the goal's objective; None if there is none.

        Args:
            servable: only among those that have a form to be served.
        """
        fitting = [row for row in self.rows if not self.objections(row)]
        if servable:
            fitting = [row for row in fitting if row.servable]
        return min(fitting, key=lambda row: _cost(row, self.goal.objective), default=None)

    def with_goal(self, goal: Goal) -> Result:
        """The same rows under other constraints."""
        return replace(self, goal=goal)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        best, servable = self.best(), self.best(servable=True)
        return {
            "methods": [{**row.to_mapping(), "objections": self.objections(row)} for row in self.rows],
            "best": best.name if best else None,
            "best_servable": servable.name if servable else None,
            "objective": self.goal.objective,
            "metric": self.metric.name if self.metric else None,
            "concurrency": self.concurrency,
            "threads": self.threads,
            "took_s": self.took_s,
            "interrupted": self.interrupted,
            "machine": self.machine,
        }


def _cost(row: Row, objective: Objective) -> float:
    assert row.measured is not None
    timing = row.best_timing
    costs: dict[Objective, float] = {
        "throughput": -(timing.per_s if timing else 0.0),
        "latency": row.measured.p50_ms,
        "memory": float(row.measured.memory_bytes),
        "size": float(row.size_bytes or 1 << 62),
    }
    return costs[objective]
