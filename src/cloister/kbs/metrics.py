"""Counters of one broker: plain integers on the request path, Prometheus text only when somebody asks.

Labels are steps of the protocol and error variants: never a resource, a caller, or a value of a request.
They are served on a port of their own (``keys.metrics_port``), because that port needs no credential.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector, CollectorRegistry

from cloister.errors import ConfigError
from cloister.kbs.journal import Journal

STEPS = ("auth", "attest", "resource", "admin", "other")
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class BrokerMetrics(Collector):
    """What a broker has done since its start; counted in the event loop's thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._answers: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[str] = Counter()
        self._buckets = {step: [0] * (len(BUCKETS_S) + 1) for step in STEPS}
        self._seconds = dict.fromkeys(STEPS, 0.0)
        self.throttled = 0
        """Requests that were answered 429."""

    def count(self, step: str, status: int, began: float) -> None:
        """Note one answered request; ``began`` is ``time.monotonic()`` at its arrival."""
        took = time.monotonic() - began
        self._answers[step, f"{status // 100}xx"] += 1
        self._buckets[step][bisect_left(BUCKETS_S, took)] += 1
        self._seconds[step] += took

    def refused(self, variant: str) -> None:
        """Note one refusal by its error variant."""
        self._refused[variant] += 1

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        answers = CounterMetricFamily(
            "cloister_broker_requests",
            "Requests answered, by step and class of HTTP status.",
            labels=["step", "status"],
        )
        for (step, status), value in sorted(self._answers.copy().items()):
            answers.add_metric([step, status], value)
        refused = CounterMetricFamily(
            "cloister_broker_refusals",
            "Requests refused, by the protocol's error variant.",
            labels=["variant"],
        )
        for variant, value in sorted(self._refused.copy().items()):
            refused.add_metric([variant], value)
        seconds = HistogramMetricFamily(
            "cloister_broker_request_seconds", "Time from a request's head to its answer.", labels=["step"]
        )
        for step in STEPS:
            cumulated, total = [], 0
            for bound, value in zip((*BUCKETS_S, float("inf")), self._buckets[step], strict=True):
                total += value
                cumulated.append(("+Inf" if bound == float("inf") else repr(bound), total))
            seconds.add_metric([step], cumulated, self._seconds[step])
        yield from (answers, refused, seconds)
        journal = self._journal
        for name, about, number in (
            ("cloister_broker_throttled", "Requests over the rate limit.", self.throttled),
            ("cloister_broker_audit_entries", "Audit entries of releases and refusals.", journal.entries),
            ("cloister_broker_audit_commits", "Transactions that wrote them.", journal.batches),
            ("cloister_broker_audit_commit_seconds", "Time that these took.", journal.seconds),
        ):
            yield CounterMetricFamily(name, about, value=number)


class MetricsPort:
    """Serves metrics over plain HTTP in a thread of its own.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(self, metrics: BrokerMetrics, host: str, port: int) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        self._server: WSGIServer
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
