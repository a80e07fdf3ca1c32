"""The HTTP surface without sockets and workers: routes, ways in, limits, sealed requests."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloister.errors import MalformedInput, ModelFailed
from cloister.ohttp import bhttp
from cloister.ohttp.capsule import KeyConfig, seal_request
from cloister.ohttp.gateway import Gateway
from cloister.ohttp.replay import render_date
from cloister.serve.frames import Fault
from cloister.serve.http import paths
from cloister.serve.http.api import Api
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.evidence import parse_nonce
from cloister.serve.http.gateway import KEY_PROBLEM, GatewayEndpoint
from cloister.serve.http.messages import Request, Response
from cloister.serve.http.predictions import check_answer, render_answer
from cloister.serve.http.ways import Way
from cloister.serve.jobs import Answer
from cloister.serve.registry import Registry
from cloister.settings import ServeSettings

LIMIT = 1000


def make_api() -> Api:
    settings = ServeSettings(max_request_bytes=LIMIT)
    return Api(Registry(settings), settings)


def ask(api: Api, path: str, *, method: str = "GET", way: Way = Way.TLS, content: bytes = b"") -> Response:
    return asyncio.run(api.handle(Request(method, path, b"", [], content), way))


class Exchange:
    """One ASGI exchange: what the application was given, and what it sent."""

    def __init__(self, app: AsgiApp, path: str, chunks: Sequence[bytes], headers: Any = ()) -> None:
        self.sent: list[Any] = []
        self.received = 0
        self._chunks = list(chunks)
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": list(headers),
        }
        asyncio.run(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        self.received += 1
        if not self._chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._chunks.pop(0), "more_body": bool(self._chunks)}

    async def _send(self, event: Any) -> None:
        self.sent.append(event)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status


@pytest.mark.parametrize(
    ("path", "method", "status", "kind"),
    [
        ("/nothing", "GET", 404, "ResourceNotFoundException"),
        ("/predictions/", "POST", 404, "ResourceNotFoundException"),
        ("/predictions/a/1/2", "POST", 404, "ModelNotFoundException"),
        ("/predictions/a", "GET", 404, "ModelNotFoundException"),
        ("/predictions/a", "HEAD", 404, "ModelNotFoundException"),
        ("/predictions/a", "POST", 404, "ModelNotFoundException"),
        ("/models", "POST", 405, "MethodNotAllowedException"),
        ("/", "GET", 405, "MethodNotAllowedException"),
        ("/wfpredict/a", "POST", 501, "NotImplementedException"),
        (paths.EVIDENCE, "GET", 404, "ResourceNotFoundException"),
    ],
)
def test_errors_in_torchserves_form(path: str, method: str, status: int, kind: str) -> None:
    """Each error has its status and TorchServe's three members."""
    response = ask(make_api(), path, method=method)
    document = json.loads(response.content)
    assert (response.status, document["code"], document["type"]) == (status, status, kind)
    assert set(document) == {"code", "type", "message"}


@pytest.mark.parametrize("path", ["/predictions/a", "/models", "/metrics", "/nothing", "/PING", "//ping"])
def test_plain_http_is_refused(path: str) -> None:
    """A protected server's plain port refuses all but the three public paths, before it reads a body."""
    exchange = Exchange(AsgiApp(make_api(), Way.PLAIN, body_timeout_s=1), path, [b"secret"])
    assert exchange.status == 403
    document = json.loads(exchange.sent[1]["body"])
    assert document["type"] == "PlainHttpRefused"
    assert "https" in document["message"]
    assert ask(make_api(), "/ping", way=Way.PLAIN).status == 200


def test_declared_length_over_limit() -> None:
    """A body that announces too much is refused without being asked for, and the connection closes."""
    app = AsgiApp(make_api(), Way.TLS, body_timeout_s=1)
    exchange = Exchange(app, "/predictions/a", [b"x"], [(b"content-length", b"%d" % (LIMIT + 1))])
    assert exchange.status == 413
    assert (b"connection", b"close") in exchange.sent[0]["headers"]


def test_real_length_over_limit() -> None:
    """A body without a length is cut off as soon as it is over the limit; at the limit it passes."""
    app = AsgiApp(make_api(), Way.TLS, body_timeout_s=1)
    assert Exchange(app, "/predictions/a", [b"x" * 600, b"x" * 401, b"x"]).status == 413
    assert Exchange(app, "/predictions/a", [b"x" * 600, b"x" * 400]).status == 404


def test_caller_that_goes_away() -> None:
    """A caller who leaves in the middle of a body gets no answer and causes no error."""
    app = AsgiApp(make_api(), Way.TLS, body_timeout_s=1)
    exchange = Exchange.__new__(Exchange)
    exchange.sent, exchange.received, exchange._chunks = [], 0, []
    scope = {"type": "http", "method": "POST", "path": "/ping", "query_string": b"", "headers": []}
    asyncio.run(app(scope, exchange._receive, exchange._send))
    assert exchange.sent == []


@pytest.mark.parametrize("size", [16, 17, 32, 64])
def test_nonce(size: int) -> None:
    """A base64url nonce of 16 to 64 bytes is taken with and without padding."""
    nonce = bytes([255 - i for i in range(size)])
    text = base64.urlsafe_b64encode(nonce)
    assert parse_nonce(b"nonce=" + text.replace(b"=", b"%3D")) == nonce
    assert parse_nonce(b"nonce=" + text.rstrip(b"=")) == nonce


@pytest.mark.parametrize(
    "query",
    [b"", b"nonce=", b"nonce=" + b"A" * 20, b"nonce=" + b"A" * 88, b"nonce=A+/" + b"A" * 30, b"nonce=\xff",
     b"nonce=" + b"A" * 22 + b"&nonce=" + b"A" * 22, b"nonce=" + b"A" * 25],
)  # fmt: skip
def test_bad_nonce(query: bytes) -> None:
    """A missing, short, long, doubled or wrongly written nonce is malformed."""
    with pytest.raises(MalformedInput):
        parse_nonce(query)


def sealed_exchange(
    inner: bytes, *, now: datetime | None = None, times: int = 1
) -> tuple[list[Response], bhttp.Response | None]:
    gateway = Gateway.generate()
    api = make_api()
    endpoint = GatewayEndpoint(gateway, api.handle_sealed, clock=lambda: now or datetime.now(UTC))
    capsule, opener = seal_request(KeyConfig.parse(gateway.key_config), inner)
    request = Request("POST", paths.GATEWAY, b"", [(b"content-type", b"message/ohttp-req")], capsule)
    responses = [asyncio.run(endpoint.answer(request)) for _ in range(times)]
    opened = None
    if responses[0].headers[0][1] == b"message/ohttp-res":
        opened = bhttp.parse_response(opener.open(responses[0].content))
    return responses, opened


def inner_request(path: bytes, now: datetime | None = None, method: bytes = b"GET") -> bytes:
    date = ((b"date", render_date(now or datetime.now(UTC))),)
    return bhttp.render_request(bhttp.Request(method, b"https", b"host", path, date))


def test_sealed_request_is_answered_sealed() -> None:
    """A sealed request is answered like any other, under its own seal."""
    responses, opened = sealed_exchange(inner_request(b"/ping?x=1"))
    assert responses[0].status == 200
    assert opened is not None
    assert (opened.status, json.loads(opened.content)) == (200, {"status": "Healthy"})


def test_sealed_errors_stay_sealed() -> None:
    """What fails inside is answered inside: unknown paths, a nested gateway, garbage, an old date."""
    for inner, status in (
        (inner_request(b"/nothing"), 404),
        (inner_request(paths.GATEWAY.encode()), 404),
        (b"\xff", 400),
        (inner_request(b"/ping", datetime.now(UTC) - timedelta(hours=1)), 400),
    ):
        responses, opened = sealed_exchange(inner)
        assert responses[0].status == 200
        assert opened is not None
        assert opened.status == status


def test_replayed_capsule() -> None:
    """The same sealed request is not answered twice."""
    responses, _ = sealed_exchange(inner_request(b"/ping"), times=2)
    assert [response.status for response in responses] == [200, 409]


@pytest.mark.parametrize(
    ("content", "kind", "status", "problem"),
    [
        (b"x", b"text/plain", 415, "about:blank"),
        (b"", b"message/ohttp-req", 400, KEY_PROBLEM),
        (bytes(100), b"message/ohttp-req", 400, KEY_PROBLEM),
    ],
)
def test_gateway_problems(content: bytes, kind: bytes, status: int, problem: str) -> None:
    """What cannot be opened is a problem document in the clear."""
    endpoint = GatewayEndpoint(Gateway.generate(), make_api().handle_sealed)
    request = Request("POST", paths.GATEWAY, b"", [(b"content-type", kind)], content)
    response = asyncio.run(endpoint.answer(request))
    assert response.status == status
    assert response.headers[0] == (b"content-type", b"application/problem+json")
    assert json.loads(response.content)["type"] == problem


def test_gateway_keys() -> None:
    """GET gives the key configurations under their media type."""
    gateway = Gateway.generate()
    endpoint = GatewayEndpoint(gateway, make_api().handle_sealed)
    response = asyncio.run(endpoint.answer(Request("GET", paths.GATEWAY, b"", [], b"")))
    assert response.headers[0] == (b"content-type", b"application/ohttp-keys")
    assert response.content == gateway.key_configs


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (99, []),
        (101, []),
        (600, []),
        (200, [(b"content-length", b"5")]),
        (200, [(b"transfer-encoding", b"chunked")]),
        (200, [(b"x", b"a\r\nset-cookie: b")]),
        (200, [(b"x y", b"a")]),
        (200, [(b"X", b"a")]),
        (200, [(b"x", b"a")] * 101),
        (200, [(b"x", b"a" * 8000)] * 5),
    ],
)
def test_a_handler_cannot_break_http(status: int, headers: Any) -> None:
    """Statuses and headers that a handler may not set become an error, not a broken response."""
    with pytest.raises(ModelFailed):
        check_answer(status, headers)
    refused = render_answer(Answer(status, headers, b""))
    assert (refused.status, json.loads(refused.content)["type"]) == (503, "InternalServerException")


def test_a_worker_cannot_speak_in_a_fault() -> None:
    """Only identifiers and hexadecimal digits of a fault reach the caller."""
    fault = Fault("Prediction failed", "Evil\r\nError", "zz zz", "secret")
    response = render_answer(Answer(599, [], b"", fault), show_text=False)
    assert json.loads(response.content)["message"] == "Prediction failed"
    assert response.status == 503
