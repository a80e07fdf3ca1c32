"""Keeps one version of a model served: its queue, its workers, and what becomes of requests when one dies.

Requests wait in one queue for each model. A worker that is idle gets what there is at once; while it works
requests gather, and it holds about one batch ahead, so that the rest can still expire, be overtaken by more
urgent ones, or move to another worker.

A worker that dies leaves its requests to another one, if the model's handler allows that they are computed
again. One of them may be what killed it: a request that was with two dead workers is run with nothing beside
it, and after a third it is answered 507.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable

from cloister.engines.schema import ModelSchema
from cloister.engines.spec import ServedSpec
from cloister.errors import MalformedInput, Overloaded, WorkerLost
from cloister.serve.direct.gate import DEFAULT_CHECK_BYTES, InputGate
from cloister.serve.frames import Headers
from cloister.serve.jobs import (
    DEFAULT_PRIORITY,
    NEVER,
    Answer,
    Job,
    answer_parts,
    failure,
    whole_answer,
)
from cloister.serve.model_config import ModelConfig
from cloister.serve.placement import Placement
from cloister.serve.pool import Pool
from cloister.serve.process import WorkerSpec
from cloister.serve.queue import JobQueue
from cloister.serve.scaling import Autoscaler
from cloister.serve.seat import Seat, Worker, WorkerView
from cloister.serve.sequences import LOST as SEQUENCE_LOST
from cloister.serve.sequences import SEQUENCE_END, Sequences
from cloister.serve.stats import ModelStats
from cloister.serve.suspects import SUSPECT_ATTEMPTS, Suspects
from cloister.serve.tmpfs import PrivateFolder

CHECK_S = 0.25
MAX_ATTEMPTS = 3
_DESCRIBE: Headers = [(b"describe", b"True")]


def _nobody(_: Job, __: Answer) -> None:
    """Takes the answer of a job whose caller has not said yet who does."""


class Supervisor:
    """One version of a model, served by its workers."""

    def __init__(
        self,
        spec: WorkerSpec,
        folders: PrivateFolder,
        config: ModelConfig,
        *,
        request_timeout_s: float,
        placement: Placement | None = None,
        warm_spare: bool = False,
        remote_only: bool = False,
        autoscaler: Autoscaler | None = None,
        direct: ServedSpec | None = None,
        check_bytes: int = DEFAULT_CHECK_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.stats = ModelStats(spec.name, spec.version)
        client_s = config.client_timeout_ms / 1000
        self._timeout_s = min(request_timeout_s, client_s) if client_s else request_timeout_s
        self._room = 0 if config.use_job_ticket else config.max_queue
        self._remote_only = remote_only
        """Workers come from elsewhere, one day: requests wait for them."""
        self._clock = clock
        self._queue = JobQueue()
        self._suspects = Suspects()
        self._flush_due = False
        self._stopping = False
        self._idle = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self._autoscaler = autoscaler or Autoscaler()
        self._pool = Pool(
            spec,
            config,
            folders,
            self.stats,
            placement=placement or Placement(),
            warm_spare=warm_spare,
            on_room=self._flush,
            on_lost=self._take_back,
            on_hopeless=self._give_up_waiting,
            clock=clock,
        )
        self._seats = self._pool.seats
        self._sequences = Sequences(config, clock) if config.stateful else None
        self.direct = direct
        """How an engine serves the model without a handler; None where it has one."""
        self._check_bytes = check_bytes
        self._gate: InputGate | None = None
        if direct is not None and direct.engine.form is not None:
            self._open_gate(direct.engine.form)

    @property
    def ready(self) -> bool:
        """Whether a worker is there to answer, or none is wanted at the moment."""
        return bool(self._seats) or (self._pool.wanted == 0 and not self._remote_only)

    @property
    def config(self) -> ModelConfig:
        """As registered, with the numbers of workers that were set since."""
        return self._pool.config

    @property
    def pid(self) -> int:
        """Process number of a worker; 0 while there is none."""
        return self._seats[0].worker.pid if self._seats else 0

    @property
    def sandbox(self) -> str:
        """What confines every worker, as evidence carries it; empty before the first one is ready."""
        return self._pool.sandbox

    @property
    def schema(self) -> ModelSchema | None:
        """The model's inputs and outputs; None where a handler decides what it takes."""
        return None if self._gate is None else self._gate.schema

    @property
    def queued(self) -> int:
        """How many requests no worker has yet."""
        return self._queue.count if self._sequences is None else self._sequences.waiting

    def current_stats(self) -> ModelStats:
        """``stats`` with its gauges as they are now."""
        self._count_waiting()
        return self.stats

    def workers(self) -> list[WorkerView]:
        """Every worker, for management."""
        return self._pool.views()

    async def start(self) -> None:
        """Start the first workers.

        Raises:
            ModelFailed, WorkerLost: they could not be made ready.
        """
        await self._pool.start()
        if self._pool.schema is not None:
            self._open_gate(self._pool.schema)
        self._watch = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    def submit(self, job: Job) -> None:
        """Queue one request; its ``deliver`` gets the answer.

        Raises:
            Overloaded: the queue is full, no worker is to be had, or the model is being stopped.
            MalformedInput: the inputs are not the model's, as far as that can be told here.
        """
        gate = self._gate
        if gate is not None:
            self._check_inputs(gate, job)
        now = self._clock()
        queue = self._queue
        if queue.count >= self._room or self._stopping or not self._seats:
            self._check_room(now)
        job.started = now
        if job.deadline > now + self._timeout_s:
            job.deadline = now + self._timeout_s
        job.owner = self
        if self._sequences is None:
            queue.put(job)
        else:
            self._put_in_sequence(job)
        if not self._flush_due:
            # At the end of this turn of the event loop, so that all requests of the turn share one frame.
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def ask(
        self,
        headers: Headers,
        query: bytes,
        body: bytes,
        *,
        deadline: float = NEVER,
        priority: int = DEFAULT_PRIORITY,
        request_id: str = "",
        alone: bool = False,
    ) -> Answer:
        """The whole answer to one request, for callers that are coroutines.

        Raises:
            Overloaded: as ``submit``.
        """
        job = Job(request_id, headers, query, body, _nobody, deadline, priority, alone)
        return await whole_answer(self.submit, job)

    def stream(
        self,
        headers: Headers,
        query: bytes,
        body: bytes,
        *,
        deadline: float = NEVER,
        priority: int = DEFAULT_PRIORITY,
        request_id: str = "",
        alone: bool = False,
    ) -> AsyncIterator[Answer]:
        """The parts of one answer as they come; raises as ``submit`` when the first is asked for."""
        job = Job(request_id, headers, query, body, _nobody, deadline, priority, alone)
        return answer_parts(self.submit, job)

    async def describe(self) -> Answer:
        """What the handler says of itself (TorchServe's ``customized=true``)."""
        once = [] if self._sequences is None else [(SEQUENCE_END, b"true")]  # it begins no sequence
        return await self.ask([*_DESCRIBE, *once], b"", b"", alone=True)

    async def scale(self, min_workers: int, max_workers: int, *, wait: bool = True) -> None:
        """Change how many workers there are.

        Raises:
            ModelFailed, WorkerLost: with ``wait``, one could not be made ready.
        """
        if self._remote_only and max_workers:
            raise WorkerLost("no worker is started here (serve.remote_only): add a worker host instead")
        self._pool.scale(min_workers, max_workers)
        if wait:
            await self._pool.settled()

    def attach(self, worker: Worker) -> None:
        """Take in a worker from elsewhere, whose model is loaded; it leaves by its ``on_end``."""
        self._pool.attach(worker)

    def detach(self, worker: Worker) -> None:
        """Give a worker from elsewhere nothing more; it is stopped when it has answered what it has."""
        for seat in list(self._seats):
            if seat.worker is worker:
                self._pool.retire(seat)

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more, and wait for the answers of what is there; whether they all came."""
        self._stopping = True
        if not self._seats and not self._pool.wanted and not self._remote_only:
            self._give_up_waiting("the model has no worker")  # and gets none any more
        if self._busy():
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        return not self._busy()

    def resume(self) -> None:
        """Take requests again after ``drain``."""
        self._stopping = False

    async def stop(self, *, drain_s: float) -> None:
        """Answer what is queued for at most ``drain_s``, then end the workers."""
        await self.drain(drain_s)
        if self._watch is not None:
            self._watch.cancel()
        holding = self._pool.holding()
        lost = [job for seat in holding for job in seat.sent.values()]
        for seat in holding:
            seat.sent.clear()
        self._fail([*lost, *self._take_all()], 503, "the server is stopping")
        await self._pool.close()

    def give_up(self, job: Job) -> None:
        """The caller of a job that waits here has gone."""
        if self._sequences is not None:
            return  # it is met when its turn comes
        (self._suspects if job.attempts >= SUSPECT_ATTEMPTS else self._queue).drop(job)

    # Between the queue and the workers.

    def _open_gate(self, schema: ModelSchema) -> None:
        pictures = self.direct is not None and self.direct.input.image is not None
        self._gate = InputGate(schema, most_bytes=self._check_bytes, pictures=pictures)

    def _check_inputs(self, gate: InputGate, job: Job) -> None:
        """Refuse inputs that are not the model's before a worker has them."""
        try:
            gate.check(job.headers, job.body)
        except MalformedInput:
            self.stats.count(400, 0.0)
            raise

    def _check_room(self, now: float) -> None:
        """The queue looks full, or something else is not as usual."""
        name, limit = self.spec.name, self._pool.config.max_queue
        if self._stopping:
            self._refuse(f"model {name} is being stopped")
        if not self._seats and not self._pool.config.max_workers and not self._remote_only:
            self._refuse(
                f'Model "{name}" has no worker to serve inference request.'
                " Please use scale workers API to add workers."
            )
        if not self._seats and not self._pool.wanted and not self._remote_only:
            self._pool.wanted = 1  # somebody asks, so one is needed now
            self._pool.reconcile()
        if self._pool.config.use_job_ticket:
            free = sum(not seat.sent for seat in self._seats)
            if self._queue.count >= free:
                self._refuse(f"model {name} has no worker that is free")
        if self._queue.count >= limit:
            self._fail_expired(now)
            if self._queue.count >= limit:
                self._refuse(f"model {name} has {limit} requests waiting already")

    def _put_in_sequence(self, job: Job) -> None:
        assert self._sequences is not None
        try:
            self._sequences.put(job, workers=len(self._seats))
        except Overloaded as error:
            self._refuse(error.message)

    def _refuse(self, reason: str) -> None:
        self.stats.overloaded += 1
        self.stats.count(503, 0.0)
        raise Overloaded(reason)

    def _flush(self) -> None:
        """Hand over what the workers have room for."""
        self._flush_due = False
        queue, seats = self._queue, self._seats
        if self._suspects.active:
            seats, expired = self._suspects.hand_out(seats, self._clock())
            self._expire(expired)
        if self._sequences is not None:
            expired = self._sequences.hand_out(seats, self._clock())
            if expired:
                self._expire(expired)
        elif queue.count and seats:
            now = self._clock()
            if len(seats) == 1:
                room = seats[0].room
                if room > 0:
                    self._give(seats[0], room, now)
            else:
                self._spread(seats, now)
        self._count_waiting()
        if self._stopping and not self._busy():
            self._idle.set()

    def _spread(self, seats: list[Seat], now: float) -> None:
        """Share out to several workers: the idle ones first, evenly."""
        queue = self._queue
        idle = [seat for seat in seats if not seat.sent]
        for place, seat in enumerate(idle):
            if not queue.count:
                return
            share = -(-queue.count // (len(idle) - place))
            self._give(seat, min(share, seat.room), now)
        busy = sorted((len(seat.sent), seat.id, seat) for seat in seats)
        for place, (_, _, seat) in enumerate(busy):
            if not queue.count:
                return
            share = -(-queue.count // (len(busy) - place))
            room = min(share, seat.room)
            if room > 0:
                self._give(seat, room, now)

    def _give(self, seat: Seat, most: int, now: float) -> None:
        jobs, expired = self._queue.take_some(most, now)
        if jobs:
            seat.give(jobs, now)
        if expired:
            self._expire(expired)

    def _count_waiting(self) -> None:
        waiting = self._queue.count if self._sequences is None else self._sequences.waiting
        self.stats.waiting = waiting + sum([len(seat.sent) for seat in self._seats])

    def _take_back(self, seat: Seat) -> None:
        """A worker has ended: its requests go to another, or are answered."""
        for job in seat.sent.values():
            if job.cancelled and job.after is not None:
                job.after(job)
        jobs = [job for job in seat.sent.values() if not job.cancelled]
        seat.sent.clear()
        now = self._clock()
        again: list[Job] = []
        suspects: list[Job] = []
        for job in jobs:
            job.attempts += 1
            if job.after is not None:
                self._finish(job, failure(507, SEQUENCE_LOST))
            elif not self._pool.config.idempotent or job.parts or job.attempts >= MAX_ATTEMPTS:
                self._finish(job, failure(507, "Worker died."))
            elif job.deadline <= now:
                self._finish(job, failure(507, "Worker died, and the request's time is out."))
            else:
                job.owner = self
                (suspects if job.attempts >= SUSPECT_ATTEMPTS else again).append(job)
        if self._sequences is not None:
            self._fail(self._sequences.lose(seat), 507, SEQUENCE_LOST)
        self.stats.retried += len(again) + len(suspects)
        self._queue.put_back(again)
        self._suspects.put_back(suspects)
        self._flush()

    def _give_up_waiting(self, reason: str) -> None:
        """No worker is there, and none could be started."""
        self._fail(self._take_all(), 503, reason)

    def _take_all(self) -> list[Job]:
        waiting = [] if self._sequences is None else self._sequences.take_all()
        return [*self._queue.take_all(), *self._suspects.take_all(), *waiting]

    # Once in a while.

    def _check(self) -> None:
        now = self._clock()
        self._fail_expired(now)
        limit_s = self._pool.config.response_timeout_s
        for seat in list(self._seats):
            if limit_s and seat.sent and now - seat.progress > limit_s:
                seat.worker.kill(f"it did not answer within {limit_s:g} s")
        self._scale_by_load(now)
        self._watch = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    def _scale_by_load(self, now: float) -> None:
        pool = self._pool
        wanted = self._autoscaler.wanted(
            now,
            workers=pool.wanted,
            busy=sum(bool(seat.sent) for seat in self._seats if not seat.remote),
            waiting=self._queue.count if self._sequences is None else self._sequences.waiting,
            low=pool.config.min_workers,
            high=pool.config.max_workers,
        )
        if wanted > pool.wanted and not pool.has_memory():
            return
        if wanted < pool.wanted and self._sequences:
            return  # what a worker remembers of a sequence would go with it
        if wanted != pool.wanted and not self._stopping:
            pool.wanted = wanted
            pool.reconcile()

    def _fail_expired(self, now: float) -> None:
        self._expire([*self._queue.take_expired(now), *self._suspects.take_expired(now)])
        if self._sequences is not None:
            self._expire(self._sequences.take_expired(now))

    def _expire(self, jobs: list[Job]) -> None:
        self.stats.expired += len(jobs)
        self._fail(jobs, 503, "no worker was free in the request's time")

    def _fail(self, jobs: Iterable[Job], status: int, reason: str) -> None:
        for job in jobs:
            self._finish(job, failure(status, reason))
        if not self._busy():
            self._idle.set()

    def _finish(self, job: Job, answer: Answer) -> None:
        """The server's own answer instead of a worker's."""
        job.owner = None
        if job.after is not None:
            job.after(job)
        if not job.cancelled:
            self.stats.count(answer.status, self._clock() - job.started)
            job.deliver(job, answer)

    def _busy(self) -> bool:
        waiting = self._queue.count or self._suspects.count or (self._sequences and self._sequences.waiting)
        return bool(waiting or self._pool.holding())
