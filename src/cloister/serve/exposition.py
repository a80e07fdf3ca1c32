"""Prometheus text of a server's counters: TorchServe's names first, then our own.

TorchServe's lines look as its Java library wrote them, with a comma after the last label, because people
match them with expressions (its own request collection does). Values are totals, and means since the last
reading; nothing is computed while requests are served.

Source: pytorch/serve 0.12, ts/configs/metrics.yaml; Prometheus text format 0.0.4.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from cloister.serve.handler_metrics import BOUNDS, HandlerMetrics
from cloister.serve.machine import Machine
from cloister.serve.stats import BUCKETS_S, Histogram, ModelStats

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Labels = Sequence[tuple[str, str]]
_TAKEN = frozenset(
    ("Requests2XX", "Requests4XX", "Requests5XX", "QueueTime", "WorkerThreadTime", "WorkerLoadTime")
)
"""Names that a handler's own metric cannot have; neither can it begin with ``cloister_`` or ``ts_``."""
_STAGES = (
    ("request", "cloister_request_seconds", "From a whole request's arrival to the end of its answer."),
    ("queue", "cloister_queue_seconds", "From a request's arrival to its hand-over to a worker."),
    ("batch", "cloister_batch_seconds", "From a request's hand-over to its answer."),
    ("inference", "cloister_inference_seconds", "In the handler, for each of its calls."),
    ("crypto", "cloister_crypto_seconds", "Opening and sealing of a sealed request."),
)
_COUNTERS = (
    ("restarts", "cloister_worker_restarts_total", "Workers replaced."),
    ("retried", "cloister_retried_requests_total", "Requests run again because their worker ended."),
    ("expired", "cloister_expired_requests_total", "Requests whose time was out before a worker was free."),
    ("overloaded", "cloister_overloaded_requests_total", "Requests refused because the queue was full."),
)
_GAUGES = (
    ("waiting", "cloister_waiting_requests", "Requests not yet answered."),
    ("workers", "cloister_workers", "Workers that are ready."),
)


class Page:
    """Text that is being written: families in order, each with its samples."""

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = names
        self._lines: list[str] = []

    def family(self, name: str, kind: str, about: str) -> bool:
        """Begin a family; False if it was not asked for."""
        samples = (name, f"{name}_bucket", f"{name}_count", f"{name}_sum", name.removesuffix("_total"))
        if self._names and not any(sample in self._names for sample in samples):
            return False
        self._lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        return True

    def sample(self, name: str, labels: Labels, value: float) -> None:
        """One line of the family that was begun last."""
        shown = "".join(f'{key}="{_escape(text)}",' for key, text in labels)
        self._lines.append(f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}")

    def histogram(
        self, name: str, labels: Labels, bounds: Sequence[float], buckets: Sequence[int], total: float
    ) -> None:
        """The lines of one histogram."""
        count = 0
        for bound, value in zip((*bounds, float("inf")), buckets, strict=True):
            count += value
            self.sample(
                f"{name}_bucket", (*labels, ("le", "+Inf" if bound == float("inf") else repr(bound))), count
            )
        self.sample(f"{name}_count", labels, count)
        self.sample(f"{name}_sum", labels, total)

    def render(self) -> bytes:
        """All of it."""
        return ("\n".join(self._lines) + "\n").encode() if self._lines else b""


class Exposition:
    """Renders the metrics of one server.

    Args:
        responses: answers by class of status, of every way in and of models that are gone too.
        loads: each worker by TorchServe's name for it, with how long its model took to load.
        is_default: whether a version answers where none is named. TorchServe labels requests with the version
            that they name, or ``default``; counted here is each version, so its default one gets that label.
        refused: sealed requests that were not opened, by reason.
    """

    def __init__(
        self,
        models: Callable[[], Iterable[ModelStats]],
        responses: Callable[[], Sequence[int]],
        *,
        loads: Callable[[], Iterable[tuple[str, float]]],
        is_default: Callable[[ModelStats], bool],
        machine: Machine | None,
        refused: Callable[[], Mapping[str, int]] = dict,
        host: str = "",
    ) -> None:
        self._models = models
        self._responses = responses
        self._loads = loads
        self._is_default = is_default
        self._machine = machine
        self._refused = refused
        self._host = host or socket.gethostname()
        self._level: Labels = (("Level", "Host"), ("Hostname", self._host))
        self._means: dict[str, tuple[float, int, float]] = {}

    def render(self, names: Collection[str] = ()) -> bytes:
        """Prometheus text; only the families of ``names`` if there are any."""
        models = list(self._models())
        page = Page(names)
        self._write_responses(page)
        self._write_torchserve(page, models)
        self._write_machine(page)
        self._write_own(page, models)
        self._write_handlers(page, models)
        return page.render()

    def _write_responses(self, page: Page) -> None:
        by_class = self._responses()
        for status_class in (2, 4, 5):
            name = f"Requests{status_class}XX"
            if page.family(name, "counter", _about("counter", "Count")):
                page.sample(name, self._level, by_class[status_class])

    def _write_torchserve(self, page: Page, models: Sequence[ModelStats]) -> None:
        values: tuple[tuple[str, str, Callable[[ModelStats], float]], ...] = (
            ("ts_inference_requests_total", "Count", lambda stats: sum(stats.by_class)),
            ("ts_inference_latency_microseconds", "Microseconds", lambda stats: stats.request.seconds * 1e6),
            ("ts_queue_latency_microseconds", "Microseconds", lambda stats: stats.queue.seconds * 1e6),
        )
        for name, unit, value in values:
            if page.family(name, "counter", _about("counter", unit)):
                for stats in models:
                    page.sample(name, self._named(stats), value(stats))
        queue = self._mean("QueueTime", [stats.queue for stats in models])
        batch = self._mean("batch", [stats.batch for stats in models])
        inference = self._mean("inference", [stats.inference for stats in models])
        for name, seconds in (("QueueTime", queue), ("WorkerThreadTime", max(0.0, batch - inference))):
            if page.family(name, "gauge", _about("gauge", "Milliseconds")):
                page.sample(name, self._level, round(seconds * 1e3, 3))

        if page.family("WorkerLoadTime", "gauge", _about("gauge", "Milliseconds")):
            for worker, seconds in self._loads():
                page.sample("WorkerLoadTime", (("WorkerName", worker), *self._level), round(seconds * 1e3))

    def _write_machine(self, page: Page) -> None:
        for name, unit, value in self._machine.read() if self._machine is not None else ():
            if page.family(name, "gauge", _about("gauge", unit)):
                page.sample(name, self._level, value)

    def _write_own(self, page: Page, models: Sequence[ModelStats]) -> None:
        name = "cloister_requests_total"
        if page.family(name, "counter", "Predictions answered, by class of HTTP status."):
            for stats in models:
                for status_class in range(2, 6):
                    labels = (*_own(stats), ("status", f"{status_class}xx"))
                    page.sample(name, labels, stats.by_class[status_class])
        refused = self._refused()
        name = "cloister_sealed_refusals_total"
        if refused and page.family(name, "counter", "Sealed requests that were not opened, by reason."):
            for reason, count in refused.items():
                page.sample(name, (("reason", reason),), count)
        for stage, name, about in _STAGES:
            if page.family(name, "histogram", about):
                for stats in models:
                    histogram: Histogram = getattr(stats, stage)
                    page.histogram(name, _own(stats), BUCKETS_S, histogram.buckets, histogram.seconds)
        for kind, table in (("counter", _COUNTERS), ("gauge", _GAUGES)):
            for field, name, about in table:
                if page.family(name, kind, about):
                    for stats in models:
                        page.sample(name, _own(stats), getattr(stats, field))

    def _write_handlers(self, page: Page, models: Sequence[ModelStats]) -> None:
        """What handlers measured themselves. Equal names of several models make one family."""
        gathered: dict[str, tuple[str, str, list[HandlerMetrics]]] = {}
        for stats in models:
            measured: HandlerMetrics | None = getattr(stats, "measured", None)
            for name, family in measured.families() if measured is not None else ():
                entry = gathered.setdefault(name, (family.kind, family.unit, []))
                if entry[0] == family.kind and measured is not None:
                    entry[2].append(measured)
        for name, (kind, unit, sources) in gathered.items():
            if name.startswith(("cloister_", "ts_", "Requests")) or not page.family(
                name, kind, _about(kind, unit)
            ):
                continue
            for source in sources:
                for labels, series in dict(source.families())[name].series.items():
                    shown = (*labels, ("Hostname", self._host))
                    if kind == "histogram":
                        page.histogram(name, shown, BOUNDS, series.buckets, series.value)
                    else:
                        page.sample(name, shown, series.value)

    def _named(self, stats: ModelStats) -> Labels:
        version = "default" if self._is_default(stats) else stats.version
        return (("model_name", stats.model), ("model_version", version), ("hostname", self._host))

    def _mean(self, name: str, histograms: Sequence[Histogram]) -> float:
        """Mean in seconds since the last reading; the one before if nothing came since."""
        seconds, count = sum(item.seconds for item in histograms), sum(item.count for item in histograms)
        last_seconds, last_count, last = self._means.get(name, (0.0, 0, 0.0))
        if count > last_count:
            last = max(0.0, seconds - last_seconds) / (count - last_count)
        elif count == last_count:
            return last
        self._means[name] = (seconds, count, last)
        return last


def _own(stats: ModelStats) -> Labels:
    return (("model_name", stats.model), ("model_version", stats.version))


def _about(kind: str, unit: str) -> str:
    return f"Torchserve prometheus {kind} metric with unit: {_escape(unit)}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return repr(float(value))
