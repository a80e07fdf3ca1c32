"""Counters of one model: plain integers on the request path, Prometheus text only when somebody asks.

Labels are the model and its version, never a caller, a path or a value of a request.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LABELS = ("model_name", "model_version")


class ModelStats:
    """What one version of a model has done since its start."""

    __slots__ = ("buckets", "by_class", "model", "restarts", "seconds", "version", "waiting", "workers")

    def __init__(self, model: str, version: str) -> None:
        self.model = model
        self.version = version
        self.by_class = [0, 0, 0, 0, 0, 0]
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0
        self.restarts = 0
        self.waiting = 0
        self.workers = 0

    def count(self, status: int, started: float) -> None:
        """Note one answered request; ``started`` is ``time.monotonic()`` at its arrival."""
        took = time.monotonic() - started
        self.by_class[status // 100] += 1
        self.buckets[bisect_left(BUCKETS_S, took)] += 1
        self.seconds += took


class _ModelCollector(Collector):
    def __init__(self, models: Iterable[ModelStats]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "cloister_requests", "Predictions answered, by class of HTTP status.", labels=[*_LABELS, "status"]
        )
        seconds = HistogramMetricFamily(
            "cloister_request_seconds", "Time from the whole request's arrival to its answer.", labels=_LABELS
        )
        restarts = CounterMetricFamily("cloister_worker_restarts", "Workers replaced.", labels=_LABELS)
        waiting = GaugeMetricFamily("cloister_waiting_requests", "Requests not yet answered.", labels=_LABELS)
        workers = GaugeMetricFamily("cloister_workers", "Workers that are ready.", labels=_LABELS)
        for stats in self._models:
            labels = [stats.model, stats.version]
            for status_class, value in enumerate(stats.by_class):
                if status_class >= 2:
                    requests.add_metric([*labels, f"{status_class}xx"], value)
            cumulated, total = [], 0
            for bound, value in zip((*BUCKETS_S, float("inf")), stats.buckets, strict=True):
                total += value
                cumulated.append(("+Inf" if bound == float("inf") else repr(bound), total))
            seconds.add_metric(labels, cumulated, stats.seconds)
            restarts.add_metric(labels, stats.restarts)
            waiting.add_metric(labels, stats.waiting)
            workers.add_metric(labels, stats.workers)
        yield from (requests, seconds, restarts, waiting, workers)


def render_metrics(models: Iterable[ModelStats]) -> bytes:
    """Prometheus text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ModelCollector(list(models)))
    return generate_latest(registry)
