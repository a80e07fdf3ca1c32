"""Stateful models: the requests of one sequence go to one worker, one after the other, in their order.

A sequence is named by a header. A request without one begins a new sequence, whose name its answer brings.
What the handler remembers of a sequence is in its worker: when that one ends the sequence is lost, and its
requests are answered so instead of being computed by a worker that knows nothing of it.

Source: pytorch/serve 0.12, docs/sequence_batching.md; InferenceRequestHandler.java (names that are given).
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable

from cloister.errors import Overloaded
from cloister.serve.frames import Headers
from cloister.serve.jobs import Answer, Job
from cloister.serve.model_config import ModelConfig
from cloister.serve.seat import Seat

SEQUENCE_ID = b"ts_request_sequence_id"
SEQUENCE_START = b"ts_request_sequence_start"
SEQUENCE_END = b"ts_request_sequence_end"
LOST = "Worker died, and with it what it knew of this sequence."


class Lane:
    """One sequence."""

    __slots__ = ("current", "name", "seat", "touched", "waiting")

    def __init__(self, name: bytes, now: float) -> None:
        self.name = name
        self.seat: Seat | None = None
        """The worker that knows it; None before its first request was given."""
        self.current: Job | None = None
        """The one of its requests that is with the worker, or about to be."""
        self.waiting: deque[Job] = deque()
        self.touched = now


class Sequences:
    """The open sequences of one model."""

    def __init__(self, config: ModelConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._lanes: dict[bytes, Lane] = {}
        self._ready: deque[tuple[Lane, Job]] = deque()

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def waiting(self) -> int:
        """How many requests no worker has yet."""
        ready = sum(not job.cancelled for _, job in self._ready)
        return ready + sum(not job.cancelled for lane in self._lanes.values() for job in lane.waiting)

    def put(self, job: Job, *, workers: int) -> None:
        """Queue a request in its sequence.

        Raises:
            Overloaded: too many sequences, or too many requests in this one.
        """
        now = self._clock()
        name = _find(job.headers, SEQUENCE_ID)
        named = bool(name)
        if not named:
            name = f"ts-seq-{uuid.uuid4()}".encode()
            job.headers = [*_without(job.headers), (SEQUENCE_ID, name), (SEQUENCE_START, b"true")]
        lane = self._lanes.get(name)
        if lane is None:
            self._make_room(max(1, workers))
            lane = self._lanes[name] = Lane(name, now)
        elif lane.current is not None and len(lane.waiting) >= max(1, self._config.max_sequence_queue):
            raise Overloaded("this sequence has as many requests waiting as it may have")
        if not named:
            job.deliver = _naming(name, job.deliver)
        ends = _find(job.headers, SEQUENCE_END).lower() == b"true"
        opened = lane
        job.after = lambda job: self._done(opened, job, ends=ends)
        if lane.current is not None:
            lane.waiting.append(job)
        else:
            lane.current = job
            self._ready.append((lane, job))

    def hand_out(self, seats: list[Seat], now: float) -> list[Job]:
        """Give what can be given to the workers; returns the requests whose time was out."""
        kept: deque[tuple[Lane, Job]] = deque()
        expired: list[Job] = []
        given: dict[Seat, list[Job]] = {}
        while self._ready:
            lane, job = self._ready.popleft()
            if job.cancelled:
                self._next(lane)
            elif job.deadline <= now:
                expired.append(job)
            elif lane.seat is None and not seats:
                kept.append((lane, job))
            else:
                # A worker that is on its way out still answers for the sequences that it has.
                seat = lane.seat or min(seats, key=lambda item: (self._load(item), item.id))
                if seat.room - len(given.get(seat, ())) > 0:
                    lane.seat = seat
                    given.setdefault(seat, []).append(job)
                else:
                    kept.append((lane, job))
        self._ready = kept
        for seat, jobs in given.items():
            seat.give(jobs, now)
        return expired

    def lose(self, seat: Seat) -> list[Job]:
        """Forget the sequences of a worker that has ended; returns their requests that waited."""
        lost: list[Job] = []
        for lane in [lane for lane in self._lanes.values() if lane.seat is seat]:
            lost += lane.waiting
            lane.waiting.clear()
            lost += [job for other, job in self._ready if other is lane]
            self._ready = deque(pair for pair in self._ready if pair[0] is not lane)
            del self._lanes[lane.name]
        return [job for job in lost if not job.cancelled]

    def take_expired(self, now: float) -> list[Job]:
        """Requests whose time is out while they wait, and an end to sequences that nobody goes on with."""
        expired = [job for _, job in self._ready if job.deadline <= now and not job.cancelled]
        self._ready = deque((x, job) for x, job in self._ready if job.deadline > now or job.cancelled)
        for lane in self._lanes.values():
            late = [job for job in lane.waiting if job.deadline <= now]
            expired += [job for job in late if not job.cancelled]
            for job in late:
                lane.waiting.remove(job)
        idle_s = self._config.sequence_max_idle_ms / 1000
        if idle_s:
            for lane in [x for x in self._lanes.values() if x.current is None and now - x.touched > idle_s]:
                del self._lanes[lane.name]
        return expired

    def take_all(self) -> list[Job]:
        """Every request that waits; all sequences end."""
        jobs = [job for _, job in self._ready]
        jobs += [job for lane in self._lanes.values() for job in lane.waiting]
        self._ready.clear()
        self._lanes.clear()
        return [job for job in jobs if not job.cancelled]

    def _make_room(self, workers: int) -> None:
        limit = max(1, self._config.max_sequences) * workers
        if len(self._lanes) < limit:
            return
        idle = [lane for lane in self._lanes.values() if lane.current is None]
        if not idle or self._config.sequence_max_idle_ms:
            raise Overloaded(f"{limit} sequences are open already")
        # Nobody said how long a sequence stays open, so the one that rested longest makes room.
        del self._lanes[min(idle, key=lambda lane: lane.touched).name]

    def _done(self, lane: Lane, job: Job, *, ends: bool) -> None:
        """A request is done with, one way or another: the next one of its sequence may go."""
        if lane.current is job:
            self._next(lane)
        if ends and lane.current is None:
            self._lanes.pop(lane.name, None)

    def _next(self, lane: Lane) -> None:
        lane.touched = self._clock()
        lane.current = None
        while lane.waiting:
            job = lane.waiting.popleft()
            if not job.cancelled:
                lane.current = job
                self._ready.append((lane, job))
                return

    def _load(self, seat: Seat) -> int:
        return sum(lane.seat is seat for lane in self._lanes.values())


def _naming(name: bytes, deliver: Callable[[Job, Answer], None]) -> Callable[[Job, Answer], None]:
    """``deliver`` for a request that began a sequence: its answer says the name."""

    def named(job: Job, answer: Answer) -> None:
        if answer.fault is None and job.parts <= answer.more:
            answer.headers = [*_without(answer.headers), (SEQUENCE_ID, name)]
        deliver(job, answer)

    return named


def _find(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _without(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [(name, value) for name, value in headers if name not in (SEQUENCE_ID, SEQUENCE_START)]
