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

import msgspec

import cloister
from cloister.engines.schema import ModelSchema, check_schema
from cloister.errors import MalformedInput, ModelFailed, WorkerLost
from cloister.serve.frames import (
    MAX_ANSWER_BYTES,
    Answers,
    Confined,
    Fault,
    Frame,
    FrameDecoder,
    FromWorker,
    Load,
    Loaded,
    LoadFailed,
    MetricDefinition,
    Stop,
    ToWorker,
    write_frame,
)
from cloister.serve.groups import WorkerGroup, WorkerGroups
from cloister.serve.hardening import worker_environment
from cloister.serve.memory_watch import count_oom_kills
from cloister.serve.placement import Place
from cloister.serve.sandbox.plan import NO_SANDBOX, SandboxPlan

# The worker runs the same files as the frontend, wherever these are, and finds nothing else by this path.
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import cloister; sys.path.pop(0); "
    "from cloister.serve.worker import main; sys.exit(main())"
)
OUT_OF_MEMORY_EXIT = 86
"""A worker's exit code after a memory error that it could not go on from."""
ANYWHERE = Place()
MAX_REASON = 1000
"""Characters of a reason: what was found, and the schema that was expected."""
LEAVE_S = 5.0
TERMINATE_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every worker of one model is started with."""

    name: str
    version: str
    model_dir: Path
    """Unpacked archive, shared by all workers."""
    handler: str
    protected: bool
    batch_size: int = 1
    idempotent: bool = True
    envelope: str = ""
    metrics: tuple[MetricDefinition, ...] = ()
    sandbox: SandboxPlan = NO_SANDBOX
    groups: WorkerGroups | None = None
    """Where each gets a control group of its own, if there can be any."""
    decode: bool = True
    """Handlers get JSON and text decoded."""
    environment: str = ""
    """Regular expression of the variables that each gets of the server's, besides a short list; open mode."""


class WorkerProcess(asyncio.Protocol):
    """One worker from start to end. ``on_answers`` and ``on_end`` are its only words to its supervisor."""

    def __init__(
        self,
        *,
        on_answers: Callable[[Frame[Answers]], None] = lambda _: None,
        on_end: Callable[[WorkerProcess], None] = lambda _: None,
    ) -> None:
        self.on_answers = on_answers
        self.on_end = on_end
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
        self.out_of_memory = False
        """Whether it ended for want of memory."""
        self.round_trip_s = 0.0
        self.state = ""
        """What confines it, as it said itself before it loaded any of the model's code."""
        self.schema: ModelSchema | None = None
        """The model's inputs and outputs, as far as an engine serves it without a handler."""
        self.capacity = 0
        """How many requests it wants at a time; 0 leaves that to the batch size."""
        self._oom_kills: int | None = None
        self._group: WorkerGroup | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._ended.is_set()

    async def start(
        self,
        spec: WorkerSpec,
        scratch: Path,
        *,
        timeout_s: float | None,
        place: Place = ANYWHERE,
        gpu_id: int | None = None,
    ) -> None:
        """Start the process and wait until its handler is loaded.

        Args:
            scratch: empty folder of this worker alone.
        Raises:
            ModelFailed: the handler could not be loaded.
            WorkerLost: the process ended, or did not get ready in time.
        """
        loop = asyncio.get_running_loop()
        self._name, self._show_text = spec.name, not spec.protected
        self._oom_kills = count_oom_kills()
        plan = spec.sandbox
        if spec.groups is not None:
            limit = plan.memory_bytes + plan.scratch_bytes if plan.memory_bytes else 0
            self._group = spec.groups.make(memory_bytes=limit)
            plan = msgspec.structs.replace(plan, grouped=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._process = _spawn(spec, scratch, theirs, threads=place.threads)
            except BaseException:
                ours.close()
                self._leave_group()
                raise
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._process_ended)
        load = Load(
            name=spec.name,
            version=spec.version,
            model_dir=str(spec.model_dir),
            scratch=str(scratch),
            protected=spec.protected,
            handler=spec.handler,
            envelope=spec.envelope,
            metrics=spec.metrics,
            gpu_id=gpu_id,
            batch_size=spec.batch_size,
            idempotent=spec.idempotent,
            cores=place.cores,
            threads=place.threads,
            sandbox=plan,
            decode=spec.decode,
        )
        try:
            ours.setblocking(False)
            await loop.create_unix_connection(lambda: self, sock=ours)
            if self._group is not None:
                self._group.enter(self._process.pid)
            self.send(load)
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._loaded)
        except TimeoutError as error:
            self.kill(f"its model did not load within {timeout_s:g} s")
            await self._ended.wait()
            raise WorkerLost(f"worker of {spec.name}: {self.reason}") from error
        except BaseException:
            self.kill("its start was given up")
            await self._ended.wait()
            if self._transport is None:
                ours.close()
            raise

    def send(self, message: ToWorker, bodies: Sequence[bytes] = ()) -> None:
        """Write one frame. After the worker's end it goes nowhere; ``on_end`` has told the supervisor."""
        write_frame(self._transport, message, bodies)

    def kill(self, reason: str) -> None:
        """End the process now, with all processes that its handler started."""
        if not self._ended.is_set():
            self.reason = reason
            self._signal(signal.SIGKILL)

    async def stop(self) -> None:
        """Let it leave, then insist. Returns when it is gone."""
        if self._ended.is_set():
            return
        self.reason = "the server stopped it"
        self.send(Stop())
        for signal_number, wait_s in ((None, LEAVE_S), (signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, None)):
            if signal_number is not None:
                self._signal(signal_number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ended.wait()
                return

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Give a loaded worker's connection to ``protocol``, which carries the frames elsewhere."""
        assert self._transport is not None
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)

    # The socket's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            for message, payload in self._decoder.feed(data):
                if isinstance(message, Answers):
                    self.on_answers((message, payload))
                elif isinstance(message, Confined) and not self.state:
                    self.state = message.state.render()
                elif isinstance(message, LoadFailed) or (isinstance(message, Loaded) and self.state):
                    if self._loaded.done():
                        raise MalformedInput("a second load message")
                    self._finish_load(message)
                else:
                    raise MalformedInput("a message out of turn")
        except MalformedInput as error:
            self.kill(f"it broke the protocol: {error.message}")

    def connection_lost(self, exc: Exception | None) -> None:
        # A worker without its connection is of no use; the process's own end is what counts.
        self.kill(self.reason)

    def _finish_load(self, message: Loaded | LoadFailed) -> None:
        if isinstance(message, Loaded):
            if message.form is not None:
                check_schema(message.form)
            self.schema, self.capacity = message.form, message.capacity
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
            self.reason = self._explain(code)
        self._leave_group()
        if self._transport is not None:
            self._transport.abort()
        if not self._loaded.done():
            self._loaded.set_exception(WorkerLost(f"worker did not start: {self.reason}"))
            self._loaded.exception()  # seen, whether or not somebody still waits
        self._ended.set()
        self.on_end(self)

    def _explain(self, code: int) -> str:
        """An end that nobody here asked for, in words."""
        kills = count_oom_kills()
        killed = kills is not None and kills > (self._oom_kills or 0)
        if code == -signal.SIGKILL and (killed or (self._group is not None and self._group.out_of_memory())):
            self.out_of_memory = True
            return "the system ended it for want of memory"
        if code == OUT_OF_MEMORY_EXIT:
            self.out_of_memory = True
            return "it ran out of memory"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else "?"
            return f"it ended with signal {-code} ({name})"
        return f"it ended with exit code {code}"

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.close()

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
    reason = fault.reason[:MAX_REASON] if fault.reason.isprintable() else "Prediction failed"
    details = []
    if fault.exception.isidentifier() and len(fault.exception) <= 64:
        details.append(fault.exception)
    if fault.fingerprint and len(fault.fingerprint) <= 64 and fault.fingerprint.isalnum():
        details.append(f"fingerprint {fault.fingerprint}")
    text = f"{reason} ({', '.join(details)})" if details else reason
    return f"{text}: {' '.join(fault.text.split())[:500]}" if show_text and fault.text else text


def _spawn(
    spec: WorkerSpec, folder: Path, connection: socket.socket, *, threads: int
) -> subprocess.Popen[bytes]:
    """Start the interpreter in its own process group, isolated from user packages and the environment.

    What is passed on of the environment holds for the interpreter too: ``PYTHONPATH`` among it.
    """
    parent = Path(cloister.__file__).resolve().parents[1]
    output: Any = subprocess.DEVNULL if spec.protected else None
    passed = "" if spec.protected else spec.environment
    command = [sys.executable, "-P" if passed else "-I", "-B", "-c", _BOOTSTRAP, str(parent)]
    environment = worker_environment(os.environ, home=folder, threads=threads, passed=passed)
    if spec.sandbox.level != "off":
        environment["HOME"] = str(folder)  # the server's is not there to be read
    try:
        return subprocess.Popen(
            [*command, "--fd", str(connection.fileno()), "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environment,
            pass_fds=(connection.fileno(),),
            start_new_session=True,
            umask=0o077,
        )
    except OSError as error:
        raise WorkerLost(f"cannot start a worker of {spec.name}: {error.strerror}") from error
