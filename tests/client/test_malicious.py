"""Servers and relays that mean harm: what they send costs little, and is never taken for an answer.

Attacks on evidence and keys, swapped, cut and replayed answers: ``test_session.py``, ``test_streaming.py``.
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import httpx
import pytest

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import make_bundle
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.client.session import Client
from cloister.errors import (
    BadCiphertext,
    CloisterError,
    MalformedInput,
    StaleEvidence,
    TransportError,
)
from cloister.ohttp import bhttp
from cloister.ohttp.capsule import KEY_PROBLEM, KeyConfig
from cloister.ohttp.gateway import Gateway
from cloister.ohttp.varint import render_varint
from tests.client.blocking import BlockingAsyncClient
from tests.fakes.sealed_service import SealedService, TlsKey

CANARY = "canary-99d0"


@pytest.fixture
def trust(platform: SimulatedPlatform, reference_values: ReferenceValues) -> dict[str, Any]:
    """What every client here believes."""
    return {"reference_values": reference_values, "roots": [platform.root], "timeout_s": 10.0}


@pytest.fixture(params=[Client, BlockingAsyncClient])
def client(request: pytest.FixtureRequest, service: SealedService, trust: dict[str, Any]) -> Iterator[Client]:
    """A client of either kind."""
    with closing(request.param(service.url, **trust)) as made:
        yield made


@pytest.fixture
def http(service: SealedService, trust: dict[str, Any]) -> Iterator[httpx.Client]:
    """A plain httpx client over ``cloister.transport``, which streams, and follows redirects."""
    transport = cloister.transport(service.url, **trust)
    with httpx.Client(transport=transport, base_url=service.url, follow_redirects=True) as made:
        yield made


# Sizes


@pytest.mark.parametrize("length", [(1 << 62) - 1, 1 << 32, 65_553])
def test_huge_chunk_length(service: SealedService, http: httpx.Client, length: int) -> None:
    """A chunk that announces more than the limit is refused at its length, before its bytes come."""

    def huge(parts: Iterator[bytes]) -> Iterator[bytes]:
        yield next(parts)
        yield render_varint(length)

    service.change_stream = huge
    with pytest.raises(MalformedInput, match="limit"):
        http.get("/x")


def test_endless_informational_answers(service: SealedService, client: Client) -> None:
    """Interim answers inside the seal have a limit."""
    service.render = lambda response: b"\x01" + render_varint(103) + b"\x00" + b"\x40\x67\x00" * 5000
    with pytest.raises(MalformedInput, match="interim"):
        client.predict("echo", b"x")


def test_answers_over_the_limit(service: SealedService, client: Client) -> None:
    """A whole answer is gathered up to a limit; what is outside of a seal up to a much lower one."""
    service.change_answer = lambda sealed: sealed + bytes(40_000)
    with (
        mock.patch("cloister.client.sealing.MAX_ANSWER_BYTES", 20_000),
        pytest.raises(TransportError, match="over 20000 bytes"),
    ):
        client.predict("echo", b"x")
    problem = b'{"type":"' + KEY_PROBLEM.encode() + b'","x":"' + bytes(1 << 20) + b'"}'
    service.sealed = lambda capsule: (400, "application/problem+json", problem)  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="over 65536 bytes"):
        client.predict("echo", b"x")


def test_evidence_over_the_limit(service: SealedService, client: Client) -> None:
    """So is evidence, of somebody who is not trusted yet."""
    service.make_bundle = lambda nonce: bytes(40 << 20)
    tracemalloc.start()
    with pytest.raises(MalformedInput, match="over"):
        client.verify()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20  # the fake holds its 40 MiB in the same process


BOMB = gzip.compress(bytes(64 << 20))


def test_compressed_evidence(service: SealedService, client: Client) -> None:
    """Evidence that comes compressed is refused, and not decompressed."""
    service.outer_headers["content-encoding"] = "gzip"
    service.make_bundle = lambda nonce: BOMB
    with pytest.raises(MalformedInput, match="compressed"):
        client.verify()


def test_compressed_answers(service: SealedService, client: Client) -> None:
    """What says that it is compressed stays as it came, outside of the seal and inside."""
    service.answer = lambda request: bhttp.Response(200, ((b"content-encoding", b"gzip"),), BOMB)
    assert client.predict("echo", b"x").content == BOMB
    assert service.requests[0].header(b"accept-encoding") == b"identity"
    service.outer_headers["content-encoding"] = "gzip"
    assert client.predict("echo", b"x").content == BOMB
    service.change_answer = lambda sealed: BOMB
    with pytest.raises(BadCiphertext):
        client.predict("echo", b"x")


def test_very_many_suites(service: SealedService, client: Client) -> None:
    """A key configuration full of unknown combinations is quickly read; the one that is known is used."""
    known = KeyConfig.parse(service.gateway.key_config)
    unknown = tuple((0x7000 + number % 500, 0x7000) for number in range(16_000))
    config = KeyConfig(known.key_id, known.public, (*unknown, *known.algorithms))
    service.gateway.key_config = config.render()
    began = time.monotonic()
    assert client.predict("echo", b"x").status == 200
    assert time.monotonic() - began < 3
    service.gateway.key_config = KeyConfig(known.key_id, known.public, unknown).render()
    with pytest.raises(MalformedInput, match="no supported combination"):
        client.verify()
    assert len(service.requests) == 1


# Time


def drip(answer: bytes, *, tls: TlsKey | None) -> tuple[str, Callable[[], None]]:
    """A server that gives a byte of ``answer`` every 50 ms; its address, and how to end it."""
    listener, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        plain, _ = listener.accept()
        with plain:
            connection = plain if tls is None else tls.context().wrap_socket(plain, server_side=True)
            with connection:
                try:
                    for byte in answer:
                        if ended.wait(0.05):
                            return
                        connection.sendall(bytes([byte]))
                except OSError:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def stop() -> None:
        ended.set()
        listener.close()
        thread.join()

    scheme = "http" if tls is None else "https"
    return f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", stop


@pytest.mark.parametrize("kind", [Client, BlockingAsyncClient])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + bytes(1000),
    ],
    ids=["headers", "interim", "body"],
)
def test_slow_drip(tls: TlsKey, trust: dict[str, Any], kind: Any, secure: bool, answer: bytes) -> None:
    """A server that keeps its evidence coming byte by byte is left at the time limit, whatever it drips."""
    url, stop = drip(answer, tls=tls if secure else None)
    began = time.monotonic()
    try:
        with (
            closing(kind(url, **trust | {"timeout_s": 1.0})) as client,
            pytest.raises(TransportError, match="in time"),
        ):
            client.verify()
    finally:
        stop()
    assert time.monotonic() - began < 4


def test_stale_evidence(service: SealedService, client: Client) -> None:
    """Evidence that answers our nonce, but whose collateral is of another year, is refused."""
    old = service.attester.platform.endorsements(datetime.now(UTC) - timedelta(days=400))
    service.attester.get_endorsements = lambda: old  # type: ignore[method-assign]
    with pytest.raises(StaleEvidence):
        client.predict("echo", CANARY)
    assert service.capsules == []


# Ways around


def test_downgrade_to_plain_http(service: SealedService, trust: dict[str, Any]) -> None:
    """A port that answers without TLS is not spoken to in plain, and hears no more than a greeting."""
    with service.serving(plain=True) as url:
        for kind in (Client, BlockingAsyncClient):
            with (
                closing(kind(url.replace("http:", "https:"), **trust)) as client,
                pytest.raises(TransportError),
            ):
                client.predict("echo", CANARY)
    assert service.outer == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(service: SealedService, client: Client, status: int) -> None:
    """Neither evidence nor a sealed request is asked for elsewhere, least of all in plain."""
    elsewhere = SealedService(service.attester.platform, service.tls)
    with elsewhere.serving(plain=True) as plain:
        service.outer_headers["location"] = plain + "/.well-known/ohttp-gateway"
        honest = service.sealed
        service.sealed = lambda capsule: (status, "text/plain", b"")  # type: ignore[method-assign]
        with pytest.raises(TransportError, match=str(status)):
            client.predict("echo", CANARY)
        service.sealed = honest  # type: ignore[method-assign]
        service.evidence = lambda target: (status, "text/plain", b"")  # type: ignore[method-assign]
        with pytest.raises(TransportError, match=str(status)):
            client.verify()
        assert elsewhere.outer == []


def test_redirect_inside_the_seal(service: SealedService, http: httpx.Client) -> None:
    """A redirect of the model's to a plain address: whoever follows it asks the verified service, sealed."""
    elsewhere = SealedService(service.attester.platform, service.tls)
    with elsewhere.serving(plain=True) as plain:
        headers = ((b"location", f"{plain}/there".encode()),)
        answers = iter([bhttp.Response(307, headers), bhttp.Response(200, (), b"end")])
        service.answer = lambda request: next(answers)
        assert http.post("/here", content=CANARY).content == b"end"
        assert elsewhere.outer == []
    assert service.requests[1].path == b"/there"
    assert not any(CANARY in line or "there" in line for line in service.outer)


def test_stripped_headers_of_an_answer(service: SealedService, client: Client) -> None:
    """Without its content type an answer is not one; it is refused, not guessed at."""
    honest = service.sealed
    service.sealed = lambda capsule: (200, "application/octet-stream", honest(capsule)[2])  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="without sealing"):
        client.predict("echo", b"x")


def test_unknown_suite(service: SealedService, client: Client) -> None:
    """A key of an unknown kind, even genuinely attested, has nothing sealed to it."""
    raw = service.gateway.key_config
    service.gateway.key_config = raw[:1] + b"\x66\x66" + raw[3:]
    with pytest.raises(MalformedInput, match="KEM"):
        client.predict("echo", CANARY)
    assert service.capsules == []


@pytest.mark.parametrize(
    "line", [b"a: b\r\nset-cookie: c", b"b\nx", b"b\x00", b" b"], ids=["crlf", "lf", "nul", "space"]
)
def test_header_injection(service: SealedService, client: Client, line: bytes) -> None:
    """A header of an answer that would be two elsewhere is refused."""
    field = render_varint(1) + b"a" + render_varint(len(line)) + line
    section = render_varint(len(field)) + field
    service.render = lambda response: b"\x01" + render_varint(200) + section + b"\x00\x00"
    with pytest.raises(MalformedInput, match="field value"):
        client.predict("echo", b"x")


def test_key_of_somebody_else_in_genuine_evidence(service: SealedService, client: Client) -> None:
    """Evidence that another genuine service made for our nonce, relayed, is about that one's TLS key."""
    other = Gateway.generate()
    identity = service.identity()
    service.attested_spki = b"another key"
    relayed = service.identity()
    assert relayed != identity
    service.make_bundle = lambda nonce: make_bundle(service.attester, relayed, nonce)
    service.gateway = other
    with pytest.raises(CloisterError):
        client.predict("echo", CANARY)
    assert service.requests == []
