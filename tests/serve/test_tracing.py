"""OpenTelemetry traces: what is in them, whom they continue, when there are any, and where they may go."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloister.errors import ConfigError, Overloaded
from cloister.serve.tracing import MAX_ASKED_PER_S, Tracer, endpoint_url, otlp_exporter, read_traceparent
from tests.processes.server import Server, free_port, pack
from tests.serve.engine import JSON, Engine, engine

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "canary-7d1f"
ECHO = "def handle(data, context):\n    return data and [str(item) for item in data]\n"


def traced(e: Engine, **options: Any) -> InMemorySpanExporter:
    """Trace an engine from now on."""
    found = InMemorySpanExporter()
    Tracer(SimpleSpanProcessor(found), **{"sample": 1.0, **options}).attach(e.supervisor)
    return found


def parent(flags: str = "01", span: str = SPAN) -> list[tuple[bytes, bytes]]:
    """Headers with a traceparent."""
    return [*JSON, (b"traceparent", f"00-{TRACE}-{span}-{flags}".encode())]


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP receiver on loopback: its address, and the bodies that it got."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(self.path.encode() + b"\n" + body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans_of_a_request() -> None:
    """A request is four spans, one inside the other, with model, version, status and lengths."""

    async def run() -> None:
        async with engine() as e:
            found = traced(e)
            await e.ask("sleep", s=0.05)
            spans = {span.name: span for span in found.get_finished_spans()}
        assert set(spans) == {"request", "queue", "batch", "inference"}
        request, batch, inference = spans["request"], spans["batch"], spans["inference"]
        attributes = dict(request.attributes or {})
        assert attributes.pop("http.response.body.size") > 10  # type: ignore[operator]
        assert attributes == {
            "cloister.model": "m",
            "cloister.model_version": "1.0",
            "http.response.status_code": 200,
            "http.request.body.size": len(b'{"do": "sleep", "s": 0.05}'),
        }
        assert request.parent is None
        for child, above in ((spans["queue"], request), (batch, request), (inference, batch)):
            assert child.parent is not None
            assert child.parent.span_id == above.context.span_id
            assert above.start_time <= child.start_time <= child.end_time <= above.end_time  # type: ignore[operator]
        assert 0.05e9 <= inference.end_time - inference.start_time < 1e9  # type: ignore[operator]
        assert spans["queue"].end_time == batch.start_time

    asyncio.run(run())


def test_a_callers_trace_is_continued() -> None:
    """A traceparent names the trace and the parent; what it says of sampling is done."""

    async def run() -> None:
        async with engine() as e:
            found = traced(e, sample=0.0)
            body = b'{"do": "echo"}'
            await e.supervisor.ask(JSON, b"", body)
            await e.supervisor.ask(parent("00"), b"", body)
            assert found.get_finished_spans() == ()
            await e.supervisor.ask(parent("01"), b"", body)
            request = next(span for span in found.get_finished_spans() if span.name == "request")
            assert f"{request.context.trace_id:032x}" == TRACE
            assert request.parent is not None
            assert f"{request.parent.span_id:016x}" == SPAN

    asyncio.run(run())


def test_sampling_is_bounded() -> None:
    """Callers decide for so many requests a second, and the sample for those that say nothing."""
    tracer = Tracer(
        SimpleSpanProcessor(InMemorySpanExporter()),
        sample=0.25,
        chance=iter([0.2, 0.3]).__next__,
        clock=lambda: 7.0,
    )
    assert [tracer._wanted(None) for _ in range(2)] == [True, False]
    asked = [tracer._wanted((1, 1, True)) for _ in range(MAX_ASKED_PER_S + 10)]
    assert sum(asked) == MAX_ASKED_PER_S
    with pytest.raises(ConfigError, match="otel_sample"):
        Tracer(SimpleSpanProcessor(InMemorySpanExporter()), sample=1.5)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-0x",
    ],
)
def test_a_broken_traceparent_is_none(value: str) -> None:
    """What W3C calls invalid begins a trace of our own, as no header does."""
    assert read_traceparent([(b"traceparent", value.encode())]) is None
    twice = parent() + parent()
    assert read_traceparent(twice) is None
    assert read_traceparent([(b"traceparent", f"01-{TRACE}-{SPAN}-03-more".encode())]) is not None


def test_refusals_and_streams() -> None:
    """A refused request has its span; one that is answered in parts has one with all their bytes."""

    async def run() -> None:
        async with engine() as e:
            found = traced(e)
            parts = [part async for part in e.supervisor.stream(JSON, b"", b'{"do": "parts", "n": 3}')]
            assert len(parts) == 4
            request = next(span for span in found.get_finished_spans() if span.name == "request")
            assert request.attributes is not None
            assert request.attributes["http.response.body.size"] == len("0,1,2,end")
            found.clear()
            e.supervisor._stopping = True
            with pytest.raises(Overloaded):
                await e.ask("echo")
            request = next(span for span in found.get_finished_spans() if span.name == "request")
            assert request.attributes is not None
            assert request.attributes["http.response.status_code"] == 503

    asyncio.run(run())


def test_what_comes_to_no_model(tmp_path: Path) -> None:
    """A refusal is one span with its status, in its caller's trace, and nothing of what was asked."""
    pack(tmp_path, "echo", ECHO)
    with collector() as (address, bodies):
        flags = {
            "serve.mode": "open",
            "serve.model_store": str(tmp_path),
            "serve.http_port": free_port(),
            "serve.otel_endpoint": address,
            "serve.otel_sample": 0.0,
            "serve.max_request_bytes": 1000,
        }
        with Server(flags) as server:
            server.wait_ready()
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-private": CANARY}
            assert server.predict(CANARY, content=CANARY, headers=headers).status_code == 404
            assert server.predict("echo", content=CANARY * 1000, headers=headers).status_code == 413
            unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
            assert server.predict("none", content="x", headers=unsampled).status_code == 404
            assert server.predict("none", content="x").status_code == 404
            assert server.stop(signal.SIGTERM) == 0
    body = b"".join(bodies).partition(b"\n")[2]
    assert CANARY.encode() not in body
    spans = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    assert [span.name for span in spans] == ["request", "request"]
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in spans} == {(TRACE, SPAN)}
    found = [{pair.key: pair.value.int_value for pair in span.attributes} for span in spans]
    assert found == [{"http.response.status_code": 404}, {"http.response.status_code": 413}]


def test_the_span_of_a_refusal() -> None:
    """It has the status and the time that passed; only the server's own faults are errors."""
    found = InMemorySpanExporter()
    tracer = Tracer(SimpleSpanProcessor(found), sample=1.0)
    for status in (401, 429, 503):
        tracer.note_refused([], status, tracer._clock() - 0.25)
    spans = found.get_finished_spans()
    assert [span.attributes for span in spans] == [
        {"http.response.status_code": status} for status in (401, 429, 503)
    ]
    assert all(0.25e9 <= span.end_time - span.start_time < 1e9 for span in spans)  # type: ignore[operator]
    assert [span.status.is_ok for span in spans] == [True, True, False]


@pytest.mark.parametrize(
    "address",
    [
        "http://192.0.2.1:4318",
        "http://localhost.example",
        "https://a:b@c",
        "ftp://127.0.0.1",
        "x",
        "https://",
    ],
)
def test_spans_go_to_loopback_or_https(address: str) -> None:
    """Spans go in the clear to this machine only."""
    with pytest.raises(ConfigError, match="otel_endpoint"):
        endpoint_url(address)
    assert endpoint_url("http://127.0.0.1:4318") == "http://127.0.0.1:4318/v1/traces"
    assert endpoint_url("https://c.example/x/v1/traces") == "https://c.example/x/v1/traces"


def test_the_environment_has_no_say_in_protected_mode() -> None:
    """A protected server does not start with variables that could send its spans elsewhere."""
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_HEADERS"):
        otlp_exporter("https://c.example", {"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}, protected=True)


def test_a_server_sends_spans_without_content(tmp_path: Path) -> None:
    """A real server's spans reach a real receiver by its end, and nothing that a caller sent is in them."""
    pack(tmp_path, "echo", ECHO)
    with collector() as (address, bodies):
        flags = {
            "serve.mode": "open",
            "serve.model_store": str(tmp_path),
            "serve.http_port": free_port(),
            "serve.otel_endpoint": address,
        }
        with Server(flags) as server:
            server.wait_ready()
            headers = {
                "traceparent": f"00-{TRACE}-{SPAN}-01",
                "tracestate": f"a={CANARY}",
                "baggage": f"b={CANARY}",
                "x-private": CANARY,
                "user-agent": CANARY,
                "authorization": f"Bearer {CANARY}",
            }
            answer = server.predict("echo", content=CANARY, headers=headers, params={"q": CANARY})
            assert answer.status_code == 200
            assert CANARY in answer.text
            assert server.stop(signal.SIGTERM) == 0
    path, _, body = b"".join(bodies).partition(b"\n")
    assert path == b"/v1/traces"
    assert CANARY.encode() not in body
    message = ExportTraceServiceRequest.FromString(body)
    resource = message.resource_spans[0]
    spans = resource.scope_spans[0].spans
    assert sorted(span.name for span in spans) == ["batch", "inference", "queue", "request"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert [pair.key for pair in resource.resource.attributes] == ["service.name"]
    assert os.environ.get("HOSTNAME", "no-host").encode() not in body


def test_a_dead_collector_costs_nothing(tmp_path: Path) -> None:
    """With nobody at the endpoint, requests are answered, one line says so, and the server ends in time."""
    pack(tmp_path, "echo", ECHO)
    flags = {
        "serve.mode": "open",
        "serve.model_store": str(tmp_path),
        "serve.http_port": free_port(),
        "serve.otel_endpoint": f"http://127.0.0.1:{free_port()}",
        "serve.otel_sample": 1.0,
    }
    with Server(flags) as server:
        server.wait_ready()
        assert server.predict("echo", content="x").status_code == 200
        assert server.stop(signal.SIGTERM) == 0
        assert server.stderr.count("traces could not be sent") == 1
        assert "Traceback" not in server.stderr
