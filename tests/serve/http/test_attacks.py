"""Attacks on the sealed conversation, at the gateway's door; those on evidence and on clients are theirs.

``tests/client/test_session.py`` has relayed evidence, old nonces and swapped answers; ``test_streaming.py``
cut ones; ``test_malicious.py`` stale evidence, the downgrade to plain HTTP and servers that mean harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.hpke import Aead, Kdf, Kem
from cloister.errors import BadCiphertext, ConfigError
from cloister.ohttp import bhttp, chunked
from cloister.ohttp.bhttp_stream import Reader, Writer
from cloister.ohttp.capsule import KeyConfig, seal_request
from cloister.ohttp.gateway import Gateway
from cloister.ohttp.padding import padded_bytes
from cloister.ohttp.replay import render_date
from cloister.policy.requests import WatchedPolicy
from cloister.serve.access.api_keys import make_api_key
from cloister.serve.access.control import AccessControl
from cloister.serve.http import paths
from cloister.serve.http.api import Api
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.gateway import GatewayEndpoint
from cloister.serve.http.messages import Request, Response
from cloister.serve.http.streamed import MAX_UPLOADS, Uploads
from cloister.serve.http.ways import Way
from cloister.serve.jobs import Answer, Job
from cloister.serve.registry import Registry
from cloister.settings import ServeSettings
from tests.serve.http.front_end import TEXT, FakeApi, FrontEnd, Wire, front_end, post, run

WHOLE = "content-type: message/ohttp-req\r\n"
CHUNKED = "content-type: message/ohttp-chunked-req\r\n"
POLICY = """
permit (principal in Group::"staff", action == Action::"predict", resource == Model::"secret")
when { context.way == "sealed" };
"""


def message(path: bytes = b"/predictions/echo", content: bytes = b"", *more: tuple[bytes, bytes]) -> Any:
    """What is inside."""
    headers = ((b"date", render_date(datetime.now(UTC))), *more)
    return bhttp.Request(b"POST", b"https", b"host", path, headers, content)


def attach(end: FrontEnd, **options: Any) -> Gateway:
    """A gateway in front of the models."""
    gateway = Gateway.generate()
    end.api.gateway = GatewayEndpoint(gateway, end.api.handle_sealed, **options)
    return gateway


def seal_stream(gateway: Gateway, inner: bhttp.Request, *, piece: int = 1 << 14) -> tuple[bytes, Any]:
    """A chunked request in pieces of that size, and what opens its answer."""
    sealer = chunked.RequestSealer(KeyConfig.parse(gateway.key_config))
    raw = Writer.head(inner) + Writer.content(inner.content) + Writer.end()
    pieces = [raw[at : at + piece] for at in range(0, len(raw), piece)]
    sealed = [sealer.seal(part) for part in pieces[:-1]]
    return b"".join((sealer.begin(), *sealed, sealer.seal(pieces[-1], final=True))), sealer.response_opener()


def open_stream(opener: chunked.ResponseOpener, raw: bytes) -> tuple[bhttp.Response, bytes]:
    """Head and content of a chunked answer."""
    reader: Reader[bhttp.Response] = Reader(bhttp.Response)
    content = b"".join([reader.receive(piece) for piece in opener.receive(raw)])
    content += reader.receive(opener.finish())
    reader.finish()
    assert reader.head is not None
    return reader.head, content


async def ask_stream(wire: Wire, gateway: Gateway, inner: bhttp.Request, **options: Any) -> Any:
    """One chunked exchange."""
    sealed, opener = seal_stream(gateway, inner, **options)
    await wire.send(post(sealed, paths.GATEWAY, headers=CHUNKED))
    status, outer, raw = await wire.answer()
    assert (status, outer["content-type"]) == (200, "message/ohttp-chunked-res")
    return open_stream(opener, raw)


@pytest.mark.parametrize("piece", [1, 7, 1 << 14])
def test_chunks_of_any_size(piece: int) -> None:
    """A request in chunks of one byte is answered like any other, and does not occupy the server for long."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            began = asyncio.get_running_loop().time()
            head, content = await ask_stream(
                wire,
                gateway,
                message(b"/x", b"x" * 5_000, *[(b"x-%d" % n, b"v") for n in range(100)]),
                piece=piece,
            )
            assert (head.status, content) == (200, b"cold " + b"x" * 5_000)
            assert asyncio.get_running_loop().time() - began < 5

    run(test())


def test_streamed_answer_in_parts() -> None:
    """Parts are sealed as they come, and padding changes nothing of what is inside."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        yield b""
        yield b"two " * 10_000
        yield b"three"

    async def test(pad: bool) -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end, pad_answers=pad), await end.connect()
            end.api.content = lambda _: parts()
            head, content = await ask_stream(wire, gateway, message(b"/x"))
            assert content == b"one " + b"two " * 10_000 + b"three"
            assert (b"content-type", b"text/plain") in head.headers

    run(test(False))
    run(test(True))


def test_cut_answer_has_no_final_chunk() -> None:
    """Where the model breaks off, the connection ends without the final chunk, and opening it fails."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"one "
        raise ConfigError("the model died")

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            end.api.content = lambda _: broken()
            sealed, opener = seal_stream(gateway, message(b"/x"))
            await wire.send(post(sealed, paths.GATEWAY, headers=CHUNKED))
            raw = await wire.rest()
            assert not raw.endswith(b"0\r\n\r\n")
            body, parts = raw.partition(b"\r\n\r\n")[2], b""
            while body:
                size, _, body = body.partition(b"\r\n")
                parts, body = parts + body[: int(size, 16)], body[int(size, 16) + 2 :]
            opener.receive(parts)
            with pytest.raises(BadCiphertext, match="cut"):
                opener.finish()

    run(test())


def test_truncated_request() -> None:
    """A stream that was cut anywhere is refused, and no model hears of it."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway = attach(end)
            sealed, _ = seal_stream(gateway, message(content=b"x" * 100), piece=50)
            for kept in (3, 20, 60, len(sealed) // 2, len(sealed) - 17, len(sealed) - 1):
                fresh, _ = seal_stream(gateway, message(content=b"x" * 100), piece=50)
                wire = await end.connect()
                await wire.send(post(fresh[:kept], paths.GATEWAY, headers=CHUNKED))
                status, _, body = await wire.answer()
                assert status == 400
                assert json.loads(body)["type"].endswith("#ohttp-key")
            assert end.model.jobs == []
            assert end.api.handled == []
            assert (end.api.gateway.uploads.count, end.api.gateway.uploads.held_bytes) == (0, 0)

    run(test())


def test_replay() -> None:
    """The same capsule is answered once, whole or chunked, whoever sends it again, after a rotation too."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            streamed, _ = seal_stream(gateway, message())
            whole, _ = seal_request(KeyConfig.parse(gateway.key_config), bhttp.render_request(message()))
            for sealed, kind in ((streamed, CHUNKED), (whole, WHOLE)):
                await wire.send(post(sealed, paths.GATEWAY, headers=kind))
                assert (await wire.answer())[0] == 200
            gateway.rotate()
            for sealed, kind in ((streamed, CHUNKED), (whole, WHOLE)):
                wire = await end.connect()
                await wire.send(post(sealed, paths.GATEWAY, headers=kind))
                assert (await wire.answer())[0] == 409
            assert end.api.gateway.refused["replayed"] == 2
            assert len(end.model.jobs) + len(end.api.handled) <= 3

    run(test())


def test_unknown_suite() -> None:
    """A suite that was not offered, or that nobody knows, is refused in the same words as an unknown key."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway = attach(end)
            key_id = KeyConfig.parse(gateway.key_config).key_id
            suites = [
                (Kem.X25519_HKDF_SHA256, Kdf.HKDF_SHA256, 0xFFFF),
                (Kem.X25519_HKDF_SHA256, 0x7777, Aead.AES_128_GCM),
                (0x6666, Kdf.HKDF_SHA256, Aead.AES_128_GCM),
                (Kem.X25519_HKDF_SHA256, 0x0003, Aead.AES_128_GCM),
            ]
            answers = set()
            for kem, kdf, aead in suites:
                raw = (
                    bytes([key_id])
                    + b"".join(int(n).to_bytes(2, "big") for n in (kem, kdf, aead))
                    + bytes(99)
                )
                for kind in (WHOLE, CHUNKED):
                    wire = await end.connect()
                    await wire.send(post(raw, paths.GATEWAY, headers=kind))
                    status, _, body = await wire.answer()
                    answers.add((status, body))
            assert len(answers) == 1
            assert answers.pop()[0] == 400

    run(test())


def test_outer_headers_steer_nothing() -> None:
    """Model, version, tenant, priority and credentials outside of the seal are not even seen."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            outer = "".join(
                f"{name}: outside\r\n"
                for name in ("x-tenant", "authorization", "x-api-key", "cookie", "explain", "x-model", "date")
            )
            inner = bhttp.render_request(message(b"/predictions/echo", b"q", (b"x-mine", b"1")))
            sealed, opener = seal_request(KeyConfig.parse(gateway.key_config), inner)
            target = paths.GATEWAY + "?model=other&version=9"
            await wire.send(post(sealed, target, headers=WHOLE + outer + "priority: u=0\r\n"))
            status, _, raw = await wire.answer()
            assert (status, bhttp.parse_response(opener.open(raw)).content) == (200, b"q")
            (job,) = end.model.jobs
            assert not any(value == b"outside" for _, value in job.headers)
            assert (job.query, job.priority) == (b"", 3)
            streamed, reader = seal_stream(gateway, message(b"/x", b"q"))
            await wire.send(post(streamed, target, headers=CHUNKED + outer))
            _, content = open_stream(reader, (await wire.answer())[2])
            assert content == b"cold q"
            assert not any(value == b"outside" for _, value in end.api.handled[-1].headers)

    run(test())


def test_stripped_outer_headers() -> None:
    """A relay may take every other header away; without the content type nothing is opened."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            inner = bhttp.render_request(message(b"/predictions/echo", b"q"))
            sealed, _ = seal_request(KeyConfig.parse(gateway.key_config), inner)
            await wire.send(post(sealed, paths.GATEWAY))
            assert (await wire.answer())[0] == 415
            await wire.send(post(sealed, paths.GATEWAY, headers=WHOLE))
            assert (await wire.answer())[0] == 200

    run(test())


def test_ten_thousand_half_open_streams() -> None:
    """So many requests that never end keep no more than their share, and a new one is told to come later."""

    async def test() -> None:
        api = FakeApi()
        gateway = Gateway.generate()
        api.gateway = GatewayEndpoint(gateway, api.handle_sealed)
        app = AsgiApp(api, Way.PLAIN, body_timeout_s=60)  # type: ignore[arg-type]
        begin, _ = seal_stream(gateway, message(content=b"x" * 3000), piece=1000)
        scope = {
            "type": "http", "method": "POST", "path": paths.GATEWAY, "query_string": b"",
            "headers": [(b"content-type", b"message/ohttp-chunked-req")],
        }  # fmt: skip
        statuses: list[int] = []

        async def half_open() -> None:
            given = iter([{"type": "http.request", "body": begin[:20], "more_body": True}])

            async def receive() -> dict[str, Any]:
                for event in given:
                    return event
                await asyncio.sleep(3600)
                return {"type": "http.disconnect"}

            async def send(event: Any) -> None:
                if "status" in event:
                    statuses.append(event["status"])

            await app(dict(scope), receive, send)

        tasks = [asyncio.create_task(half_open()) for _ in range(10_000)]
        while len(statuses) < 10_000 - MAX_UPLOADS:
            await asyncio.sleep(0.05)
        assert set(statuses) == {503}
        assert api.gateway.uploads.count == MAX_UPLOADS
        assert (await app.api.handle(Request("GET", "/x", b"", [], b""), Way.OPEN)).status == 200
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (api.gateway.uploads.count, api.gateway.uploads.held_bytes) == (0, 0)

    run(test())


def test_slow_stream_ends() -> None:
    """A stream that does not go on is ended at the time limit of bodies."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN, body_timeout_s=0.5) as end:
            gateway, wire = attach(end), await end.connect()
            sealed, _ = seal_stream(gateway, message())
            head = (
                f"POST {paths.GATEWAY} HTTP/1.1\r\nhost: a\r\n{CHUNKED}content-length: {len(sealed)}\r\n\r\n"
            )
            await wire.send(head.encode() + sealed[:60])
            assert (await wire.answer())[0] == 408
            assert end.api.gateway.uploads.count == 0

    run(test())


def test_memory_of_all_streams_together() -> None:
    """What half-open requests hold together is bounded; over it, a request is refused under its seal."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            end.api.gateway.uploads = Uploads(max_bytes=1000)
            head, _ = await ask_stream(wire, gateway, message(content=b"x" * 2000))
            assert head.status == 503
            assert end.api.gateway.uploads.held_bytes == 0

    run(test())


def test_content_over_the_limit() -> None:
    """The limit of bodies holds for what is inside, and the refusal is sealed."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end, max_request_bytes=30_000), await end.connect()
            head, _ = await ask_stream(wire, gateway, message(content=b"x" * 40_000))
            assert head.status == 413
            assert end.api.handled == []

    run(test())


@contextlib.asynccontextmanager
async def guarded(folder: Path) -> AsyncIterator[tuple[Api, Gateway, str]]:
    """The real routes of a protected server without a model, its gateway, and a key that lets in."""
    settings = ServeSettings(mode="protected")
    api = Api(Registry(settings), settings)
    (folder / "requests.cedar").write_text(POLICY)
    key = make_api_key(folder / "keys", "one", now=datetime.now(UTC), groups=("staff",))
    api.use(AccessControl(WatchedPolicy(folder / "requests.cedar"), api_keys=folder / "keys"))
    gateway = Gateway.generate()
    endpoint = GatewayEndpoint(gateway, api.handle_sealed)

    async def no_evidence(_: Request) -> Response:
        return Response(500, [], b"")

    api.attach(evidence=no_evidence, gateway=endpoint)
    yield api, gateway, key


def test_credential_counts_inside_only(tmp_path: Path) -> None:
    """A credential outside of the seal lets nobody in; the same one inside does, and over TLS it does not."""

    async def sealed(api: Api, gateway: Gateway, outer: str, inner: str, path: bytes) -> int:
        header = ((b"authorization", b"Bearer " + inner.encode()),) if inner else ()
        capsule, opener = seal_request(
            KeyConfig.parse(gateway.key_config), bhttp.render_request(message(path, b"x", *header))
        )
        headers = [(b"content-type", b"message/ohttp-req"), (b"authorization", f"Bearer {outer}".encode())]
        answer = await api.handle(Request("POST", paths.GATEWAY, b"", headers, capsule), Way.PLAIN)
        assert answer.status == 200
        return bhttp.parse_response(opener.open(await answer.whole())).status

    async def test() -> None:
        async with guarded(tmp_path) as (api, gateway, key):
            assert await sealed(api, gateway, key, "", b"/predictions/secret") == 403
            assert await sealed(api, gateway, key, "clk_wrong", b"/predictions/secret") == 401
            # Let in: that there is no such model is the next thing to be said.
            assert await sealed(api, gateway, "", key, b"/predictions/secret") == 404
            assert await sealed(api, gateway, "", key, b"/v2/models/secret/infer") == 404
            for other in (b"/predictions/public", b"/explanations/secret", b"/models", b"/metrics", b"/what",
                          b"/v2/models/other/infer", b"/v1/models/other:predict", b"/v2/models/secret",
                          b"/invocations?model_name=o"):  # fmt: skip
                assert await sealed(api, gateway, "", key, other) == 403, other
            direct = Request("POST", "/predictions/secret", b"", [(b"x-api-key", key.encode())], b"x")
            assert (await api.handle(direct, Way.TLS)).status == 403

    run(test())


def test_downgrade_to_plain_http(tmp_path: Path) -> None:
    """Without TLS nothing is answered that is not sealed or public, whatever credential comes with it."""

    async def test() -> None:
        async with guarded(tmp_path) as (api, _, key):
            headers = [(b"authorization", b"Bearer " + key.encode())]
            for path in ("/predictions/secret", "/models", "/metrics", "/v2/models/secret/infer", "/token"):
                answer = await api.handle(Request("POST", path, b"", headers, b"x"), Way.PLAIN)
                assert (answer.status, b"PlainHttpRefused" in await answer.whole()) == (403, True)
            assert (await api.handle(Request("GET", "/ping", b"", [], b""), Way.PLAIN)).status == 200

    run(test())


def test_policy_with_a_typo(tmp_path: Path) -> None:
    """A policy that does not fit the schema starts no server, and is not taken over by a running one."""
    path = tmp_path / "requests.cedar"
    for text in (
        "permit (principal, action, resource",
        'permit (principal, action == Action::"predcit", resource);',
        "permit (principal, action, resource) when { principal.tennant == 1 };",
        'permit (principal, action, resource) when { context.wya == "sealed" };',
    ):
        path.write_text(text)
        with pytest.raises(ConfigError):
            WatchedPolicy(path)
    path.write_text(POLICY)
    problems: list[ConfigError] = []
    policy = WatchedPolicy(path, on_problem=problems.append)
    before = policy.policy
    path.write_text(POLICY.replace("predict", "predcit"))
    assert not policy.refresh()
    assert (policy.policy, len(problems)) == (before, 1)


def _answer(content: bytes, _: Job) -> list[Answer]:
    return [Answer(200, TEXT, content)]


def test_padded_answers() -> None:
    """With padding, answers of different lengths are as long as their size class."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end, pad_answers=True), await end.connect()
            lengths = set()
            for size in (1, 50, 80):
                content = b"x" * size
                end.model.answer = functools.partial(_answer, content)
                inner = bhttp.render_request(message())
                sealed, opener = seal_request(KeyConfig.parse(gateway.key_config), inner)
                await wire.send(post(sealed, paths.GATEWAY, headers=WHOLE))
                _, _, raw = await wire.answer()
                opened = opener.open(raw)
                assert len(opened) == padded_bytes(len(opened))
                assert bhttp.parse_response(opened).content == content
                lengths.add(len(raw))
            assert len(lengths) == 1

    run(test())
