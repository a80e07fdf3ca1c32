"""Listening sockets, each with an uvicorn server, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

from cloister.errors import ConfigError
from cloister.serve.http.asgi import AsgiApp

BACKLOG = 2048
KEEP_ALIVE_S = 75


@dataclass(frozen=True, slots=True)
class Listener:
    """One port, already bound, and what answers on it."""

    socket: socket.socket
    app: AsgiApp
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Where people reach it."""
        host, port = self.socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the process has one place for signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listeners:
    """All ports of a server, opened and closed together."""

    def __init__(self, listeners: Sequence[Listener], *, drain_s: float) -> None:
        self._listeners = listeners
        self._servers = [_Server(_configure(item, drain_s)) for item in listeners]
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Begin to accept connections."""
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


def _configure(item: Listener, drain_s: float) -> uvicorn.Config:
    config = uvicorn.Config(
        item.app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(drain_s),
    )
    config.load()
    config.ssl = item.tls
    return config
