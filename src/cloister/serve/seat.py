"""One worker as its supervisor sees it: what it was given, how fast it is, how much more it should get."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from cloister.errors import MalformedInput
from cloister.serve.frames import (
    FRAME_BYTES,
    Answers,
    Cancel,
    Frame,
    HeadDecoder,
    HeadEncoder,
    Predict,
    RequestItem,
    Stop,
)
from cloister.serve.jobs import Answer, Job
from cloister.serve.log import log
from cloister.serve.stats import ModelStats

AHEAD_S = 0.005
"""A quick worker holds about this much work ahead, in requests."""
SLOW_BATCH_S = 0.05
"""A worker whose batches take longer holds nothing ahead: the hand-over is nothing beside them."""
MAX_WINDOW = 256
_COPY_BYTES = 1 << 16
_MAX_BATCHES, _MAX_INFERENCE_S = 1 << 20, 1e6
"""What one frame may claim: a worker is a guest, and its numbers go into the metrics."""

_ids = itertools.count(9000)
_encode_head = HeadEncoder()


class Worker(Protocol):
    """A worker process here, or one elsewhere."""

    reason: str
    """Why it ended, in words without content."""
    state: str
    """What confines it, as evidence carries it."""
    round_trip_s: float
    """Time of the link to it, there and back; 0 here."""
    on_answers: Callable[[Frame[Answers]], None]
    on_end: Callable[[Any], None]

    @property
    def pid(self) -> int: ...

    def send(self, message: Predict | Cancel | Stop, bodies: Sequence[bytes] = ()) -> None: ...

    def kill(self, reason: str) -> None: ...

    async def stop(self) -> None: ...


class WorkerView(msgspec.Struct, frozen=True):
    """What management shows of a worker."""

    id: int
    pid: int
    status: str
    """``STARTING``, ``READY``, ``SPARE`` or ``STOPPING``."""
    started: float
    """Seconds since 1970."""
    gpu_id: int | None
    memory_bytes: int
    remote: bool = False
    load_s: float = 0.0
    """How long its model took to load."""


class Seat:
    """A worker and the requests that it has."""

    def __init__(
        self,
        worker: Worker,
        stats: ModelStats,
        *,
        batch_size: int,
        on_room: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        gpu_id: int | None = None,
        remote: bool = False,
        measures: bool = True,
    ) -> None:
        self.id = next(_ids)
        self.worker = worker
        self.gpu_id = gpu_id
        self.remote = remote
        self.started = time.time()
        self.load_s = 0.0
        """How long its model took to load."""
        self.sent: dict[int, Job] = {}
        """By number, in the order in which they were given."""
        self.leaving = False
        """It gets nothing more."""
        self.progress = clock()
        """When it last gave an answer, or got something to do while it had nothing."""
        self._stats = stats
        self._measures = measures
        self._batch_size = batch_size
        self._on_room = on_room
        self._clock = clock
        self._numbers = itertools.count(1)
        self._decode_head = HeadDecoder()
        self._job_s = AHEAD_S
        self._gap_s, self._gap_jobs = AHEAD_S, 1.0
        self.batch_s = 0.0
        """The handler's mean time for a batch in the last frame of answers."""

    @property
    def room(self) -> int:
        """How many more requests it should have."""
        batch = self._batch_size
        # A worker elsewhere is also to have what is on its way, or it would idle for the time of the link.
        away_s = self.worker.round_trip_s if self.remote else 0.0
        if self.batch_s > SLOW_BATCH_S + 10 * away_s:
            return batch - len(self.sent)
        ahead = int((AHEAD_S + away_s) / self._job_s)
        return batch + (batch if ahead < batch else min(ahead, MAX_WINDOW)) - len(self.sent)

    def widen(self, capacity: int) -> None:
        """Give it at least so many requests at a time."""
        self._batch_size = max(self._batch_size, min(capacity, MAX_WINDOW))

    def give(self, jobs: list[Job], now: float, *, alone: bool = False) -> None:
        """Hand over requests, in one frame, or several where their bodies are large."""
        sent, numbers = self.sent, self._numbers
        if not sent:
            self.progress = now
        heads: list[bytes] = []
        places: dict[int, int] = {}
        items: list[RequestItem] = []
        first = total = 0
        for index, job in enumerate(jobs):
            headers = job.headers
            place = places.get(id(headers))
            if place is None:
                place = places[id(headers)] = len(heads)
                heads.append(_encode_head(headers))
            job.number = number = next(numbers)
            job.owner = self
            sent[number] = job
            items.append(
                RequestItem(number, job.request_id, place, job.query, len(job.body), alone or job.alone)
            )
            job.given = now
            total += len(job.body)
            if total > FRAME_BYTES:
                self.worker.send(Predict(heads, items), [item.body for item in jobs[first : index + 1]])
                first, total, heads, places, items = index + 1, 0, [], {}, []
        if items:
            self.worker.send(Predict(heads, items), [job.body for job in jobs[first:]])
        self._stats.queue.observe_all([now - job.started for job in jobs])

    def give_up(self, job: Job) -> None:
        """A request's caller has gone: tell the worker, which may not have begun with it."""
        if job.number in self.sent:
            self.worker.send(Cancel([job.number]))

    def take_answers(self, frame: Frame[Answers]) -> None:
        """Deliver the answers of one frame to their callers.

        Raises:
            MalformedInput: they are not answers to what the worker has.
        """
        message, payload = frame
        now = self._clock()
        heads = [self._decode_head(head) for head in message.heads]
        size = len(payload)
        content: bytes | memoryview = payload.tobytes() if size <= _COPY_BYTES else payload
        sent, stats = self.sent, self._stats
        classes = stats.by_class
        held: list[float] = []
        took: list[float] = []
        if not message.items:  # a flood of these would cost the frontend more than the worker
            raise MalformedInput("a frame of answers without any")
        if 0 < message.batches <= _MAX_BATCHES and 0 <= message.inference_s <= _MAX_INFERENCE_S:
            self.batch_s = message.inference_s / message.batches
            stats.inference.observe(self.batch_s, message.batches)
        start = 0
        for item in message.items:
            end = start + item.body_bytes
            job = sent.get(item.number)
            if job is None or end > size or item.head >= len(heads):
                raise MalformedInput("an answer to no request, or one that does not fit its frame")
            body, start = content[start:end], end
            if item.more:
                job.parts += 1
            else:
                del sent[item.number]
                held.append(now - job.given)
                if job.after is not None:
                    job.after(job)
            if not job.cancelled:
                if not item.more:
                    classes[item.status // 100 if 100 <= item.status < 600 else 5] += 1
                    took.append(now - job.started)
                fault = item.fault
                if fault is not None and item.status >= 500:
                    fault = stats.faults.note(fault, guest=not self._measures)
                try:
                    job.deliver(job, Answer(item.status, heads[item.head], body, fault, item.more))
                except Exception as error:  # noqa: BLE001 (one caller's fault must not cost the others)
                    log.error("an answer could not be delivered", exception=type(error).__name__)
        if start != size:
            raise MalformedInput("frame lists fewer bytes of bodies than it carries")
        if message.metrics and self._measures:
            stats.measured.take(message.metrics)
        if held:
            self._note_pace(now - self.progress, len(held))
            stats.batch.observe_all(held)
            stats.request.observe_all(took)
        self.progress = now
        self._on_room()

    def _note_pace(self, gap_s: float, done: int) -> None:
        """So many answers came after so long."""
        if not self.remote:
            # Slower than AHEAD_S makes no difference, and would take long to be forgotten.
            each_s = min(AHEAD_S, max(1e-6, gap_s / done))
            self._job_s = 0.8 * self._job_s + 0.2 * each_s
            return
        # Over a link they come in bursts: how many in how long counts, not how far each is from the last.
        self._gap_s += 0.05 * (gap_s - self._gap_s)
        self._gap_jobs += 0.05 * (done - self._gap_jobs)
        self._job_s = min(AHEAD_S, max(1e-6, self._gap_s / self._gap_jobs))

    def view(self, status: str) -> WorkerView:
        """What management shows."""
        return WorkerView(
            self.id,
            self.worker.pid,
            status,
            self.started,
            self.gpu_id,
            0 if self.remote else memory_bytes(self.worker.pid),
            self.remote,
            self.load_s,
        )


def memory_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it is not there."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
