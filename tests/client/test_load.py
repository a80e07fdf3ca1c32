"""A load test counts what ends within its time, successes and failures apart."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.client.aio import AsyncOhttpTransport
from cloister.client.load import Load, Plan, run_load, summarize, time_sealing
from cloister.client.requests import prediction
from cloister.errors import ConfigError
from cloister.ohttp import bhttp
from tests.fakes.sealed_service import SealedService

ASKED = prediction("echo", b"12345", None)


def load_of(answer: Callable[[httpx.Request], httpx.Response], plan: Plan) -> Load:
    """Of a service that answers at once, each time after 10 ms."""

    async def handle(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        return answer(request)

    async def run() -> Load:
        transport = httpx.MockTransport(handle)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await run_load(http, ASKED, plan)

    return asyncio.run(run())


def test_as_many_at_once_as_asked_for() -> None:
    """Never more, and the same request each time; the warm-up does not count."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    load = load_of(answer, Plan(concurrency=3, duration_s=0.3, warm_up_s=0.1))
    assert 0 < len(load.latencies_s) < len(seen)
    assert min(load.latencies_s) >= 0.01
    assert load.throughput_per_s <= 3 / 0.01
    assert {(request.url.path, request.content) for request in seen} == {("/predictions/echo", b"12345")}
    assert not load.errors


def test_errors_are_counted_by_status_and_kind() -> None:
    """Answers that are none, and no answers; neither has a latency."""
    statuses = iter([200, 503, 503, 0] + [404] * 1000)

    def answer(request: httpx.Request) -> httpx.Response:
        status = next(statuses)
        if not status:
            raise httpx.ReadError("gone", request=request)
        return httpx.Response(status)

    load = load_of(answer, Plan(concurrency=1, duration_s=0.5, warm_up_s=0))
    assert len(load.latencies_s) == 1
    assert (load.errors["503"], load.errors["TransportError"]) == (2, 1)
    assert load.errors["404"] > 1
    document = load.to_mapping()
    assert document["failed"] == sum(document["errors"].values()) == load.errors.total()


def test_nothing_answered() -> None:
    """There is no latency of nothing."""
    document = load_of(lambda _: httpx.Response(500), Plan(1, 0.05, 0)).to_mapping()
    assert (document["latency_ms"], document["throughput_per_s"], document["answered"]) == (None, 0, 0)


@pytest.mark.parametrize(
    "plan",
    [Plan(0), Plan(5000), Plan(1, 0), Plan(1, float("nan")), Plan(1, float("inf")), Plan(1, 1, -1)],
)
def test_plans_without_sense(plan: Plan) -> None:
    """Refused before anything is sent."""
    with pytest.raises(ConfigError):
        load_of(lambda _: pytest.fail("sent"), plan)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50))
def test_percentiles_are_in_order(latencies: list[float]) -> None:
    """Each is within the values, and none is below one of a smaller share."""
    found = summarize(latencies)
    assert found is not None
    ordered = [min(latencies) * 1e3, found["p50"], found["p90"], found["p99"], found["max"]]
    assert all(low <= high * (1 + 1e-9) for low, high in itertools.pairwise(ordered))
    assert found["max"] == pytest.approx(max(latencies) * 1e3)


def test_sealed_load(
    service: SealedService, platform: SimulatedPlatform, reference_values: ReferenceValues
) -> None:
    """One verification; every request sealed anew, over connections that are kept; refusals by status."""
    service.answer = lambda _: bhttp.Response(200 if len(service.requests) % 4 else 429)

    async def run() -> Load:
        transport = AsyncOhttpTransport(service.url, reference_values=reference_values, roots=[platform.root])
        async with httpx.AsyncClient(transport=transport, base_url=service.url) as http:
            return await run_load(http, ASKED, Plan(4, 0.4, 0))

    load = asyncio.run(run())
    assert load.latencies_s
    assert set(load.errors) == {"429"}
    assert service.evidence_given == 1
    assert len(service.connections) <= 4
    assert len(set(service.capsules)) == len(service.capsules) >= len(load.latencies_s) + load.errors["429"]
    assert 0 < time_sealing(service.identity().ohttp_key_config, service.url, ASKED) < 1
