"""A task in a process of its own: with a time limit and a memory limit, and however it ends, an answer.

The process has its own session, so that what it started ends with it, and ends itself if the search dies.
It writes events to a pipe, and whatever it prints to a log in the private folder.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloister.optimize.job import Event, Failure, Job, Stage, Status

POLL_S = 0.2
MAX_EVENTS_BYTES = 1 << 20
_FAILED_AT = {"convert": Status.FAIL_TO_CONVERT}


def run_job(
    job: Job,
    folder: Path,
    *,
    limit_s: float,
    memory_bytes: int = 0,
    on_stage: Callable[[Stage], None] = lambda _: None,
) -> Event:
    """Run a job and return its last event: an artifact, measurements, or a failure.

    Args:
        folder: private; the job and the log are written into it.
        limit_s: after this time the process is killed and the answer is "timed out".
        memory_bytes: resident memory that the process and its children may have; 0 for no limit.
    """
    path = folder / "job.json"
    path.write_bytes(msgspec.json.encode(job))
    reading, writing = os.pipe()
    try:
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cloister.optimize.child", str(path), str(writing), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                start_new_session=True,
                env=_environment(job, folder),
            )
    finally:
        os.close(writing)
    watch = _Watch(process, reading, on_stage)
    try:
        return watch.follow(time.monotonic() + limit_s, limit_s, memory_bytes)
    finally:
        # Also on Ctrl-C: nothing outlives the search, whatever it has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reading)


class _Watch:
    """Reads the events of one process until it ends or must end."""

    def __init__(
        self, process: subprocess.Popen[bytes], events: int, on_stage: Callable[[Stage], None]
    ) -> None:
        self._process, self._events, self._on_stage = process, events, on_stage
        self._stage: Stage = "convert"
        self._buffer = b""
        self._read_bytes = 0

    def follow(self, until: float, limit_s: float, memory_bytes: int) -> Event:
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            while True:
                ready = selector.select(POLL_S)
                if ready:
                    content = os.read(self._events, 1 << 16)
                    if not content:
                        return self._ended()
                    last = self._take(content)
                    if last is not None:
                        return last
                elif self._process.poll() is not None and not selector.select(0):
                    return self._ended()  # something that it has started holds the pipe open
                if time.monotonic() > until:
                    return _failed(Status.TIMED_OUT, f"no result after {limit_s:.0f} s")
                if memory_bytes and session_memory(self._process.pid) > memory_bytes:
                    return _failed(Status.OUT_OF_MEMORY, f"over {memory_bytes >> 20} MiB")

    def _take(self, content: bytes) -> Event | None:
        self._read_bytes += len(content)
        if self._read_bytes > MAX_EVENTS_BYTES:
            return _failed(self._at_fault(), "the process says too much")
        *lines, self._buffer = (self._buffer + content).split(b"\n")
        for line in lines:
            try:
                event = msgspec.json.decode(line, type=Event)
            except msgspec.DecodeError:
                return _failed(self._at_fault(), "the process answered in another form")
            if event.stage is None:
                return event
            self._stage = event.stage
            self._on_stage(event.stage)
        return None

    def _ended(self) -> Event:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return _failed(Status.OUT_OF_MEMORY, "killed by the kernel")
        word = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _failed(self._at_fault(), f"the process ended by {word}")

    def _at_fault(self) -> Status:
        return _FAILED_AT.get(self._stage, Status.FAIL_TO_FORWARD)


def session_memory(session: int) -> int:
    """Resident bytes of all processes of a session; 0 where they are gone."""
    pages = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int:
    """Bytes that processes can have before the machine runs short; 0 if it cannot be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _environment(job: Job, folder: Path) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    # Caches of compilers hold the model's shapes and code: they stay in the private folder too.
    found |= {
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    # The model is nobody's business: these switch off the usage reports of NNCF, OpenVINO and transformers.
    found |= {"NNCF_CI": "1", "CI": "true", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    if job.threads:
        found["OMP_NUM_THREADS"] = str(job.threads)
    return found


def _failed(status: Status, reason: str) -> Event:
    return Event(failure=Failure(status, reason))
