"""One joined worker host, as the frontend sees it: what it should run, what it runs, whether it is there."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from cloister.errors import CloisterError, TransportError
from cloister.serve.log import log
from cloister.serve.model_config import ModelConfig
from cloister.serve.remote import messages
from cloister.serve.remote.backend import RemoteWorker
from cloister.serve.remote.channel import Channel, printable
from cloister.serve.remote.messages import (
    Assign,
    Attach,
    Ended,
    FromHost,
    Leave,
    ModelKey,
    Offer,
    Ping,
    Pong,
    Renewal,
    Withdraw,
)
from cloister.serve.remote.plan import next_model
from cloister.serve.remote.renewal import Renewals

PLAN_S = 0.5
"""How often it is looked whether a host should run something else."""
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
MAX_ROUND_TRIP_S = 1.0
STEADY_S = 5.0
"""A worker that lasted less counts as a failed start."""


class ServedModel(Protocol):
    """What a host needs to know of a model of the frontend."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def workers(self) -> int: ...

    def attach(self, worker: RemoteWorker) -> None: ...

    def detach(self, worker: RemoteWorker) -> None: ...


Catalogue = Callable[[], Mapping[ModelKey, ServedModel]]


@dataclass(slots=True)
class Slot:
    """One worker of the host, from its assignment to its end."""

    number: int
    key: ModelKey
    ticket: bytes
    began: float
    worker: RemoteWorker | None = None


class JoinedHost:
    """Lives as long as the host's joining connection."""

    def __init__(
        self,
        channel: Channel,
        spki: bytes,
        offer: Offer,
        renewals: Renewals,
        catalogue: Catalogue,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = printable(offer.name) or channel.address
        self.spki = spki
        self.address = channel.address
        self._channel = channel
        self._offer = offer
        self._renewals = renewals
        self._catalogue = catalogue
        self._timeout_s = timeout_s
        self._clock = clock
        self._slots: dict[int, Slot] = {}
        self._numbers = iter(range(1, 1 << 62))
        self._pauses: dict[ModelKey, tuple[float, float]] = {}
        self._round_trips: deque[float] = deque(maxlen=8)
        self._leaving = False
        self._changed = asyncio.Event()
        self._asked_to_leave = asyncio.Event()

    @property
    def slots(self) -> list[Slot]:
        """What it runs or is to run."""
        return list(self._slots.values())

    async def serve(self) -> str:
        """Keep it working until it has left or is lost; returns why, in words."""
        works = (
            self._listen(),
            self._beat(),
            self._keep_planning(),
            self._let_go(),
            self._renewals.keep(),
        )
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reason = "it left"
            for task in done:
                error = task.exception()
                if isinstance(error, CloisterError) and not isinstance(error, TransportError):
                    self._channel.send(messages.Refused(error.message[:1000]))
                if error is not None:
                    reason = error.message if isinstance(error, CloisterError) else type(error).__name__
            return reason
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._lose_all()
            self._channel.close()

    def take_worker(self, attach: Attach, data: Channel) -> None:
        """A worker of this host has loaded its model and brings its connection.

        Raises:
            TransportError: it has ended already, or its model is not served any more.
        """
        slot = next((slot for slot in self._slots.values() if slot.ticket == attach.ticket), None)
        model = None if slot is None else self._catalogue().get(slot.key)
        if slot is None or slot.worker is not None or model is None or self._leaving:
            raise TransportError("no worker was asked for, or not any more")
        worker = RemoteWorker(host=self.name, pid=attach.pid, state=printable(attach.state))
        slot.worker = worker
        worker.round_trip_s = min(self._round_trips, default=0.0)
        slot.began = self._clock()
        data.hand_over(worker)
        model.attach(worker)
        worker.when_gone(lambda: self._gone(slot))
        log.info(
            "remote worker ready",
            host=self.name,
            model=slot.key.name,
            version=slot.key.version,
            pid=worker.pid,
        )

    def hold(self) -> None:
        """Give it nothing new to run."""
        self._leaving = True

    def say_goodbye(self) -> None:
        """Tell it that this frontend stops."""
        self.hold()
        self._channel.send(Leave())

    # What goes on as long as it is joined.

    async def _listen(self) -> None:
        kind: Any = FromHost
        while True:
            message: Any = await self._channel.receive(
                kind, limit=messages.MAX_CONTROL_BYTES, timeout_s=self._timeout_s
            )
            if isinstance(message, Pong):
                self._note_round_trip(self._clock() - message.sent)
            elif isinstance(message, Ended):
                self._take_end(message)
            elif isinstance(message, Leave):
                self._asked_to_leave.set()
            elif isinstance(message, Renewal):
                self._renewals.take(message)
            elif isinstance(message, Offer):
                self._offer = message
                self._changed.set()
            elif isinstance(message, messages.Refused):
                raise TransportError(f"it refuses this frontend: {printable(message.reason)}")

    async def _beat(self) -> None:
        while True:
            self._channel.send(Ping(self._clock()))
            await asyncio.sleep(self._timeout_s / 4)

    def _note_round_trip(self, seconds: float) -> None:
        """The quickest of the last ones is the link's: the others waited for something else too."""
        self._round_trips.append(min(MAX_ROUND_TRIP_S, max(0.0, seconds)))
        for slot in self.slots:
            if slot.worker is not None:
                slot.worker.round_trip_s = min(self._round_trips)

    async def _keep_planning(self) -> None:
        while True:
            self._plan()
            self._changed.clear()
            try:
                async with asyncio.timeout(PLAN_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _plan(self) -> None:
        if self._leaving:
            return
        served = self._catalogue()
        now = self._clock()
        for slot in self.slots:
            if slot.worker is None and slot.key not in served:
                del self._slots[slot.number]
                self._channel.send(Withdraw(slot.number))
        held = frozenset(key for key, (until, _) in self._pauses.items() if until > now)
        counts = {key: model.workers for key, model in served.items()}
        for slot in self._slots.values():
            if slot.worker is None and slot.key in counts:
                counts[slot.key] += 1
        while True:
            running = [slot.key for slot in self._slots.values()]
            key = next_model(
                slots=self._offer.slots, running=running, has=self._offer.digests, workers=counts, held=held
            )
            if key is None:
                return
            counts[key] += 1
            slot = Slot(next(self._numbers), key, os.urandom(messages.TICKET_BYTES), now)
            self._slots[slot.number] = slot
            config = msgspec.json.encode(served[key].config)
            self._channel.send(Assign(slot.number, key, slot.ticket, config))

    # Ends.

    def _take_end(self, ended: Ended) -> None:
        slot = self._slots.get(ended.slot)
        if slot is None:
            return
        reason = printable(ended.reason)
        if slot.worker is None or not slot.worker.stopping:
            log.warning("remote worker ended", host=self.name, model=slot.key.name, reason=reason)
        if slot.worker is not None:
            slot.worker.kill(reason)
        else:
            self._gone(slot)

    def _gone(self, slot: Slot) -> None:
        if self._slots.pop(slot.number, None) is None:
            return
        now = self._clock()
        if slot.worker is None or now - slot.began < STEADY_S:
            _, last = self._pauses.get(slot.key, (0.0, 0.0))
            pause = min(MAX_PAUSE_S, max(FIRST_PAUSE_S, 2 * last))
            self._pauses[slot.key] = (now + pause, pause)
        else:
            self._pauses.pop(slot.key, None)
        self._changed.set()

    async def _let_go(self) -> None:
        """It leaves: nothing new for it, and it stays until it has answered what it has."""
        await self._asked_to_leave.wait()
        self._leaving = True
        served = self._catalogue()
        for slot in self.slots:
            model = served.get(slot.key)
            if slot.worker is None or model is None:
                self._slots.pop(slot.number, None)
            else:
                model.detach(slot.worker)
        while self._slots:
            self._changed.clear()
            await self._changed.wait()
        self._channel.send(Leave())

    def _lose_all(self) -> None:
        for slot in self.slots:
            if slot.worker is not None:
                slot.worker.kill(f"its host {self.name} was lost")
        self._slots.clear()
