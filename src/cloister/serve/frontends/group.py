"""All frontend processes of a server: how many, started and drained together, replaced when one ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from cloister.errors import ConfigError, TransportError
from cloister.serve.frontends.frames import PortSpec, Start
from cloister.serve.frontends.process import FrontendProcess
from cloister.serve.frontends.sockets import share_port
from cloister.serve.http.access_log import AccessLog
from cloister.serve.http.held import HeldBodies
from cloister.serve.http.ways import Way
from cloister.serve.listen import Listener, make_front
from cloister.serve.log import log
from cloister.settings import ServeSettings

MAX_FRONTENDS = 64
CORES_EACH = 8
MOST_BY_CORES = 4
"""With ``serve.frontends = 0``: one for so many cores, up to so many. The core process and the workers need
theirs, and more than four hand over more than one core process takes."""
SILENT_S = 15
"""A frontend that says nothing for so long does not turn any more, and is replaced."""
LIVED_S = 5.0
"""One that ends sooner than this is replaced more slowly each time."""
RETRY_S = (0.1, 5.0)
"""The shortest and the longest wait before that."""
LEAVE_S = 5.0
"""How long past the drain's end a frontend may take to leave."""
KEPT_WAYS = frozenset((Way.MANAGEMENT, Way.METRICS))
"""These ports stay in the core: an operator reaches it when the frontends do not."""


def count_frontends(serve: ServeSettings) -> int:
    """How many processes take connections; 1 means the core itself does.

    Raises:
        ConfigError: a number that cannot be.
    """
    if not 0 <= serve.frontends <= MAX_FRONTENDS:
        raise ConfigError(f"serve.frontends is {serve.frontends}, expected 0 to {MAX_FRONTENDS}")
    if serve.frontends:
        return serve.frontends
    return max(1, min(MOST_BY_CORES, len(os.sched_getaffinity(0)) // CORES_EACH))


class Frontends:
    """The processes that serve ``listeners``.

    Raises:
        ConfigError: an address cannot be shared.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        serve: ServeSettings,
        *,
        count: int,
        drain_s: float,
        access_log: AccessLog | None = None,
    ) -> None:
        self._drain_s = drain_s
        self._start_s = serve.startup_timeout_s
        self._first = Start(
            ports=[_spec(item) for item in listeners],
            protected=serve.mode == "protected",
            max_request_bytes=serve.max_request_bytes,
            body_timeout_s=serve.request_timeout_s,
            drain_s=drain_s,
            log_level=serve.log_level,
            traced=bool(serve.otel_endpoint),
            max_unfinished_bytes=HeldBodies(serve.max_unfinished_bytes).max_bytes // count,
            cors=(serve.cors_origin, serve.cors_methods, serve.cors_headers),
        )
        self._fronts = [make_front(item.app) for item in listeners]
        for front in self._fronts:
            front.access_log = access_log
        self._sockets: list[list[socket.socket]] = []
        try:
            for item in listeners:
                self._sockets.append(share_port(item.socket, count))
        except ConfigError:
            self._close_sockets()
            raise
        self._processes: list[FrontendProcess | None] = [None] * count
        self._tasks: set[asyncio.Task[None]] = set()
        self._delays = [0.0] * count
        self._since = [0.0] * count
        self._watch: asyncio.TimerHandle | None = None
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """Of those that accept connections."""
        return [item.pid for item in self._processes if item is not None and item.ready]

    async def start(self) -> None:
        """Start all of them.

        Raises:
            TransportError: one did not start; none is left then.
        """
        for front in self._fronts:
            front.start()
        results = await asyncio.gather(
            *(self._start_one(place) for place in range(len(self._processes))), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                await self.stop()
                raise result
        self._watch = asyncio.get_running_loop().call_later(1.0, self._look)

    async def stop(self) -> None:
        """Accept nothing more, let requests that are being answered finish, and see the processes off."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_sockets()
        running = [item for item in self._processes if item is not None]
        for process in running:
            process.drain()
        try:
            async with asyncio.timeout(self._drain_s + LEAVE_S):
                await asyncio.gather(*(process.wait() for process in running))
        except TimeoutError:
            for process in running:
                process.kill("it did not leave")
            await asyncio.gather(*(process.wait() for process in running))
        for front in self._fronts:
            front.stop()

    async def _start_one(self, place: int) -> None:
        process = FrontendProcess(
            self._fronts,
            [of_port[place] for of_port in self._sockets],
            on_end=lambda ended: self._ended(place, ended),
        )
        self._since[place] = asyncio.get_running_loop().time()
        await process.start(self._first, timeout_s=self._start_s)
        self._processes[place] = process

    def _ended(self, place: int, process: FrontendProcess) -> None:
        if self._processes[place] is not process:
            return  # it never came up; whoever started it hears of that
        self._processes[place] = None
        if not self._stopping:
            log.warning("frontend ended, starting another", frontend=place, reason=process.reason)
            task = asyncio.create_task(self._replace(place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _replace(self, place: int) -> None:
        loop = asyncio.get_running_loop()
        shortest, longest = RETRY_S
        while True:
            lived_s = loop.time() - self._since[place]
            self._delays[place] = (
                0.0 if lived_s > LIVED_S else min(max(shortest, 2 * self._delays[place]), longest)
            )
            await asyncio.sleep(self._delays[place])
            try:
                await self._start_one(place)
            except TransportError as error:
                log.error("no frontend in its place yet", frontend=place, reason=error.message)
            else:
                log.info("frontend is back", frontend=place)
                return

    def _look(self) -> None:
        """Once a second: end those that have fallen silent."""
        self._watch = asyncio.get_running_loop().call_later(1.0, self._look)
        for process in self._processes:
            if process is not None:
                # Counted in ticks: a machine that stood still has not let them speak either.
                process.silent_s += 1
                if process.silent_s > SILENT_S:
                    process.kill(f"it was silent for {SILENT_S} s")

    def _close_sockets(self) -> None:
        for of_port in self._sockets:
            for sock in of_port:
                sock.close()


def _spec(item: Listener) -> PortSpec:
    if item.tls is None:
        return PortSpec(-1, item.app.way.value)
    tls = item.tls
    return PortSpec(-1, item.app.way.value, tls.pem, tls.minimum, tls.client_ca, tls.client_required)
