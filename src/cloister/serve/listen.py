"""Listening sockets, each with an uvicorn server, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import resource
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from cloister.errors import ConfigError
from cloister.serve.http.access_log import AccessLog
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.front import IDLE_S, Front
from cloister.serve.http.protocol import HotProtocol
from cloister.serve.tls import TlsKeys

if TYPE_CHECKING:
    from cloister.serve.http.api import Api

BACKLOG = 2048
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, slots=True)
class Listener:
    """One port, already bound, and what answers on it."""

    socket: socket.socket
    app: AsgiApp
    tls: TlsKeys | None = None

    @property
    def url(self) -> str:
        """Where people reach it."""
        name = self.socket.getsockname()
        if isinstance(name, str):
            return f"unix:{name}"
        host, port = name[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the process has one place for signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listeners:
    """All ports of a process, opened and closed together.

    Args:
        fronts: what decides about requests at each of them; empty leaves that to their applications' ``Api``.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        drain_s: float,
        access_log: AccessLog | None = None,
        fronts: Sequence[Front] = (),
    ) -> None:
        self._listeners = listeners
        self._fronts = fronts or [make_front(item.app) for item in listeners]
        for item, front in zip(listeners, self._fronts, strict=True):
            item.app.access_log = front.access_log = access_log
        self._servers = [
            _Server(_configure(item, front, drain_s))
            for item, front in zip(listeners, self._fronts, strict=True)
        ]
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Begin to accept connections, as many as the system lets this process have."""
        raise_file_limit()
        calm_collector()
        keep_large_buffers()
        for front in self._fronts:
            front.start()
        for server, item in zip(self._servers, self._listeners, strict=True):
            self._tasks.append(asyncio.create_task(server.serve(sockets=[item.socket])))
        while not all(server.started for server in self._servers):
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Accept nothing more, and let requests that are being answered finish."""
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks)
        for front in self._fronts:
            front.stop()


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not accept yet, so that a taken port is known before keys are fetched.

    Raises:
        ConfigError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return sock


def raise_file_limit() -> None:
    """Each connection is an open file: take as many as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # an unlimited hard limit is over the kernel's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calm_collector() -> None:
    """Let the garbage collector look at what a busy server makes, not at everything that it has.

    With thousands of connections a full collection takes longer than many requests; these leave no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def keep_large_buffers() -> None:
    """Let glibc reuse the memory of large bodies, where by default it returns each to the kernel.

    New pages cost more than sealing what they hold: 8 MiB are sealed four times as quickly without them.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def make_front(app: AsgiApp) -> Front:
    """What decides about requests at the port of ``app``, whose ``Api`` is the core's."""
    return Front(cast("Api", app.api), app.way, body_timeout_s=app.body_timeout_s)


def _configure(item: Listener, front: Front, drain_s: float) -> uvicorn.Config:
    config = uvicorn.Config(
        item.app,
        http=functools.partial(HotProtocol, front=front),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=int(drain_s),
    )
    config.load()
    config.ssl = item.tls.context() if item.tls else None
    return config
