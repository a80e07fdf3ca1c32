"""Streamed answers over the sealing transport: as they come, and never shorter than they are."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import islice

import httpx
import pytest

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.client.transport import OhttpTransport
from cloister.errors import BadCiphertext, CloisterError, Replayed, UnknownKeyConfig
from cloister.ohttp import bhttp
from cloister.ohttp.gateway import Gateway
from tests.fakes.sealed_service import SealedService, TlsKey


@pytest.fixture
def http(
    service: SealedService, platform: SimulatedPlatform, reference_values: ReferenceValues
) -> Iterator[httpx.Client]:
    """A plain httpx client over ``cloister.transport``."""
    transport = cloister.transport(service.url, reference_values=reference_values, roots=[platform.root])
    with httpx.Client(transport=transport, base_url=service.url) as client:
        yield client


def test_request_and_answer(service: SealedService, http: httpx.Client) -> None:
    """Method, path and content arrive, whether the content is at hand or comes in parts."""
    for content in (b"one" * 20_000, iter([b"one" * 10_000, b"", b"one" * 10_000])):
        answer = http.put("/v2/x?a=1", content=content)
        assert (answer.json()["method"], answer.json()["path"]) == ("PUT", "/v2/x?a=1")
        assert base64.b64decode(answer.json()["content"]) == b"one" * 20_000


def test_pieces_come_as_they_are_sent(service: SealedService, http: httpx.Client) -> None:
    """The head and the first pieces are there before the last one has been sent."""
    seen: list[str] = []

    def slowly(parts: Iterator[bytes]) -> Iterator[bytes]:
        yield from islice(parts, 3)
        while not seen:
            yield b""  # nothing more until the client has read
        yield from parts

    service.change_stream = slowly
    service.answer = lambda request: bhttp.Response(203, ((b"x-a", b"b"),), b"abcdef")
    with http.stream("POST", "/x", content=b"q") as answer:
        assert (answer.status_code, answer.headers["x-a"]) == (203, "b")
        for piece in answer.iter_raw():
            seen.append(piece.decode())
    assert seen == ["abc", "def"]


@pytest.mark.parametrize("kept", range(1, 6))
def test_a_cut_answer_is_an_error(service: SealedService, http: httpx.Client, kept: int) -> None:
    """A stream that ends early, wherever, raises at its reader."""
    service.answer = lambda request: bhttp.Response(200, (), b"abcdef")
    service.change_stream = lambda parts: islice(parts, kept if kept < 5 else 4)
    with pytest.raises(BadCiphertext, match="cut"), http.stream("GET", "/x") as answer:
        answer.read()


def test_a_swapped_chunk_is_an_error(service: SealedService, http: httpx.Client) -> None:
    """Chunks cannot change places."""

    def swapped(parts: Iterator[bytes]) -> Iterator[bytes]:
        begin, head, one, two, *rest = parts
        yield from (begin, head, two, one, *rest)

    service.answer = lambda request: bhttp.Response(200, (), b"abcdef")
    service.change_stream = swapped
    with pytest.raises(BadCiphertext), http.stream("GET", "/x") as answer:
        answer.read()


def test_new_key(service: SealedService, http: httpx.Client) -> None:
    """After a change of keys a request at hand is sent again; one that came in parts is not, and says so."""
    http.get("/x")
    service.gateway = Gateway.generate()
    assert http.post("/x", content=b"a").status_code == 200
    service.gateway = Gateway.generate()
    with pytest.raises(UnknownKeyConfig, match="cannot be sent twice"):
        http.post("/x", content=iter([b"a"]))
    assert service.evidence_given == 2
    assert http.post("/x", content=iter([b"a"])).status_code == 200
    assert service.evidence_given == 3


def test_replay(service: SealedService, http: httpx.Client) -> None:
    """A gateway that has seen a request says so, and the caller hears it."""
    http.get("/x")
    with pytest.raises(Replayed):
        service.gateway.open_stream().receive(service.capsules[0])


async def _async_predict(
    service: SealedService, values: ReferenceValues, platform: SimulatedPlatform
) -> None:
    async with cloister.AsyncClient(
        service.url, reference_values=values, roots=[platform.root], timeout_s=10
    ) as client:
        assert (await client.verify()).identity.models
        answer = await client.predict("echo", b"abc", version="2.0")
        assert answer.json()["path"] == "/predictions/echo/2.0"
        service.gateway = Gateway.generate()
        assert (await client.predict("echo", b"abc")).status == 200
        service.answer = lambda request: bhttp.Response(
            404, (), b'{"code":404,"type":"ModelNotFoundException"}'
        )
        with pytest.raises(CloisterError):
            await client.predict("none", b"abc")


async def _async_stream(service: SealedService, values: ReferenceValues, platform: SimulatedPlatform) -> None:
    transport = cloister.async_transport(
        service.url, reference_values=values, roots=[platform.root], timeout_s=10
    )
    async with httpx.AsyncClient(transport=transport, base_url=service.url) as http:

        async def parts() -> object:
            for part in (b"one", b"two"):
                yield part

        answer = await http.post("/x", content=parts())  # type: ignore[arg-type]
        assert base64.b64decode(answer.json()["content"]) == b"onetwo"
        service.gateway = Gateway.generate()
        assert (await http.post("/x", content=b"again")).status_code == 200
        service.change_stream = lambda parts: islice(parts, 3)
        with pytest.raises(BadCiphertext, match="cut"):
            await http.get("/x")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("story", [_async_predict, _async_stream])
def test_event_loops(
    service: SealedService,
    reference_values: ReferenceValues,
    platform: SimulatedPlatform,
    backend: str,
    story: object,
) -> None:
    """The same client in an event loop, asyncio's or trio's."""
    anyio = pytest.importorskip("anyio")
    if backend == "trio":
        pytest.importorskip("trio")
    anyio.run(story, service, reference_values, platform, backend=backend)


def test_async_survives_a_restart(
    platform: SimulatedPlatform, tls: TlsKey, other_tls: TlsKey, reference_values: ReferenceValues
) -> None:
    """A restarted service has another certificate: it is verified again, and the request goes on."""
    import anyio

    async def story() -> None:
        service = SealedService(platform, tls)
        with service.serving() as url:
            client = cloister.AsyncClient(
                url, reference_values=reference_values, roots=[platform.root], timeout_s=10
            )
            await client.predict("echo", b"x")
        restarted = SealedService(platform, other_tls)
        with restarted.serving(port=int(url.rpartition(":")[2])):
            assert (await client.predict("echo", b"y")).status == 200
        assert restarted.evidence_given == 1
        await client.close()

    anyio.run(story)


@pytest.mark.parametrize("streaming", [False, True])
def test_padding(
    service: SealedService, platform: SimulatedPlatform, reference_values: ReferenceValues, streaming: bool
) -> None:
    """Padded requests of different lengths look alike outside, and arrive as they were."""
    transport = OhttpTransport(
        service.url,
        reference_values=reference_values,
        roots=[platform.root],
        streaming=streaming,
        padding=True,
    )
    with httpx.Client(transport=transport, base_url=service.url) as http:
        for content in (b"a" * 2020, b"a" * 2040, b"a" * 40_000):
            http.post("/x", content=content)
    assert [len(request.content) for request in service.requests] == [2020, 2040, 40_000]
    short, longer, long = (len(capsule) for capsule in service.capsules)
    assert short == longer
    assert long < 46_000
