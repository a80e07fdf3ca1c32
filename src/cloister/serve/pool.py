"""The workers of one model: as many as wanted, each replaced when it ends, one kept warm in reserve."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from cloister.engines.schema import ModelSchema
from cloister.errors import CloisterError, ModelFailed, WorkerLost
from cloister.serve.log import log
from cloister.serve.memory_watch import available_bytes
from cloister.serve.model_config import ModelConfig
from cloister.serve.placement import Placement, count_gpus
from cloister.serve.process import WorkerProcess, WorkerSpec
from cloister.serve.seat import Seat, Worker, WorkerView, memory_bytes
from cloister.serve.stats import ModelStats
from cloister.serve.tmpfs import PrivateFolder, remove_folder

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 30.0
PATIENCE = 2
"""So many workers in a row may end before they are ready, and those who wait are not told yet."""
STEADY_S = 5.0
"""A worker that died after less than this is not replaced at once."""
MEMORY_MARGIN = 1.3
"""A worker that nobody asked for is started only where this many times its memory can be had."""


class Pool:
    """Starts and ends workers. What they are given is their supervisor's business."""

    def __init__(
        self,
        spec: WorkerSpec,
        config: ModelConfig,
        folders: PrivateFolder,
        stats: ModelStats,
        *,
        placement: Placement,
        warm_spare: bool,
        on_room: Callable[[], None],
        on_lost: Callable[[Seat], None],
        on_hopeless: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.config = config
        self.seats: list[Seat] = []
        """Workers that are given requests."""
        self.wanted = config.min_workers
        """How many of our own there should be; those from elsewhere come on top."""
        self._folders = folders
        self._stats = stats
        self._placement = placement
        self._warm_spare = warm_spare
        self._on_room = on_room
        self._on_lost = on_lost
        self._on_hopeless = on_hopeless
        self._clock = clock
        self.schema: ModelSchema | None = None
        """The model's inputs and outputs, as its workers know them; None where a handler decides."""
        self._sandbox = ""
        """What confines the workers here, all of them alike; empty before the first."""
        self._spares: list[Seat] = []
        self._leaving: set[Seat] = set()
        self._starting: dict[asyncio.Task[None], int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._indices: dict[Seat, int] = {}
        self._changed: list[asyncio.Future[None]] = []
        self._failures = 0
        self._backoff_s = 0.0
        self._failed: CloisterError | None = None
        self._closed = False

    @property
    def own(self) -> int:
        """How many workers of ours are ready."""
        return sum(not seat.remote for seat in self.seats)

    @property
    def starting(self) -> int:
        return len(self._starting)

    @property
    def sandbox(self) -> str:
        """What confines the workers; more than one text if those from elsewhere differ, empty without any."""
        states = {seat.worker.state for seat in self.seats if seat.remote} | {self._sandbox}
        return " | ".join(sorted(states - {""}))

    def holding(self) -> list[Seat]:
        """The workers that have requests, those that leave among them."""
        return [seat for seat in (*self.seats, *self._leaving) if seat.sent]

    def views(self) -> list[WorkerView]:
        """Every worker, for management."""
        listed = [(seat, "READY") for seat in self.seats]
        listed += [(seat, "SPARE") for seat in self._spares]
        listed += [(seat, "STOPPING") for seat in self._leaving]
        return [seat.view(status) for seat, status in listed]

    async def start(self) -> None:
        """Start the first workers, all at once.

        Raises:
            ModelFailed, WorkerLost: one could not be made ready.
        """
        self.reconcile()
        await self.settled()

    def scale(self, low: int, high: int) -> None:
        """Change the limits; workers are started or ended to be within them."""
        self.config = msgspec.structs.replace(self.config, min_workers=low, max_workers=max(low, high))
        self.wanted = min(max(low, self.wanted if low else 0), max(low, high))
        self._failures, self._backoff_s, self._failed = 0, 0.0, None
        self.reconcile()

    async def settled(self) -> None:
        """Wait until as many workers are ready as are wanted.

        Raises:
            ModelFailed, WorkerLost: a start failed meanwhile.
        """
        while not self._closed:
            if self._failed is not None:
                raise self._failed
            if self.own >= self.wanted and not any(not seat.remote for seat in self._leaving):
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._changed.append(waiter)
            await waiter

    def reconcile(self) -> None:
        """Start or end workers until there are as many as wanted."""
        if self._closed:
            return
        while self._spares and self.own < self.wanted:
            self._join(self._spares.pop())
        missing = self.wanted - self.own - len(self._starting)
        if missing <= 0 and self._spare_wanted():
            missing = 1
        for _ in range(missing):
            index = self._free_index()
            task = asyncio.get_running_loop().create_task(self._start_one(index))
            self._starting[task] = index
        surplus = self.own - self.wanted
        if surplus > 0:
            own = [seat for seat in self.seats if not seat.remote]
            for seat in sorted(own, key=lambda item: (len(item.sent), -item.id))[:surplus]:
                self.retire(seat)

    def retire(self, seat: Seat) -> None:
        """End a worker when it has answered what it has."""
        if seat in self.seats:
            self.seats.remove(seat)
        seat.leaving = True
        self._leaving.add(seat)
        task = asyncio.get_running_loop().create_task(self._let_go(seat))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def attach(self, worker: Worker) -> Seat:
        """Take in a worker from elsewhere; it is ready, and goes when its ``on_end`` is called."""
        seat = self._seat(worker, remote=True)
        worker.on_end = lambda _: self._ended(seat, lambda: None)
        self._join(seat)
        return seat

    async def close(self) -> None:
        """End all workers."""
        self._closed = True
        for task in (*self._starting, *self._tasks):
            task.cancel()
        for task in (*self._starting, *self._tasks):
            with contextlib.suppress(asyncio.CancelledError, CloisterError):
                await task
        await asyncio.gather(*(seat.worker.stop() for seat in (*self.seats, *self._spares, *self._leaving)))
        self._notify()

    def _seat(self, worker: Worker, *, remote: bool = False, gpu_id: int | None = None) -> Seat:
        seat = Seat(
            worker,
            self._stats,
            batch_size=self.config.batch_size,
            on_room=self._on_room,
            clock=self._clock,
            gpu_id=gpu_id,
            remote=remote,
            measures=not self.spec.protected,  # a value that a guest chooses would be a way out
        )
        worker.on_answers = seat.take_answers
        return seat

    async def _start_one(self, index: int) -> None:
        """One new worker, after a pause if the last ones failed."""
        task = asyncio.current_task()
        assert task is not None
        try:
            if self._backoff_s:
                await asyncio.sleep(self._backoff_s)
            seat = await self._hire(index)
        except Exception as error:  # noqa: BLE001 (whoever waits for the worker must hear of it)
            self._starting.pop(task, None)
            self._start_failed(error)
        except BaseException:
            self._starting.pop(task, None)
            raise
        else:
            self._starting.pop(task, None)
            if self.own < self.wanted:
                self._join(seat)
            elif self._warm_spare and not self._spares:
                self._spares.append(seat)
            else:
                self.retire(seat)
            self._notify()
            self.reconcile()

    async def _hire(self, index: int) -> Seat:
        config = self.config
        place = self._placement.take(own=config.cores, index=index, workers=max(1, config.max_workers))
        scratch = self._folders.make(self.spec.name)
        gpus = 0 if config.device_type == "cpu" else count_gpus()
        gpu_id = self._placement.take_gpu(gpus, own=config.device_ids, index=index)
        worker = WorkerProcess()
        seat = self._seat(worker, gpu_id=gpu_id)

        def clean_up() -> None:
            self._placement.give_back(place)
            self._placement.give_gpu_back(gpu_id)
            self._indices.pop(seat, None)
            remove_folder(scratch)

        worker.on_end = lambda _: self._ended(seat, clean_up)
        self._indices[seat] = index
        try:
            await worker.start(
                self.spec, scratch, timeout_s=config.startup_timeout_s or None, place=place, gpu_id=gpu_id
            )
            if self._sandbox and worker.state != self._sandbox:  # evidence speaks of all workers
                worker.kill("it is confined otherwise than the ones before")
                raise WorkerLost(f"worker of {self.spec.name}: {worker.reason}")
            self._sandbox = worker.state
            seat.widen(worker.capacity)
            if worker.schema is not None:
                self.schema = worker.schema
            if worker.ended:  # between its word that it is ready and this line
                raise WorkerLost(f"worker of {self.spec.name}: {worker.reason}")
            seat.load_s = time.time() - seat.started
        except BaseException:
            if not worker.pid:  # it never was a process, so nobody will say that it has ended
                clean_up()
            raise
        log.info("worker ready", model=self.spec.name, version=self.spec.version, pid=worker.pid)
        return seat

    def _join(self, seat: Seat) -> None:
        self.seats.append(seat)
        self._stats.workers = len(self.seats)
        seat.progress = self._clock()
        self._on_room()

    def _ended(self, seat: Seat, clean_up: Callable[[], None]) -> None:
        clean_up()
        known = seat in self.seats or seat in self._spares or seat in self._leaving
        if not known:
            return  # it never became ready; whoever started it knows
        leaving = seat in self._leaving
        for group in (self.seats, self._spares):
            if seat in group:
                group.remove(seat)
        self._leaving.discard(seat)
        self._stats.workers = len(self.seats)
        if not leaving and not self._closed:
            log.warning(
                "worker lost", model=self.spec.name, version=self.spec.version, reason=seat.worker.reason
            )
            self._stats.restarts += not seat.remote
            if time.time() - seat.started - seat.load_s < STEADY_S:
                self._back_off()
            else:
                self._failures, self._backoff_s = 0, 0.0
        # First another worker, which may be a spare that is ready now; then its requests.
        self.reconcile()
        self._on_lost(seat)
        self._notify()

    def _start_failed(self, error: Exception) -> None:
        log.error(
            "worker start failed",
            model=self.spec.name,
            version=self.spec.version,
            reason=type(error).__name__,
            pause_s=self._backoff_s,
        )
        self._back_off()
        self._failed = error if isinstance(error, CloisterError) else WorkerLost("no worker could be started")
        self._notify()
        self._failed = None
        # A process that was killed while it loaded says nothing of the next one; a handler that raises does.
        lasting = isinstance(error, ModelFailed) or self._failures > PATIENCE
        if lasting and not self.seats and not self._starting:
            self._on_hopeless("no worker could be started")
        self.reconcile()

    def _back_off(self) -> None:
        """The first failure costs no pause: whoever killed a worker by hand has another one at once."""
        self._failures += 1
        if self._failures > 1:
            self._backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures - 2, 20))

    async def _let_go(self, seat: Seat) -> None:
        """Wait for the answers of a worker that leaves, then end it."""
        deadline = self._clock() + self.config.response_timeout_s
        while seat.sent and self._clock() < deadline:
            await asyncio.sleep(0.01)
        await seat.worker.stop()
        if seat.remote:
            self._leaving.discard(seat)
        self._notify()

    def _notify(self) -> None:
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if waiter.done():
                continue
            if self._failed is not None:
                waiter.set_exception(self._failed)
            else:
                waiter.set_result(None)

    def has_memory(self) -> bool:
        """Whether there is memory for one more worker like those that there are."""
        need = max((memory_bytes(seat.worker.pid) for seat in self.seats if not seat.remote), default=0)
        return available_bytes() > MEMORY_MARGIN * need

    def _spare_wanted(self) -> bool:
        if not self._warm_spare or self._spares or self._starting or self.own < max(1, self.wanted):
            return False
        return self.has_memory()

    def _free_index(self) -> int:
        taken = {*self._indices.values(), *self._starting.values()}
        return next(index for index in range(len(taken) + 1) if index not in taken)
