"""OpenTelemetry traces of predictions: how long a request waited, and how long its worker took.

Off costs nothing: ``Tracer.attach`` puts itself before a supervisor's ``submit``, and without a tracer nobody
does. On, a request that is not sampled costs a look at its headers. A span says when, how long, which model,
which status and how many bytes. It has no body, no header, no query, no address: of what a caller sent only
the identifiers of a W3C ``traceparent`` get into it. What comes to no model has a span with its status alone.

Source: W3C Trace Context, section 3.2 (traceparent); OpenTelemetry specification 1.4x, "Trace SDK".
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cloister.errors import ConfigError, MissingDependencyError, Overloaded
from cloister.serve.frames import Headers
from cloister.serve.jobs import Answer, Job
from cloister.serve.log import log
from cloister.serve.seat import Seat

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from cloister.serve.supervisor import Supervisor

TRACES_PATH = "/v1/traces"
MAX_ASKED_PER_S = 100
"""So many requests in a second are traced because their caller asks for it; the others at random."""
EXPORT_TIMEOUT_S = 5.0
COMPLAIN_EVERY_S = 60.0
_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")

Parent = tuple[int, int, bool]
"""Trace, span, and whether the caller has it sampled."""


def endpoint_url(text: str) -> str:
    """Where OTLP over HTTP is sent to: https anywhere, or http on loopback.

    Raises:
        ConfigError: neither.
    """
    try:
        where = urlsplit(text)
        safe = where.scheme == "https" or (where.scheme == "http" and where.hostname in _LOOPBACK)
    except ValueError:
        safe = False
    if not safe or not where.hostname or where.username or where.query or where.fragment:
        raise ConfigError(
            "serve.otel_endpoint: expected https://..., or http:// to loopback, without user or query",
            hint="a collector beside the server is at http://127.0.0.1:4318",
        )
    return text.rstrip("/") + TRACES_PATH if where.path in ("", "/") else text


def read_traceparent(headers: Headers) -> Parent | None:
    """The caller's span, if it names one rightly and once."""
    found: Parent | None = None
    for name, value in headers:
        if name == b"traceparent":
            match = _TRACEPARENT.fullmatch(value.strip())
            if found is not None or match is None or (value.startswith(b"00") and len(value.strip()) > 55):
                return None
            found = int(match[1], 16), int(match[2], 16), bool(int(match[3], 16) & 1)
    return found if found is not None and found[0] and found[1] else None


def otlp_exporter(endpoint: str, environ: Mapping[str, str], *, protected: bool) -> SpanProcessor:
    """Sends spans in batches, from a thread of its own; what cannot be sent is dropped.

    Raises:
        ConfigError: protected, and the environment would have a say in where spans go.
        MissingDependencyError: the extra is not installed.
    """
    if protected and (found := sorted(name for name in environ if name.startswith("OTEL_"))):
        raise ConfigError(
            f"protected mode refuses to start with {', '.join(found)} set: nothing measures them",
            hint="serve.otel_endpoint and serve.otel_sample are all there is to set",
        )
    try:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependencyError(
            "serve.otel_endpoint needs OpenTelemetry", hint="pip install 'cloister[otel]'"
        ) from error
    logger = logging.getLogger("opentelemetry")
    logger.handlers, logger.propagate = [_Complaints()], False
    session = requests.Session()
    session.max_redirects = 0
    session.trust_env = not protected  # proxies and certificate files by environment
    return BatchSpanProcessor(
        OTLPSpanExporter(endpoint=endpoint_url(endpoint), session=session, timeout=EXPORT_TIMEOUT_S)
    )


class _Complaints(logging.Handler):
    """OpenTelemetry's own log as ours: one line a minute, without the text, which may quote a collector."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + COMPLAIN_EVERY_S
            log.warning("traces could not be sent", source=record.name)


class Tracer:
    """Makes spans of some requests.

    Args:
        sample: part of the requests of callers who say nothing of it. A caller who sends a traceparent has
            decided for its request, up to ``MAX_ASKED_PER_S``.
    """

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        sample: float,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        if not 0 <= sample <= 1:
            raise ConfigError(f"serve.otel_sample: expected 0 to 1, found {sample:g}")
        self._api = trace
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # it has been decided here
            resource=Resource({"service.name": "cloister"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("cloister.serve")
        self._sample = sample
        self._chance = chance
        self._clock = clock
        self._second, self._asked = 0, 0

    def close(self) -> None:
        """Send what there is, and end the thread. Blocks for at most about ``EXPORT_TIMEOUT_S``."""
        self._provider.shutdown()

    def attach(self, supervisor: Supervisor) -> None:
        """Trace requests of one model from now on, whichever way they come."""
        submit = supervisor.submit

        def traced(job: Job) -> None:
            parent = read_traceparent(job.headers)
            if not self._wanted(parent):
                submit(job)
                return
            self._watch(job, supervisor, parent)
            try:
                submit(job)
            except Overloaded:
                self._note(job, supervisor, parent, 503, 0)
                raise

        supervisor.submit = traced  # type: ignore[method-assign]

    def note_refused(self, headers: Headers, status: int, started: float) -> None:
        """Make the span of a request that came to no model; it says when, how long and with what status.

        Args:
            started: by this tracer's clock.
        """
        parent = read_traceparent(headers)
        if not self._wanted(parent):
            return
        try:
            end = time.time_ns()
            begun = end - max(0, int((self._clock() - started) * 1e9))
            self._start({"http.response.status_code": status}, parent, begun).end(end)
        except Exception as error:  # noqa: BLE001 (as in _note)
            log.warning("a request could not be traced", exception=type(error).__name__)

    def _wanted(self, parent: Parent | None) -> bool:
        if parent is None:
            return self._chance() < self._sample
        if not parent[2]:
            return False
        second = int(self._clock())
        if second != self._second:
            self._second, self._asked = second, 0
        self._asked += 1
        return self._asked <= MAX_ASKED_PER_S

    def _watch(self, job: Job, supervisor: Supervisor, parent: Parent | None) -> None:
        deliver = job.deliver
        sent = 0

        def noted(job: Job, answer: Answer) -> None:
            nonlocal sent
            sent += len(answer.body)
            deliver(job, answer)
            if not answer.more:
                self._note(job, supervisor, parent, answer.status, sent)

        job.deliver = noted

    def _note(self, job: Job, supervisor: Supervisor, parent: Parent | None, status: int, sent: int) -> None:
        """Make the spans of a request that has just been answered; a fault in that is not the request's."""
        try:
            self._make_spans(job, supervisor, parent, status, sent)
        except Exception as error:  # noqa: BLE001 (the answer has gone out; nobody else must suffer)
            log.warning("a request could not be traced", exception=type(error).__name__)

    def _make_spans(
        self, job: Job, supervisor: Supervisor, parent: Parent | None, status: int, sent: int
    ) -> None:
        now, end = self._clock(), time.time_ns()

        def at(moment: float) -> int:
            return end - max(0, int((now - moment) * 1e9)) if moment else end

        stats = supervisor.stats
        attributes: dict[str, Any] = {
            "cloister.model": stats.model,
            "cloister.model_version": stats.version,
            "http.response.status_code": status,
            "http.request.body.size": len(job.body),
            "http.response.body.size": sent,
        }
        if job.attempts:
            attributes["cloister.attempts"] = job.attempts + 1
        request = self._start(attributes, parent, at(job.started))
        inside = self._api.set_span_in_context(request)
        given = job.given or now
        self._part("queue", inside, at(job.started), at(given))
        if job.given:
            batch = self._api.set_span_in_context(self._part("batch", inside, at(given), end))
            if isinstance(job.owner, Seat) and job.owner.batch_s > 0:
                # The handler's mean time for the batches of the frame that brought the answer.
                begun = max(given, now - job.owner.batch_s)
                self._part("inference", batch, at(begun), end)
        request.end(end)

    def _start(self, attributes: dict[str, Any], parent: Parent | None, begun: int) -> Any:
        """The span of a whole request, not yet ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            "request",
            context=self._context(parent),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=begun,
        )
        if attributes["http.response.status_code"] >= 500:
            span.set_status(Status(StatusCode.ERROR))
        return span

    def _part(self, name: str, context: Any, start: int, end: int) -> Any:
        span = self._tracer.start_span(name, context=context, start_time=start)
        span.end(max(start, end))
        return span

    def _context(self, parent: Parent | None) -> Any:
        from opentelemetry.context import Context

        if parent is None:
            return Context()
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)
        span = self._api.SpanContext(parent[0], parent[1], is_remote=True, trace_flags=flags)
        return self._api.set_span_in_context(self._api.NonRecordingSpan(span), Context())
