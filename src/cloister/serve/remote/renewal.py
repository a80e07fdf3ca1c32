"""Proving anew on a connection that lasts: a verdict of weeks ago says little of a machine today.

Both keys of the connection stay; both nonces are new, so that all evidence is. The frontend begins, when its
verdict on the host gets old; the host judges the frontend's evidence in the same exchange.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from cloister.errors import TransportError
from cloister.serve.remote import messages
from cloister.serve.remote.channel import PROOF_S, Channel
from cloister.serve.remote.messages import Challenge, Proof, Renewal
from cloister.serve.remote.proof import Credentials, Demands, Transcript, judge_proof, make_proof

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Standing:
    """What was proved on a connection, and what it takes to prove and judge it anew."""

    transcript: Transcript
    own: Credentials
    demands: Demands


class Renewals:
    """The frontend's side, for one host."""

    def __init__(self, channel: Channel, standing: Standing, *, max_age_s: float) -> None:
        self._channel = channel
        self._standing = standing
        self._max_age_s = max_age_s
        self._answer: asyncio.Future[Renewal] | None = None

    async def keep(self) -> None:
        """Have the host prove itself anew before its last proof is too old; raises when it does not.

        Raises:
            VerificationError, PolicyDenied, MalformedInput: it is not what it was.
            TransportError: it did not answer.
        """
        while self._max_age_s > 0:
            # Hosts that joined together need not all prove themselves at the same moment.
            await asyncio.sleep(self._max_age_s * random.uniform(0.7, 1.0))  # noqa: S311
            await self._renew()
        await asyncio.Event().wait()

    def take(self, renewal: Renewal) -> None:
        """The host has answered; one that was not asked is not listened to."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(renewal)

    async def _renew(self) -> None:
        standing = self._standing
        nonce = os.urandom(messages.NONCE_BYTES)
        self._answer = asyncio.get_running_loop().create_future()
        self._channel.send(Challenge(nonce))
        try:
            async with asyncio.timeout(PROOF_S):
                renewal = await self._answer
        except TimeoutError as error:
            raise TransportError(f"it did not prove itself anew within {PROOF_S:g} s") from error
        seen = replace(standing.transcript, frontend_nonce=nonce, worker_nonce=renewal.nonce)
        await asyncio.to_thread(
            judge_proof, renewal.proof, seen, "worker", standing.demands, datetime.now(UTC)
        )
        self._channel.send(await asyncio.to_thread(make_proof, seen, "frontend", standing.own))


class Answers:
    """The host's side."""

    def __init__(self, channel: Channel, standing: Standing) -> None:
        self._channel = channel
        self._standing = standing
        self._messages: asyncio.Queue[Challenge | Proof] = asyncio.Queue(maxsize=4)

    def take(self, message: Challenge | Proof) -> None:
        """Something of the exchange has come.

        Raises:
            TransportError: more than the exchange has.
        """
        try:
            self._messages.put_nowait(message)
        except asyncio.QueueFull as error:
            raise TransportError("it asks for evidence again and again") from error

    async def keep(self) -> None:
        """Answer each challenge, and judge the proof that follows.

        Raises:
            VerificationError, PolicyDenied, MalformedInput: the frontend is not what it was.
            TransportError: it does not prove itself.
        """
        while True:
            seen = await self._answer(await self._next(Challenge, None))
            proof = await self._next(Proof, PROOF_S)
            await asyncio.to_thread(
                judge_proof, proof, seen, "frontend", self._standing.demands, datetime.now(UTC)
            )

    async def _answer(self, challenge: Challenge) -> Transcript:
        nonce = os.urandom(messages.NONCE_BYTES)
        seen = replace(self._standing.transcript, frontend_nonce=challenge.nonce, worker_nonce=nonce)
        proof = await asyncio.to_thread(make_proof, seen, "worker", self._standing.own)
        self._channel.send(Renewal(nonce, proof))
        return seen

    async def _next(self, kind: type[Kind], timeout_s: float | None) -> Kind:
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._messages.get()
        except TimeoutError as error:
            raise TransportError(f"it did not prove itself anew within {PROOF_S:g} s") from error
        if not isinstance(message, kind):
            raise TransportError("it proves itself when it was not asked")
        return message
