"""What all connections of one port share: decisions about heads, the coarse clock, the sweep."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Protocol

from cloister.serve.http import paths
from cloister.serve.http.access_log import AccessLog
from cloister.serve.http.cors import find_origin
from cloister.serve.http.gateway import REQUEST_TYPE
from cloister.serve.http.heads import Head, HeadCache
from cloister.serve.http.render import Renderer
from cloister.serve.http.ways import Way

if TYPE_CHECKING:
    from cloister.serve.http.api import Api

SLICES = 64
"""Every tick looks at one part of the connections: at each one about once a second, so that no request needs
a timer, and never at many at once. Of ten thousand idle ones that is 160 in a tick, which takes 0.1 ms."""
TICK_S = 1 / SLICES
"""The clock's step when there are many connections."""
FEW, STEPS = 1024, 8
"""Up to so many connections, so many steps are taken at once: an idle server wakes up less often."""
ADMISSION_S = 1.0
"""How long a decision to let a head in is kept: a token that expires or is withdrawn is refused after it."""
IDLE_S = 75.0
"""A connection without a request in progress is closed after this."""
HEAD_S = 30.0
"""A head must be whole after this; body and answer have the server's request timeout."""


class Connection(Protocol):
    """What the sweep sees of a connection."""

    due: float
    """When to sweep it next."""

    def sweep(self, now: float) -> None:
        """Act on what has taken too long, and set ``due`` again."""


class Front:
    """One port's side of the hot path."""

    def __init__(self, api: Api, way: Way, *, body_timeout_s: float) -> None:
        self.api = api
        self.way = way
        self.body_timeout_s = body_timeout_s
        self.access_log: AccessLog | None = None
        self._slices: tuple[set[Connection], ...] = tuple(set() for _ in range(SLICES))
        self._ticks = itertools.count()
        self._places = itertools.cycle(range(SLICES))
        self.heads = HeadCache()
        self.held = api.held
        self.renderer = Renderer()
        self._generation = api.generation
        self.now = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the clock."""
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Stop the clock, and forget heads with what they hold."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.heads.clear()
        if self.access_log is not None:
            self.access_log.flush()

    @property
    def connections(self) -> int:
        """How many there are."""
        return sum(map(len, self._slices))

    def enter(self, connection: Connection) -> set[Connection]:
        """Take in a connection; it leaves by taking itself out of the set that is returned."""
        part = self._slices[next(self._places)]
        part.add(connection)
        return part

    def admits(self, head: Head) -> bool:
        """Whether ``head`` may take the hot path now. The other refuses what is to be refused."""
        if head.generation == self.api.generation and self.now < head.until:
            return head.sealed or head.target is not None
        return self._decide(head)

    def _decide(self, head: Head) -> bool:
        api = self.api
        head.generation = api.generation
        head.until = self.now + ADMISSION_S
        head.sealed = False
        head.target = None
        if head.body_bytes > api.body_limit(head.path) or api.refuse_early(self.way, head.path) is not None:
            return False
        if head.path == paths.GATEWAY:
            # A page's answer needs headers that the hot path does not write.
            page = api.cors.is_on and bool(find_origin(head.headers))
            head.sealed = head.method == "POST" and api.gateway is not None and _is_sealed(head) and not page
            return head.sealed
        supervisor, model_headers = api.hot(self.way, head.method, head.path, head.headers)
        if supervisor is None or api.admit(self.way, supervisor, head.headers, head.certificate) is not None:
            return False  # another request with this head may be on its way: its headers stay
        head.target, head.model_headers = supervisor, model_headers
        if api.counts:
            head.until = 0.0
        return True

    def _tick(self) -> None:
        steps = 1 if self.connections > FEW else STEPS
        self._timer = asyncio.get_running_loop().call_later(TICK_S * steps, self._tick)
        self.now = time.monotonic()
        for _ in range(steps):
            self._sweep(next(self._ticks) % SLICES, self.now)

    def _sweep(self, part: int, now: float) -> None:
        for connection in [item for item in self._slices[part] if item.due <= now]:
            connection.sweep(now)
        if part == 0:
            self.renderer.date_second()
            if self._generation != self.api.generation:
                # Heads hold models that may have gone, and credentials that may be good no more.
                self._generation = self.api.generation
                self.heads.clear()
            if self.access_log is not None:
                self.access_log.flush()


def _is_sealed(head: Head) -> bool:
    return any(
        name == b"content-type" and value.partition(b";")[0].strip().lower() == REQUEST_TYPE
        for name, value in head.headers
    )
