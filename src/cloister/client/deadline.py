"""A limit of the whole time of a blocking request: httpx limits each read only, and a server may drip.

Evidence is fetched from somebody who is not trusted yet. At the deadline the request's connection is shut
down, in whatever it waits, and the request fails.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from types import TracebackType
from typing import Any, Self

_MADE = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class Deadline:
    """Hands its ``trace`` to httpx as an extension of the same name.

    Raises:
        TimeoutError: in place of the error that the shutdown caused.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._over = False
        self._sockets: list[socket.socket] = []

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Takes down which sockets the request uses."""
        if event not in _MADE:
            return
        plain = info["return_value"].get_extra_info("socket")
        # A duplicate: TLS takes the file descriptor away from the socket object that it is started on.
        copy = socket.socket(fileno=os.dup(plain.fileno()))
        with self._lock:
            self._sockets.append(copy)
        if self._over:
            self._end()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for copy in self._sockets:
                copy.close()
            self._sockets.clear()
        if self._over and isinstance(error, Exception):
            raise TimeoutError from error

    def _end(self) -> None:
        with self._lock:
            self._over = True
            for copy in self._sockets:
                with contextlib.suppress(OSError):
                    copy.shutdown(socket.SHUT_RDWR)
