"""Counters of one model: plain numbers on the request path; ``exposition`` makes text of them when asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from cloister.serve.faults import FaultLog
from cloister.serve.handler_metrics import HandlerMetrics

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """How long something took, by upper bounds of ``BUCKETS_S``."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Note one duration, or several equal ones."""
        self.buckets[bisect_left(BUCKETS_S, seconds)] += times
        self.seconds += seconds * times

    def observe_all(self, durations: Sequence[float]) -> None:
        """Note several durations: one call for a frame of requests."""
        buckets = self.buckets
        for seconds in durations:
            buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += sum(durations)

    @property
    def count(self) -> int:
        return sum(self.buckets)


class ModelStats:
    """What one version of a model has done since its start."""

    __slots__ = (
        "batch",
        "by_class",
        "crypto",
        "expired",
        "faults",
        "inference",
        "measured",
        "model",
        "overloaded",
        "queue",
        "request",
        "restarts",
        "retried",
        "version",
        "waiting",
        "workers",
    )

    def __init__(self, model: str, version: str) -> None:
        self.model = model
        self.version = version
        self.by_class = [0, 0, 0, 0, 0, 0]
        self.request = Histogram()
        """From the submission of a request to the last part of its answer."""
        self.queue = Histogram()
        """From the submission of a request to its hand-over to a worker."""
        self.batch = Histogram()
        """From the hand-over of a request to its answer."""
        self.inference = Histogram()
        """In the handler, for each of its calls."""
        self.crypto = Histogram()
        """Opening and sealing of a sealed request; whoever does that notes it here."""
        self.measured = HandlerMetrics()
        """What the handler measures itself; open mode only."""
        self.faults = FaultLog(model, version)
        """Tells the log which of its failures is which."""
        self.restarts = 0
        self.retried = 0
        """Requests that were run again because their worker ended."""
        self.expired = 0
        """Requests whose time was out before a worker was free."""
        self.overloaded = 0
        """Requests refused because the queue was full."""
        self.waiting = 0
        self.workers = 0

    def count(self, status: int, seconds: float) -> None:
        """Note one answered request. The supervisor does it for every way in."""
        self.by_class[status // 100 if 100 <= status < 600 else 5] += 1
        self.request.observe(seconds)
