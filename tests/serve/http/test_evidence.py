"""Evidence on request: one quote for one nonce, as long as what it binds stays."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import pytest

from cloister.attest.model import Endorsements, Evidence
from cloister.attest.service import ServiceIdentity
from cloister.errors import Overloaded, TransportError
from cloister.serve.http.errors import render_failure
from cloister.serve.http.evidence import KEPT_S, MAX_WAITING, EvidenceBusy, EvidenceEndpoint
from cloister.serve.http.messages import Request
from tests.serve.http.front_end import run


class CountingAttester:
    """Counts its quotes; can be made to fail."""

    scheme = "tdx"

    def __init__(self) -> None:
        self.quotes = 0
        self.broken = False

    def get_evidence(self, report_data: bytes) -> Evidence:
        self.quotes += 1
        if self.broken:
            raise TransportError("no quote")
        return Evidence(self.scheme, report_data)

    def get_endorsements(self) -> Endorsements:
        return NoEndorsements()


class NoEndorsements:
    """Nobody vouches."""

    def to_mapping(self) -> dict[str, Any]:
        return {}


def ask(nonce: int) -> Request:
    """A request for evidence."""
    text = base64.urlsafe_b64encode(nonce.to_bytes(32, "big")).rstrip(b"=")
    return Request("GET", "/.well-known/cloister/evidence", b"nonce=" + text, [], b"")


def identity(key: bytes = b"k") -> ServiceIdentity:
    """What is bound."""
    return ServiceIdentity(
        tls_spki=b"t",
        ohttp_key_config=key,
        settings_digest=bytes(48),
        policy_digest=bytes(48),
        callers_digest=bytes(48),
        models=(),
    )


def test_one_quote_for_one_nonce() -> None:
    """Asked again, or by many at once, for the same nonce, the server makes no second quote for a while."""

    async def test() -> None:
        attester, now, bound = CountingAttester(), [0.0], [identity()]
        endpoint = EvidenceEndpoint(attester, lambda: bound[0], clock=lambda: now[0])
        answers = await asyncio.gather(*(endpoint.answer(ask(1)) for _ in range(20)))
        assert len({answer.content for answer in answers}) == 1
        assert attester.quotes == 1
        await endpoint.answer(ask(2))
        assert attester.quotes == 2
        bound[0] = identity(b"another key")
        await endpoint.answer(ask(1))
        assert attester.quotes == 3
        now[0] = KEPT_S + 1
        await endpoint.answer(ask(1))
        assert attester.quotes == 4
        endpoint.close()

    run(test())


def test_a_failure_is_not_kept() -> None:
    """A quote that could not be made is tried again for the next who asks."""

    async def test() -> None:
        attester = CountingAttester()
        endpoint = EvidenceEndpoint(attester, identity)
        attester.broken = True
        with pytest.raises(TransportError):
            await endpoint.answer(ask(1))
        attester.broken = False
        assert (await endpoint.answer(ask(1))).status == 200
        endpoint.close()

    run(test())


def test_too_many_at_once() -> None:
    """Quotes are made one after the other; who comes too late is told at once."""

    async def test() -> None:
        endpoint = EvidenceEndpoint(CountingAttester(), identity)
        waiting = [asyncio.create_task(endpoint.answer(ask(n))) for n in range(MAX_WAITING + 5)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(result, Overloaded) for result in results) == 5
        endpoint.close()

    run(test())


class SlowAttester(CountingAttester):
    """Takes its time."""

    def __init__(self, quote_s: float) -> None:
        super().__init__()
        self.quote_s = quote_s
        self.at_once = self.most_at_once = 0

    def get_evidence(self, report_data: bytes) -> Evidence:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.quote_s)
        self.at_once -= 1
        return super().get_evidence(report_data)


def test_many_nonces_at_a_slow_quoting_service() -> None:
    """Many nonces at once: one quote at a time, a bounded queue, 503 with a time for the others."""

    async def test() -> None:
        attester = SlowAttester(0.02)
        endpoint = EvidenceEndpoint(attester, identity)
        waiting = [asyncio.create_task(endpoint.answer(ask(n))) for n in range(500)]
        lag_s = 0.0
        while not all(task.done() for task in waiting):
            began = time.monotonic()
            await asyncio.sleep(0.005)
            lag_s = max(lag_s, time.monotonic() - began)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        refused = [result for result in results if isinstance(result, EvidenceBusy)]
        assert len(refused) == 500 - MAX_WAITING == 500 - attester.quotes
        assert attester.most_at_once == 1
        assert lag_s < 1.0
        response = render_failure(refused[0])
        assert (response.status, int(response.header(b"retry-after")) >= 1) == (503, True)
        assert (await endpoint.answer(ask(1000))).status == 200
        endpoint.close()

    run(test())


def test_the_slower_the_quotes_the_shorter_the_queue() -> None:
    """Nobody waits for longer than the limit, and who must come again hears when."""

    async def test() -> None:
        now = [0.0]

        class Attester(CountingAttester):
            def get_evidence(self, report_data: bytes) -> Evidence:
                now[0] += 8.0
                return super().get_evidence(report_data)

        endpoint = EvidenceEndpoint(Attester(), identity, clock=lambda: now[0])
        await endpoint.answer(ask(0))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(endpoint.answer(ask(n))) for n in range(1, 11)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        refused = [result for result in results if isinstance(result, EvidenceBusy)]
        assert len(refused) == 6  # four are 32 s, which is over the limit of 30
        assert refused[0].retry_after_s == 32
        endpoint.close()

    run(test())


def test_what_nobody_waits_for_is_not_made() -> None:
    """Callers who leave take their place in the queue with them; one who stays keeps the bundle for all."""

    async def test() -> None:
        attester = SlowAttester(0.05)
        endpoint = EvidenceEndpoint(attester, identity)
        first = asyncio.create_task(endpoint.answer(ask(0)))
        leaving = [asyncio.create_task(endpoint.answer(ask(n))) for n in range(1, 31)]
        staying = asyncio.create_task(endpoint.answer(ask(1)))
        await asyncio.sleep(0.01)
        for task in leaving:
            task.cancel()
        assert [(await task).status for task in (first, staying)] == [200, 200]
        await asyncio.sleep(0.1)
        assert attester.quotes == 2
        assert endpoint._waiting == 0
        again = asyncio.create_task(endpoint.answer(ask(5)))
        assert (await again).status == 200
        endpoint.close()

    run(test())
