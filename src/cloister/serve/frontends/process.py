"""The core's hold on one frontend process: start it, see it end, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import cloister
from cloister.errors import TransportError
from cloister.serve.frontends.desk import Desk
from cloister.serve.frontends.frames import Alive, Drain, Ready, Start
from cloister.serve.hardening import worker_environment
from cloister.serve.http.front import Front

# It runs the same files as the core, wherever these are, and finds nothing else by this path.
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import cloister; sys.path.pop(0); "
    "from cloister.serve.frontends.main import main; sys.exit(main())"
)

LOST_S = 1.0


class FrontendProcess:
    """One frontend from start to end.

    Args:
        fronts: the core's side of the ports.
        sockets: bound, one for each port.
    """

    def __init__(
        self,
        fronts: Sequence[Front],
        sockets: Sequence[socket.socket],
        *,
        on_end: Callable[[FrontendProcess], None],
    ) -> None:
        self._sockets = sockets
        self._on_end = on_end
        self._desk = Desk(fronts, on_word=self._hear, on_broken=self.kill, on_lost=self._lost)
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self.reason = ""
        """Why it ended, in words without content."""
        self.silent_s = 0
        """Seconds since it was heard last, as the core's own clock ticks."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def ready(self) -> bool:
        """Whether it accepts connections."""
        return self._ready.is_set() and not self._ended.is_set()

    async def start(self, first: Start, *, timeout_s: float) -> None:
        """Start the process and wait until it accepts connections.

        Raises:
            TransportError: it ended, or was not ready in time; it is gone then.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._process = _spawn(theirs, self._sockets)
            except OSError as error:
                ours.close()
                self._ended.set()
                raise TransportError(f"cannot start a frontend process: {error.strerror}") from error
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._process_ended)
        ours.setblocking(False)
        await loop.create_unix_connection(lambda: self._desk, sock=ours)
        ports = [
            msgspec.structs.replace(port, fd=sock.fileno())
            for port, sock in zip(first.ports, self._sockets, strict=True)
        ]
        self._desk.send(msgspec.structs.replace(first, ports=ports))
        try:
            await self._wait_ready(timeout_s)
        except BaseException:
            self.kill("its start was given up")
            await self._ended.wait()
            raise

    def drain(self) -> None:
        """Tell it to accept nothing more, and to leave when its requests are answered."""
        self._desk.send(Drain())

    def kill(self, reason: str) -> None:
        """End it now; with it go the requests of its connections."""
        if not self._ended.is_set() and self._process is not None and self._process.returncode is None:
            self.reason = self.reason or reason
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    async def wait(self) -> None:
        """Return when it is gone."""
        await self._ended.wait()

    async def _wait_ready(self, timeout_s: float) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._ended)]
        try:
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if self._ended.is_set():
            raise TransportError(f"a frontend process did not start: {self.reason}")
        if not self._ready.is_set():
            self.kill(f"it was not ready within {timeout_s:g} s")
            await self._ended.wait()
            raise TransportError(f"a frontend process did not start: {self.reason}")

    def _hear(self, word: Ready | Alive) -> None:
        self.silent_s = 0
        if isinstance(word, Ready):
            self._ready.set()

    def _lost(self) -> None:
        """Its connection is gone, as a rule because it is: then the process says better why."""
        asyncio.get_running_loop().call_later(LOST_S, self.kill, "it closed its connection")

    def _process_ended(self) -> None:
        assert self._process is not None
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()
        if not self.reason or code != -signal.SIGKILL:
            self.reason = _explain(code)
        self._ended.set()
        self._desk.close()
        self._on_end(self)


def _explain(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "?"
        return f"it ended with signal {-code} ({name})"
    return f"it ended with exit code {code}"


def _spawn(connection: socket.socket, sockets: Sequence[socket.socket]) -> subprocess.Popen[bytes]:
    """Start the interpreter, isolated as a worker's is. Its log goes where the core's goes."""
    parent = Path(cloister.__file__).resolve().parents[1]
    command = [sys.executable, "-I", "-B", "-c", _BOOTSTRAP, str(parent)]
    return subprocess.Popen(
        [*command, "--fd", str(connection.fileno()), "--parent", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        env=worker_environment(os.environ, home=Path("/"), threads=1),
        pass_fds=(connection.fileno(), *(sock.fileno() for sock in sockets)),
        start_new_session=True,
        umask=0o077,
    )
