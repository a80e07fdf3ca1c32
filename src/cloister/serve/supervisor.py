"""Keeps a model served: its queue, its worker, and a new worker when that one dies.

Requests wait in one queue for each model. Whenever the worker has room, all that fit go to it in one frame;
how many it may hold depends on how fast it answers, so that a slow model's requests stay in the queue, where
they can still expire or move to another worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import time
from collections import deque
from collections.abc import Callable

from cloister.errors import CloisterError, MalformedInput, ModelFailed, Overloaded, WorkerLost
from cloister.serve.frames import AnswerItem, Answers, Frame, Headers, Predict, RequestItem, split_payload
from cloister.serve.log import log
from cloister.serve.process import WorkerProcess, WorkerSpec
from cloister.serve.stats import ModelStats
from cloister.serve.tmpfs import PrivateFolder

WINDOW_S = 0.005
"""A worker holds about this much work ahead."""
MAX_WINDOW = 64
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 30.0
STEADY_S = 5.0
"""A worker that died after less than this is not replaced at once."""
CHECK_S = 0.25

Answer = tuple[AnswerItem, bytes]


class _Job:
    """One request on its way: waiting, or with the worker."""

    __slots__ = ("answer", "body", "headers", "number", "query", "request_id", "started")

    def __init__(
        self, number: int, request_id: str, headers: Headers, query: bytes, body: bytes, started: float
    ) -> None:
        self.number = number
        self.request_id = request_id
        self.headers = headers
        self.query = query
        self.body = body
        self.started = started
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class Supervisor:
    """One version of a model, served by one worker."""

    def __init__(
        self,
        spec: WorkerSpec,
        folders: PrivateFolder,
        *,
        max_queue: int,
        request_timeout_s: float,
        startup_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.stats = ModelStats(spec.name, spec.version)
        self._folders = folders
        self._max_queue = max_queue
        self._timeout_s = request_timeout_s
        self._startup_timeout_s = startup_timeout_s
        self._clock = clock
        self._numbers = itertools.count(1)
        self._waiting: deque[_Job] = deque()
        self._sent: dict[int, _Job] = {}
        self._worker: WorkerProcess | None = None
        self._service_s = WINDOW_S
        self._progress = 0.0
        self._ready_since = 0.0
        self._backoff_s = FIRST_BACKOFF_S
        self._flush_due = False
        self._stopping = False
        self._idle = asyncio.Event()
        self._restarting: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        """Whether a worker is there to answer."""
        return self._worker is not None

    @property
    def pid(self) -> int:
        """Process number of the worker; 0 while there is none."""
        return self._worker.pid if self._worker is not None else 0

    async def start(self) -> None:
        """Start the first worker.

        Raises:
            ModelFailed, WorkerLost: it could not be made ready.
        """
        await self._start_worker()
        self._watch = asyncio.get_running_loop().call_later(CHECK_S, self._check_times)

    def submit(self, request_id: str, headers: Headers, query: bytes, body: bytes) -> asyncio.Future[Answer]:
        """Queue one request; the future gets its answer, or ``WorkerLost``.

        Raises:
            Overloaded: the queue is full, or the server is stopping.
        """
        if self._stopping:
            raise Overloaded(f"model {self.spec.name} is being stopped")
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"model {self.spec.name} has {self._max_queue} requests waiting already")
        job = _Job(next(self._numbers), request_id, headers, query, body, self._clock())
        self._waiting.append(job)
        self.stats.waiting += 1
        if not self._flush_due:
            # At the end of this turn of the event loop, so that all requests of the turn share one frame.
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)
        return job.answer

    async def stop(self, *, drain_s: float) -> None:
        """Answer what is queued for at most ``drain_s``, then end the worker."""
        self._stopping = True
        if self._waiting or self._sent:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._idle.wait()
        if self._watch is not None:
            self._watch.cancel()
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError, CloisterError):
                await self._restarting
        if self._worker is not None:
            await self._worker.stop()
        self._fail([*self._sent.values(), *self._waiting], "the server is stopping")

    async def _start_worker(self) -> None:
        folder = self._folders.make(self.spec.name)
        worker = WorkerProcess(
            on_answers=self._take_answers,
            on_end=lambda ended: self._worker_ended(ended, lambda: shutil.rmtree(folder, ignore_errors=True)),
        )
        await worker.start(self.spec, folder, timeout_s=self._startup_timeout_s)
        self._worker = worker
        self._ready_since = self._clock()
        self.stats.workers = 1
        log.info("worker ready", model=self.spec.name, version=self.spec.version, pid=worker.pid)
        self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        worker, room = self._worker, self._window() - len(self._sent)
        if worker is None or room <= 0 or not self._waiting:
            return
        items: list[RequestItem] = []
        bodies: list[bytes] = []
        if not self._sent:
            self._progress = self._clock()
        while self._waiting and len(items) < room:
            job = self._waiting.popleft()
            if job.answer.done():  # its caller has gone
                self.stats.waiting -= 1
                continue
            self._sent[job.number] = job
            items.append(RequestItem(job.number, job.request_id, job.headers, job.query, len(job.body)))
            bodies.append(job.body)
        if items:
            worker.send(Predict(items), bodies)

    def _window(self) -> int:
        return max(2, min(MAX_WINDOW, int(WINDOW_S / self._service_s)))

    def _take_answers(self, frame: Frame[Answers]) -> None:
        answers, payload = frame
        items = answers.items
        jobs = self._sent
        for item, body in zip(items, split_payload((i.body_bytes for i in items), payload), strict=True):
            job = jobs.pop(item.number, None)
            if job is None:
                raise MalformedInput("an answer to no request")
            self.stats.waiting -= 1
            if not job.answer.done():
                job.answer.set_result((item, bytes(body)))
        now = self._clock()
        if items:
            self._service_s = 0.8 * self._service_s + 0.2 * max(1e-6, (now - self._progress) / len(items))
            self._progress = now
        self._flush()
        if not jobs and not self._waiting:
            self._idle.set()

    def _worker_ended(self, worker: WorkerProcess, clean_up: Callable[[], None]) -> None:
        clean_up()
        if worker is not self._worker:
            return  # it never became ready; whoever started it knows
        self._worker = None
        self.stats.workers = 0
        lost = list(self._sent.values())
        self._sent.clear()
        self._fail(lost, "the worker that had the request ended")
        if self._stopping:
            self._idle.set()
            return
        log.warning("worker lost", model=self.spec.name, version=self.spec.version, reason=worker.reason)
        self._restarting = asyncio.get_running_loop().create_task(self._restart())

    async def _restart(self) -> None:
        if self._clock() - self._ready_since > STEADY_S:
            self._backoff_s = FIRST_BACKOFF_S
        else:
            await self._back_off()
        while True:
            self.stats.restarts += 1
            try:
                await self._start_worker()
                return
            except (ModelFailed, WorkerLost) as error:
                log.error("worker restart failed", model=self.spec.name, reason=type(error).__name__)
                self._fail(list(self._waiting), "no worker could be started")
                self._waiting.clear()
            await self._back_off()

    async def _back_off(self) -> None:
        await asyncio.sleep(self._backoff_s)
        self._backoff_s = min(MAX_BACKOFF_S, self._backoff_s * 2)

    def _check_times(self) -> None:
        """Once in a while: requests that waited too long, and a worker that makes no progress."""
        now = self._clock()
        expired: list[_Job] = []
        while self._waiting and now - self._waiting[0].started > self._timeout_s:
            expired.append(self._waiting.popleft())
        self._fail(expired, f"no worker was free within {self._timeout_s:g} s")
        if self._sent and self._worker is not None and now - self._progress > self._timeout_s:
            self._worker.kill(f"it did not answer within {self._timeout_s:g} s")
        self._watch = asyncio.get_running_loop().call_later(CHECK_S, self._check_times)

    def _fail(self, jobs: list[_Job], reason: str) -> None:
        for job in jobs:
            self.stats.waiting -= 1
            if not job.answer.done():
                job.answer.set_exception(WorkerLost(reason))
        if not self._sent and not self._waiting:
            self._idle.set()
