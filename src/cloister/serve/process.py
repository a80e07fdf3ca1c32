"""The frontend's end of one worker process: start it, exchange frames, notice its death, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cloister
from cloister.errors import MalformedInput, ModelFailed, WorkerLost
from cloister.serve.frames import (
    Answers,
    Fault,
    Frame,
    FrameDecoder,
    FromWorker,
    Load,
    Loaded,
    LoadFailed,
    Predict,
    Stop,
    encode_frame,
)
from cloister.serve.hardening import worker_environment

# The worker runs the same files as the frontend, wherever these are, and finds nothing else by this path.
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import cloister; sys.path.pop(0); "
    "from cloister.serve.worker import main; sys.exit(main())"
)
MAX_ANSWER_BYTES = 1 << 28
"""All answers of one frame; a worker that sends more is ended."""
LEAVE_S = 5.0
TERMINATE_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every worker of one model is started with."""

    name: str
    version: str
    archive_fd: int
    """Open archive; the worker opens it anew."""
    protected: bool
    threads: int


class WorkerProcess(asyncio.Protocol):
    """One worker from start to end. ``on_answers`` and ``on_end`` are its only words to its supervisor."""

    def __init__(
        self,
        *,
        on_answers: Callable[[Frame[Answers]], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        self._on_answers = on_answers
        self._on_end = on_end
        self._decoder: FrameDecoder[FromWorker] = FrameDecoder(FromWorker, payload_limit=MAX_ANSWER_BYTES)  # type: ignore[arg-type]
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._name = ""
        self._show_text = False
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self.reason = "it ended"
        """Why it ended, in words without content."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self, spec: WorkerSpec, folder: Path, *, timeout_s: float) -> None:
        """Start the process and wait until its handler is loaded.

        Raises:
            ModelFailed: the handler could not be loaded.
            WorkerLost: the process ended, or did not get ready in time.
        """
        loop = asyncio.get_running_loop()
        self._name, self._show_text = spec.name, not spec.protected
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = _spawn(spec, folder, theirs)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._process_ended)
        ours.setblocking(False)
        await loop.create_unix_connection(lambda: self, sock=ours)
        self.send(
            Load(
                name=spec.name,
                version=spec.version,
                archive_fd=spec.archive_fd,
                folder=str(folder),
                protected=spec.protected,
            )
        )
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._loaded)
        except TimeoutError as error:
            self.kill(f"its model did not load within {timeout_s:g} s")
            await self._ended.wait()
            raise WorkerLost(f"worker of {spec.name}: {self.reason}") from error
        except BaseException:
            self.kill("its start was given up")
            await self._ended.wait()
            raise

    def send(self, message: Load | Predict | Stop, bodies: Sequence[bytes] = ()) -> None:
        """Write one frame. After the worker's end it goes nowhere; ``on_end`` has told the supervisor."""
        if self._transport is None or self._transport.is_closing():
            return
        parts = encode_frame(message, bodies)
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def kill(self, reason: str) -> None:
        """End the process now, with all processes that its handler started."""
        if not self._ended.is_set():
            self.reason = reason
            self._signal(signal.SIGKILL)

    async def stop(self) -> None:
        """Let it leave, then insist. Returns when it is gone."""
        self.reason = "the server stopped it"
        self.send(Stop())
        for signal_number, wait_s in ((None, LEAVE_S), (signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, None)):
            if signal_number is not None:
                self._signal(signal_number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ended.wait()
                return

    # The socket's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            for message, payload in self._decoder.feed(data):
                if isinstance(message, Answers):
                    self._on_answers((message, payload))
                elif not self._loaded.done():
                    self._finish_load(message)
                else:
                    raise MalformedInput("a second load message")
        except MalformedInput as error:
            self.kill(f"it broke the protocol: {error.message}")

    def connection_lost(self, exc: Exception | None) -> None:
        # A worker without its connection is of no use; the process's own end is what counts.
        self.kill(self.reason)

    def _finish_load(self, message: Loaded | LoadFailed) -> None:
        if isinstance(message, Loaded):
            self._loaded.set_result(None)
        else:
            text = describe_fault(message.fault, show_text=self._show_text)
            self._loaded.set_exception(ModelFailed(f"model {self._name}: {text}"))

    def _process_ended(self) -> None:
        assert self._process is not None
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._signal(signal.SIGKILL)  # what its handler has started
        code = self._process.wait()
        if self.reason == "it ended":
            self.reason = f"it ended with signal {-code}" if code < 0 else f"it ended with exit code {code}"
        if self._transport is not None:
            self._transport.abort()
        if not self._loaded.done():
            self._loaded.set_exception(WorkerLost(f"worker did not start: {self.reason}"))
            self._loaded.exception()  # seen, whether or not somebody still waits
        self._ended.set()
        self._on_end(self)

    def _signal(self, number: int) -> None:
        # The group exists as long as a process of it does; the leader's number is not reused before wait().
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def describe_fault(fault: Fault, *, show_text: bool) -> str:
    """One line for the caller, or for the operator at load: TorchServe's words, type and fingerprint.

    A worker's text is a guest's: only identifiers and hexadecimal digits pass.

    Args:
        show_text: add the exception's text; open mode only.
    """
    reason = fault.reason[:200] if fault.reason.isprintable() else "Prediction failed"
    details = []
    if fault.exception.isidentifier() and len(fault.exception) <= 64:
        details.append(fault.exception)
    if fault.fingerprint and len(fault.fingerprint) <= 64 and fault.fingerprint.isalnum():
        details.append(f"fingerprint {fault.fingerprint}")
    text = f"{reason} ({', '.join(details)})" if details else reason
    return f"{text}: {' '.join(fault.text.split())[:500]}" if show_text and fault.text else text


def _spawn(spec: WorkerSpec, folder: Path, connection: socket.socket) -> subprocess.Popen[bytes]:
    """Start the interpreter, isolated from environment and user packages, in its own process group."""
    parent = Path(cloister.__file__).resolve().parents[1]
    output: Any = subprocess.DEVNULL if spec.protected else None
    command = [sys.executable, "-I", "-B", "-c", _BOOTSTRAP, str(parent)]
    try:
        return subprocess.Popen(
            [*command, "--fd", str(connection.fileno()), "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=worker_environment(os.environ, home=folder, threads=spec.threads),
            pass_fds=(connection.fileno(), spec.archive_fd),
            start_new_session=True,
            umask=0o077,
        )
    except OSError as error:
        raise WorkerLost(f"cannot start a worker of {spec.name}: {error.strerror}") from error
