"""Tests of ``cloister.serve.remote.renewal``: a joined host proves itself again and again, both ways."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from cloister.attest.model import Evidence
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import CloisterError
from cloister.serve.remote.channel import Channel, RefusedByPeer
from cloister.serve.remote.messages import Challenge, FromFrontend, Ping, Proof, Refused, Renewal
from cloister.serve.remote.proof import make_proof
from cloister.serve.remote.renewal import Answers, Standing
from tests.serve.remote.sides import AgedAttester, attester, credentials, demands, make_platform
from tests.serve.remote.test_port import TIMEOUT_S, Frontend, frontend, join_as, run, until

MAX_AGE_S = 0.4


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """One platform for all tests."""
    return make_platform(tmp_path_factory.mktemp("platform") / "tee")


class Ageing(AgedAttester):
    """Up to date in its first proof only; every evidence that it gave is kept."""

    def __init__(self, platform: SimulatedPlatform, *, good: int) -> None:
        other = attester(platform)
        super().__init__(platform, mr_td=other._mr_td, mr_config_id=other._mr_config_id)
        self._fresh = other
        self._good = good
        self.given: list[Evidence] = []

    def get_evidence(self, report_data: bytes) -> Evidence:
        self.given.append(super().get_evidence(report_data))
        return self.given[-1]

    def get_endorsements(self) -> Any:
        fresh = len(self.given) <= self._good
        return self._fresh.get_endorsements() if fresh else super().get_endorsements()


async def work_for(there: Frontend, maker: Ageing, platform: SimulatedPlatform) -> str:
    """A host that answers challenges; returns why it ended."""
    own, wanted = credentials(maker), demands(platform)
    channel, _, transcript = await join_as(there, own, wanted)
    proofs = Answers(channel, Standing(transcript, own, wanted))
    tasks = [asyncio.create_task(work) for work in (obey(channel, proofs), proofs.keep(), beat(channel))]
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    error = done.pop().exception()
    assert isinstance(error, CloisterError)
    return error.message


async def obey(channel: Channel, proofs: Answers) -> None:
    """Pass on what belongs to the exchange."""
    kind: Any = FromFrontend
    while True:
        message: Any = await channel.receive(kind, limit=2 << 20, timeout_s=5)
        if isinstance(message, Refused):
            raise RefusedByPeer(message, "the frontend")
        if isinstance(message, Challenge | Proof):
            proofs.take(message)


async def beat(channel: Channel) -> None:
    """The heartbeat."""
    while True:
        channel.send(Ping())
        await asyncio.sleep(TIMEOUT_S / 4)


def test_proves_itself_anew(platform: SimulatedPlatform) -> None:
    """Every proof is new evidence over new nonces, on both sides, and the host stays joined."""
    mine, theirs = Ageing(platform, good=99), Ageing(platform, good=99)

    async def work() -> None:
        async with frontend(credentials(theirs), demands(platform), max_age_s=MAX_AGE_S) as there:
            task = asyncio.create_task(work_for(there, mine, platform))
            await until(lambda: len(mine.given) >= 4 and len(theirs.given) >= 3)
            assert len(there.port.hosts) == 1
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    run(work)
    raw = [item.raw for item in (*mine.given, *theirs.given)]
    assert len(set(raw)) == len(raw)


def test_host_that_is_outdated_meanwhile(platform: SimulatedPlatform) -> None:
    """A host whose platform has become outdated since it joined is refused, and told why."""

    async def work() -> None:
        own = credentials(attester(platform))
        async with frontend(own, demands(platform), max_age_s=MAX_AGE_S) as there:
            reason = await work_for(there, Ageing(platform, good=1), platform)
            assert "refuses" in reason
            assert "OutOfDate" in reason
            await until(lambda: not there.port.hosts)

    run(work)


def test_frontend_that_is_outdated_meanwhile(platform: SimulatedPlatform) -> None:
    """A host leaves a frontend that cannot prove itself any more."""

    async def work() -> None:
        own = credentials(Ageing(platform, good=1))
        async with frontend(own, demands(platform), max_age_s=MAX_AGE_S) as there:
            reason = await work_for(there, Ageing(platform, good=99), platform)
            assert "refuses" not in reason
            assert "OutOfDate" in reason

    run(work)


def test_silent_host(platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that goes on working but does not answer a challenge is lost."""
    monkeypatch.setattr("cloister.serve.remote.renewal.PROOF_S", 0.5)

    async def work() -> None:
        own, wanted = credentials(attester(platform)), demands(platform)
        async with frontend(own, wanted, max_age_s=MAX_AGE_S) as there:
            channel, _, _ = await join_as(there, own, wanted)
            task = asyncio.create_task(beat(channel))
            await until(lambda: there.port.hosts)
            await until(lambda: not there.port.hosts)
            task.cancel()

    run(work)


def test_replayed_renewal(platform: SimulatedPlatform) -> None:
    """The proof of the start does not answer a later challenge."""

    async def work() -> None:
        own, wanted = credentials(attester(platform)), demands(platform)
        async with frontend(own, wanted, max_age_s=MAX_AGE_S) as there:
            channel, _, transcript = await join_as(there, own, wanted)
            old = make_proof(transcript, "worker", own)
            try:
                with pytest.raises(RefusedByPeer, match="another connection"):
                    await answer_each(channel, Renewal(transcript.worker_nonce, old))
            finally:
                channel.abort()

    run(work)


async def answer_each(channel: Channel, renewal: Renewal) -> None:
    """Answer every challenge with the same."""
    kind: Any = FromFrontend
    while True:
        channel.send(Ping())
        message: Any = await channel.receive(kind, limit=2 << 20, timeout_s=5)
        if isinstance(message, Challenge):
            channel.send(renewal)
        if isinstance(message, Refused):
            raise RefusedByPeer(message, "the frontend")
