"""The OHTTP gateway on real sockets: sealed predictions take the hot path, other sealed requests do not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from cloister.ohttp import bhttp
from cloister.ohttp.capsule import KeyConfig, seal_request
from cloister.ohttp.gateway import Gateway
from cloister.ohttp.replay import render_date
from cloister.serve.frames import Fault
from cloister.serve.http import paths
from cloister.serve.http.gateway import GatewayEndpoint
from cloister.serve.http.ways import Way
from cloister.serve.jobs import Answer
from tests.serve.http.front_end import LIMIT, TEXT, FrontEnd, Wire, front_end, post, run

SEALED = "content-type: message/ohttp-req\r\n"


def attach(end: FrontEnd) -> Gateway:
    gateway = Gateway.generate()
    end.api.gateway = GatewayEndpoint(gateway, end.api.handle_sealed)
    return gateway


async def ask(
    wire: Wire,
    gateway: Gateway,
    path: bytes,
    content: bytes = b"",
    *,
    method: bytes = b"POST",
    late_s: float = 0,
) -> bhttp.Response:
    """One sealed exchange; the response inside."""
    date = render_date(datetime.now(UTC) - timedelta(seconds=late_s))
    headers = ((b"date", date), (b"priority", b"u=0"), (b"x-mine", b"1"))
    message = bhttp.render_request(bhttp.Request(method, b"https", b"host", path, headers, content))
    capsule, opener = seal_request(KeyConfig.parse(gateway.key_config), message)
    await wire.send(post(capsule, paths.GATEWAY, headers=SEALED))
    status, outer, sealed = await wire.answer()
    assert (status, outer["content-type"]) == (200, "message/ohttp-res")
    return bhttp.parse_response(opener.open(sealed))


def test_sealed_prediction_is_hot() -> None:
    """A sealed prediction goes straight to its model, with the headers and the urgency from inside."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            for _ in range(2):
                inner = await ask(wire, gateway, b"/predictions/echo?q=1", b"hello")
                assert (inner.status, inner.content) == (200, b"q=1hello")
                assert inner.header(b"content-type") == b"text/plain"
                assert inner.header(b"x-request-id") == end.model.jobs[-1].request_id.encode()
            assert end.api.handled == []
            assert end.model.stats.crypto.count == 2
            job = end.model.jobs[-1]
            assert ((b"x-mine", b"1") in job.headers, job.priority) == (True, 0)
            assert not any(name == b"content-length" for name, _ in job.headers)

    run(test())


def test_what_else_is_sealed() -> None:
    """Other sealed requests, refusals, faults and streams are answered under the seal too."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            assert (await ask(wire, gateway, b"/models", method=b"GET")).content == b"cold "
            assert (await ask(wire, gateway, b"/missing")).status == 404
            assert (await ask(wire, gateway, b"/predictions/echo", late_s=3600)).status == 400
            assert (await ask(wire, gateway, b"/predictions/echo", bytes(LIMIT + 1))).content[:5] == b"cold "
            end.model.full = True
            assert (await ask(wire, gateway, b"/predictions/echo")).status == 503
            end.model.full = False
            end.model.answer = lambda _: [Answer(503, [], b"", Fault("Prediction failed"))]
            assert b"Prediction failed" in (await ask(wire, gateway, b"/predictions/echo")).content
            end.model.answer = lambda _: [
                Answer(201, TEXT, b"a", more=True),
                Answer(200, [], b"b", more=True),
                Answer(200, [], b""),
            ]
            inner = await ask(wire, gateway, b"/predictions/echo")
            assert (inner.status, inner.content) == (201, b"ab")

    run(test())


def test_what_cannot_be_opened() -> None:
    """A capsule that cannot be opened, or comes twice, is a problem in the clear; the connection stays."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            await wire.send(post(bytes(100), paths.GATEWAY, headers=SEALED))
            status, headers, _ = await wire.answer()
            assert (status, headers["content-type"]) == (400, "application/problem+json")
            message = bhttp.render_request(
                bhttp.Request(b"GET", b"https", b"h", b"/ping", ((b"date", render_date(datetime.now(UTC))),))
            )
            capsule, _ = seal_request(KeyConfig.parse(gateway.key_config), message)
            await wire.send(post(capsule, paths.GATEWAY, headers=SEALED) * 2)
            assert [(await wire.answer())[0] for _ in range(2)] == [200, 409]
            await wire.send(post(capsule, paths.GATEWAY))
            assert (await wire.answer())[0] == 415

    run(test())


def test_caller_who_leaves_under_seal() -> None:
    """A sealed request that no worker answers ends with its caller."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            gateway, wire = attach(end), await end.connect()
            end.api.cold_delay_s = 30
            asking = asyncio.create_task(ask(wire, gateway, b"/models", method=b"GET"))
            while not end.api.handled:
                await asyncio.sleep(0.001)
            before = len(asyncio.all_tasks())
            asking.cancel()
            await wire.close()
            while len(asyncio.all_tasks()) > before - 2:
                await asyncio.sleep(0.001)

    run(test())
