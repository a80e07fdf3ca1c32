"""Ways around the policy of a protected server, and of an open one: each tried for real, each refused."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import httpx
import pytest

from cloister.ohttp import bhttp
from cloister.ohttp.capsule import parse_key_configs, seal_request
from cloister.ohttp.replay import render_date
from cloister.serve.access.api_keys import make_api_key
from cloister.serve.grpc.messages import message
from tests.processes.server import Server, free_port, pack
from tests.processes.test_identities import Known, bearer, known, second
from tests.serve.grpc.stubs import (
    INFERENCE_SERVICE,
    MANAGEMENT_SERVICE,
    Stub,
    failure,
    management,
    predictions,
)

__all__ = ["known"]

ANSWER = b"canary-answer"
"""Begins every answer of the model."""
ECHO = "def handle(data, context):\n    return data and ['canary-answer' for _ in data]\n"
PATHS = (
    "/predictions/own",
    "//predictions/own",
    "/predictions//own",
    "/predictions/own/",
    "/predictions/own//",
    "/predictions/own/1.0",
    "/predictions/own//1.0",
    "/predictions/%6fwn",
    "/%70redictions/own",
    "/predictions%2fown",
    "/predictions/own%2f1.0",
    "/predictions/own;x=y",
    "/predictions;/own",
    "/predictions/own/..;/own",
    "/predictions/./own",
    "/ping/../predictions/own",
    "/ping/..;/predictions/own",
    "/ping%2f..%2fpredictions%2fown",
    "/.well-known/cloister/evidence/../../../predictions/own",
    "/.well-known/ohttp-gateway/predictions/own",
    "/PREDICTIONS/own",
    "/Predictions/own",
    "/predictions/OWN",
    "/explanations/own",
    "/invocations?model_name=own",
    "/invocations",
    "/models/own/invoke",
    "/own/predict",
    "/own/1.0/predict",
    "/v1/models/own:predict",
    "/v1/models/own:predict:x",
    "/v1/models/own:x:predict",
    "/v2/models/own/infer",
    "/v2/models/own:x/infer",
    "/v2/models/own/versions/1.0/infer",
    "/v2/models//own/infer",
    "/v2/health/../models/own/infer",
    "/v2/health/live/../../models/own/infer",
    "/metrics/../predictions/own",
    "/api-description/../predictions/own",
    "/predictions/own%00",
    "/predictions/own%0d%0aauthorization:%20x",
    "/predictions/own?authorization=Bearer",
)


def exchange(known: Known, raw: bytes) -> bytes:
    """What comes back for these bytes on a connection of their own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", known.ports["https"]), timeout=10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(raw)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return answer


def exchange_all(known: Known, requests: Sequence[bytes]) -> list[bytes]:
    """Each of them at the same time: after a refusal the server keeps the connection for a while."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda raw: exchange(known, raw), requests))


def asked(path: str, *headers: bytes, method: str = "POST", body: bytes = b"x") -> bytes:
    """A request on the wire, whatever it looks like."""
    lines = (f"{method} {path} HTTP/1.1".encode(), b"Host: x", b"Connection: close", *headers)
    return b"\r\n".join((*lines, b"Content-Length: %d" % len(body), b"", body))


def sealed(known: Known, path: str, *headers: tuple[bytes, bytes], **outer: str) -> tuple[int, bytes]:
    """Status and content inside the answer to a sealed POST; outer headers as given."""
    key = parse_key_configs(httpx.get(known.url() + "/.well-known/ohttp-gateway", verify=False).content)[0]
    date = (b"date", render_date(datetime.now(UTC)))
    request = bhttp.Request(b"POST", b"https", b"", path.encode(), (date, *headers), b"x")
    capsule, opener = seal_request(key, bhttp.render_request(request))
    answer = httpx.post(
        known.url() + "/.well-known/ohttp-gateway",
        content=capsule,
        headers={"content-type": "message/ohttp-req", **{k.replace("_", "-"): v for k, v in outer.items()}},
        verify=False,
    )
    inner = bhttp.parse_response(opener.open(answer.content))
    return inner.status, inner.content


@pytest.mark.parametrize("path", PATHS)
def test_paths(known: Known, path: str) -> None:
    """No spelling of a path reaches the model for who may not predict: a stranger, and who may read."""
    for credential in (b"", b"Authorization: Bearer " + second()):
        raw = asked(path, *([credential] if credential else []))
        answer = exchange(known, raw)
        assert ANSWER not in answer
        health = path.startswith("/ping") and b"Healthy" in answer  # anybody may
        assert health or not answer.startswith(b"HTTP/1.1 2"), answer[:200]
    status, content = sealed(known, path)
    assert status >= 400 or b"Healthy" in content
    assert ANSWER not in content


def test_the_paths_are_real(known: Known) -> None:
    """What the test above refuses is there for who may predict: it cannot pass for another reason."""
    credential = b"Authorization: Bearer " + known.issuer.token()
    reached = [path for path in PATHS if ANSWER in exchange(known, asked(path, credential))]
    assert len(reached) >= 12, reached


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/models/own",
        "/models/own/",
        "//models/own",
        "/models/own/1.0",
        "/MODELS",
        "/v2/models/own",
    ],
)
def test_paths_that_describe(known: Known, path: str) -> None:
    """Who may predict only is not told what there is."""
    credential = b"Authorization: Bearer " + known.issuer.token()
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST"):
        answer = exchange(known, asked(path, credential, method=method, body=b""))
        assert answer[9:10] == b"4", answer[:200]


def test_several_credentials(known: Known) -> None:
    """More than one credential is none, whichever is right and whichever comes first."""
    right, other = known.issuer.token(), known.watch_key.encode()
    pairs = [
        (b"Authorization: Bearer " + right, b"Authorization: Bearer " + right),
        (b"Authorization: Bearer " + right, b"Authorization: Bearer x"),
        (b"Authorization: Bearer x", b"Authorization: Bearer " + right),
        (b"Authorization: Bearer " + right, b"x-api-key: " + other),
        (b"x-api-key: " + other, b"Authorization: Bearer " + right),
        (b"Authorization: Basic eDp5", b"Authorization: Bearer " + right),
        (b"Authorization: Bearer " + right + b", Bearer " + right,),
        (b"Authorization: Bearer", b"Authorization: Bearer " + right),
        (b"Authorization: ", b"Authorization: Bearer " + right),
    ]
    for headers in pairs:
        assert b" 401 " in exchange(known, asked("/predictions/own", *headers))[:20], headers
        inside = [header.split(b": ", 1) for header in headers]
        found, _ = sealed(known, "/predictions/own", *((name.lower(), value) for name, value in inside))
        assert found == 401


def test_headers_that_are_none(known: Known) -> None:
    """Names and lines that another reader might take for a credential are refused, or nobody's."""
    right = known.issuer.token()
    headers = (
        b"Authorization : Bearer " + right,
        b" Authorization: Bearer " + right,
        b"X-Y: z\nAuthorization: Bearer " + right,
        b"X-Y: z\rAuthorization: Bearer " + right,
        b"X-Y: z\r\n Authorization: Bearer " + right,
        b"Authorization\x00: Bearer " + right,
        b"Authorization_: Bearer " + right,
        b"Authorization: Bearer\r\n " + right,
        b"Proxy-Authorization: Bearer " + right,
        b"Cookie: authorization=Bearer " + right,
        b"Trailer: Authorization\r\nAuthorization-: Bearer " + right,
    )
    answers = exchange_all(known, [asked("/predictions/own", header) for header in headers])
    for header, answer in zip(headers, answers, strict=True):
        assert answer[9:12] in (b"400", b"401", b"403"), (header[:30], answer[:100])


def test_two_lengths(known: Known) -> None:
    """A request within a request is a body: what two readers could cut differently is refused."""
    right = b"Authorization: Bearer " + known.issuer.token()
    hidden = asked("/predictions/own", right)
    headers = (
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Content-Length: 0",
    )
    body = b"0\r\n\r\n" + hidden
    for answer in exchange_all(known, [asked("/predictions/own", header, body=body) for header in headers]):
        assert ANSWER not in answer
        assert answer.count(b"HTTP/1.1 ") == 1
    assert ANSWER not in exchange(known, asked("/predictions/own", body=hidden))


def test_headers_that_speak_for_others(known: Known) -> None:
    """No header says who somebody is, which tenant he belongs to, or what TLS has seen."""
    spoofed = {
        "x-tenant": "acme",
        "tenant": "acme",
        "x-forwarded-user": "alice",
        "x-remote-user": "alice",
        "x-forwarded-client-cert": 'URI="spiffe://example.org/job"',
        "x-ssl-client-verify": "SUCCESS",
        "x-ssl-client-s-dn": "CN=job",
        "x-client-certificate": "uri:spiffe://example.org/job",
        "cloister.certificate": "uri:spiffe://example.org/job",
        "x-original-url": "/ping",
        "x-rewrite-url": "/ping",
        "x-http-method-override": "GET",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
    }
    with known.tls() as http:
        assert http.post("/predictions/own", content=b"x", headers=spoofed).status_code == 403
    with known.tls(key=known.issuer.token(tenant="other")) as http:
        assert http.post("/predictions/own", content=b"x", headers=spoofed).status_code == 403
    inside = [(name.encode(), value.encode()) for name, value in spoofed.items()]
    assert sealed(known, "/predictions/own", *inside)[0] == 403


def test_a_credential_outside_of_the_seal(known: Known) -> None:
    """A token in the outer request is nobody's inside; and a wrong one outside harms nobody inside."""
    right = known.issuer.token().decode()
    assert sealed(known, "/predictions/own", authorization=f"Bearer {right}")[0] == 403
    assert sealed(known, "/predictions/own", x_api_key=known.watch_key)[0] == 403
    inside = (b"authorization", f"Bearer {right}".encode())
    assert sealed(known, "/predictions/own", inside, authorization="Bearer wrong")[0] == 200


def test_a_seal_within_a_seal(known: Known) -> None:
    """What is inside cannot ask the gateway again, nor fetch evidence with anything but its nonce."""
    right = (b"authorization", b"Bearer " + known.issuer.token())
    assert sealed(known, "/.well-known/ohttp-gateway", right)[0] == 404
    assert sealed(known, "/.well-known/ohttp-gateway/", right)[0] == 403


def test_plain_http(known: Known) -> None:
    """The plain port takes no credential, however the path is spelled."""
    headers = bearer(known.issuer.token())
    for path in ("/predictions/own", "/ping/../predictions/own", "/%2e/predictions/own", "//ping", "/models"):
        answer = httpx.post(f"http://127.0.0.1:{known.ports['http']}{path}", content=b"x", headers=headers)
        assert answer.status_code == 403
        assert ANSWER not in answer.content


@pytest.fixture
def channel(known: Known) -> Iterator[grpc.Channel]:
    """A gRPC channel to the inference port."""
    pem = ssl.get_server_certificate(("127.0.0.1", known.ports["https"]))
    credentials = grpc.ssl_channel_credentials(pem.encode())
    options = (("grpc.ssl_target_name_override", "localhost"),)
    with grpc.secure_channel(f"127.0.0.1:{known.ports['grpc']}", credentials, options) as made:
        yield made


def test_grpc_metadata(known: Known, channel: grpc.Channel) -> None:
    """A token in the metadata is a credential, two are none, and other names are nobody's."""
    ask = Stub(channel, INFERENCE_SERVICE).Predictions
    right = f"Bearer {known.issuer.token().decode()}"

    def code(*metadata: tuple[str, str | bytes]) -> str:
        return failure(ask, predictions("own", body=b"x"), metadata=metadata, timeout=10)[0].name

    answer = ask(predictions("own", body=b"x"), metadata=(("authorization", right),), timeout=10)
    assert ANSWER in answer.prediction
    assert code() == "PERMISSION_DENIED"
    assert code(("authorization", right), ("authorization", right)) == "UNAUTHENTICATED"
    assert code(("authorization", "Bearer x"), ("authorization", right)) == "UNAUTHENTICATED"
    assert code(("authorization", right), ("x-api-key", known.watch_key)) == "UNAUTHENTICATED"
    assert code(("authorization", "Bearer clk_wrong")) == "UNAUTHENTICATED"
    assert code(("authorization-bin", right.encode())) == "PERMISSION_DENIED"
    assert code(("proxy-authorization", right), ("x-tenant", "acme")) == "PERMISSION_DENIED"


def test_grpc_asks_for_what_its_method_does(known: Known, channel: grpc.Channel) -> None:
    """Who may predict is not told what there is, in a stream neither; health asks for nothing."""
    right = (("authorization", f"Bearer {known.issuer.token().decode()}"),)
    reader = (("authorization", f"Bearer {second().decode()}"),)
    inference = Stub(channel, INFERENCE_SERVICE)
    tensors = Stub(channel, "inference.GRPCInferenceService")
    for metadata in ((), reader):
        for call in (inference.Predictions, inference.StreamPredictions):
            refused = failure(call, predictions("own", body=b"x"), metadata=metadata, timeout=10)
            assert refused[0].name == "PERMISSION_DENIED"
        asked = message("inference.ModelInferRequest")(model_name="own")
        assert (
            failure(tensors.ModelInfer, asked, metadata=metadata, timeout=10)[0].name == "PERMISSION_DENIED"
        )
    metadata_request = message("inference.ModelMetadataRequest")(name="own")
    refused = failure(tensors.ModelMetadata, metadata_request, metadata=right, timeout=10)
    assert refused[0].name == "PERMISSION_DENIED"
    assert tensors.ModelMetadata(metadata_request, metadata=reader, timeout=10).name == "own"
    assert tensors.ServerLive(message("inference.ServerLiveRequest")(), timeout=10).live


def test_grpc_management(known: Known) -> None:
    """gRPC's management asks for TorchServe's management token, and the policy what it may."""
    pem = ssl.get_server_certificate(("127.0.0.1", known.ports["https"]))
    credentials = grpc.ssl_channel_credentials(pem.encode())
    options = (("grpc.ssl_target_name_override", "localhost"),)
    with grpc.secure_channel(f"127.0.0.1:{known.ports['grpc_management']}", credentials, options) as made:
        stub = Stub(made, MANAGEMENT_SERVICE)
        right = (("authorization", f"Bearer {known.tokens['management']}"),)
        listed = stub.ListModels(management("ListModelsRequest"), metadata=right, timeout=10)
        assert "own" in listed.msg
        for key in ("", known.tokens["inference"], known.tokens["API"], known.issuer.token().decode()):
            metadata = (("authorization", f"Bearer {key}"),) if key else ()
            refused = failure(
                stub.UnregisterModel,
                management("UnregisterModelRequest", model_name="own"),
                metadata=metadata,
                timeout=10,
            )
            assert refused[0].name == "PERMISSION_DENIED"


def test_a_request_keeps_its_admission(tmp_path: Path) -> None:
    """Who is let in by the head is answered after the body, though the same head was refused in between."""
    keys, port = tmp_path / "keys.jsonl", free_port()
    key = make_api_key(keys, "one", now=datetime.now(UTC))
    (tmp_path / "requests.cedar").write_text(
        'permit (principal, action == Action::"predict", resource) when { principal.kind == "api-key" };'
    )
    (tmp_path / "store").mkdir()
    pack(tmp_path, "echo", ECHO).rename(tmp_path / "store" / "echo.mar")
    flags = {
        "serve.mode": "open",
        "serve.http_port": port,
        "serve.model_store": str(tmp_path / "store"),
        "serve.access_policy": str(tmp_path / "requests.cedar"),
        "serve.api_keys": str(keys),
        "serve.quota_per_day": 1,
    }
    head = asked("/predictions/echo", f"Authorization: Bearer {key}".encode())[:-1]
    with Server(flags) as server:
        server.wait_ready()
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as first,
            socket.create_connection(("127.0.0.1", port), timeout=20) as second,
        ):
            first.sendall(head)
            time.sleep(0.3)
            second.sendall(head + b"x")
            assert b" 429 " in second.recv(65_536)
            first.sendall(b"x")
            assert b" 200 " in first.recv(65_536)


def test_quota_of_many_connections(tmp_path: Path) -> None:
    """A caller's quota is the caller's: many connections at once, by HTTP and gRPC, get no more of it."""
    keys, port, grpc_port = tmp_path / "keys.jsonl", free_port(), free_port()
    key = make_api_key(keys, "greedy", now=datetime.now(UTC))
    other = make_api_key(keys, "other", now=datetime.now(UTC))
    (tmp_path / "requests.cedar").write_text(
        'permit (principal, action == Action::"predict", resource) when { principal.kind == "api-key" };'
    )
    (tmp_path / "store").mkdir()
    archive = pack(tmp_path, "echo", ECHO)
    archive.rename(tmp_path / "store" / "echo.mar")
    flags = {
        "serve.mode": "open",
        "serve.http_port": port,
        "serve.grpc_port": grpc_port,
        "serve.model_store": str(tmp_path / "store"),
        "serve.access_policy": str(tmp_path / "requests.cedar"),
        "serve.api_keys": str(keys),
        "serve.quota_per_day": 60,
    }
    with Server(flags) as server:
        server.wait_ready()
        results: list[httpx.Response] = []
        lock = threading.Lock()

        def ask(number: int) -> None:
            path = ("/predictions/echo", "/v2/models/echo/infer", "/v1/models/echo:predict")[number % 3]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
                for _ in range(8):
                    answer = http.post(path, content=b"x", headers=bearer(key))
                    with lock:
                        results.append(answer)

        def call(number: int) -> None:
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as made:
                ask = Stub(made, INFERENCE_SERVICE).Predictions
                for _ in range(4):
                    called = ask.future(
                        predictions("echo", body=b"x"), metadata=(("x-api-key", key),), timeout=20
                    )
                    code = called.code()
                    assert code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
                    with lock:
                        results.append(httpx.Response(200 if code is grpc.StatusCode.OK else 429))

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda n: ask(n) if n < 12 else call(n), range(16)))
        refused = [answer for answer in results if answer.status_code == 429]
        assert len(results) - len(refused) == 60
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused if answer.headers)
        left = httpx.post(f"http://127.0.0.1:{port}/predictions/echo", content=b"x", headers=bearer(other))
        assert left.status_code == 200
