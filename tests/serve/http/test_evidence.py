"""Evidence on request: one quote for one nonce, as long as what it binds stays."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from cloister.attest.model import Endorsements, Evidence
from cloister.attest.service import ServiceIdentity
from cloister.errors import Overloaded, TransportError
from cloister.serve.http.evidence import KEPT_S, MAX_WAITING, EvidenceEndpoint
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
