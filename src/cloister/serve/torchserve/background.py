"""``--start`` and ``--stop``: a server in the background, found again by its pid file.

The file is one user's only, in the temporary folder. It names a process by number and start time, so that no
other process which has come to have that number is ever stopped.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cloister
from cloister.errors import ConfigError, ServingError
from cloister.serve.torchserve.arguments import Arguments, render_arguments
from cloister.serve.torchserve.key_file import NAME as KEY_FILE

STOP_S = 60.0
POLL_S = 0.1
LOG_NAME = "ts_log.log"
STARTED = "Model server started"
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from cloister.cli.main import main; main(sys.argv[1:])"
)


@dataclass(frozen=True, slots=True)
class Background:
    """The pid file of one user's server."""

    file: Path

    @classmethod
    def of_user(cls) -> Background:
        """The pid file of whoever runs this."""
        return cls(Path(tempfile.gettempdir()) / f".cloister-torchserve-{os.getuid()}.pid")

    def find(self) -> int:
        """Process number of the running server; 0 if there is none."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, encoding="ascii") as file:
                if os.fstat(descriptor).st_uid != os.getuid():
                    return 0
                pid, started = file.read(64).split()
            return int(pid) if started == _start_time(int(pid)) else 0
        except (OSError, ValueError):
            return 0

    @contextmanager
    def running(self, pid: int) -> Iterator[None]:
        """Name this server in the file while it runs, unless another one is named there."""
        mine = not self.find()
        if mine:
            self._write(pid)
        try:
            yield
        finally:
            if mine and self.find() == pid:
                self._remove()

    def start(self, arguments: Arguments, logs: Path) -> str:
        """Start a server that outlives this process; returns when it is up, with a line for people.

        Raises:
            ConfigError: one is running already.
            ServingError: it did not come up; its log says why, and so does the message.
        """
        if self.find():
            raise ConfigError("TorchServe is already running", hint="stop it with cloister torchserve --stop")
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / LOG_NAME
        words = render_arguments(replace(arguments, start=True, foreground=True))
        parent = Path(cloister.__file__).resolve().parents[1]
        with log.open("ab") as output:
            begin = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(parent), "torchserve", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        last = _wait_started(process, log, begin)
        if last is None:
            code = process.wait()
            raise ServingError(f"the server ended with code {code}: {_last_line(log)}", hint=f"see {log}")
        return f"{last}\nlog: {log}"

    def stop(self, folder: Path) -> str:
        """Stop the running server, wait for its end, and return a line for people."""
        pid = self.find()
        if not pid:
            self._remove()
            return "TorchServe is not currently running."
        with contextlib.suppress(OSError):
            (folder / KEY_FILE).unlink(missing_ok=True)
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self._remove()
            return "TorchServe already stopped."
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            ended, _, _ = select.select([handle], [], [], STOP_S)
        finally:
            os.close(handle)
        if not ended:
            return "Stopping TorchServe took too long."
        self._remove()
        return "TorchServe has stopped."

    def _write(self, pid: int) -> None:
        self._remove()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self.file, flags, 0o600), "w", encoding="ascii") as file:
                file.write(f"{pid} {_start_time(pid)}\n")
        except OSError as error:
            raise ConfigError(f"cannot write {self.file}: {error.strerror}") from error

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)


def _wait_started(process: subprocess.Popen[bytes], log: Path, begin: int) -> str | None:
    """The lines that say that it is up; None if it ends before."""
    while True:
        ended = process.poll() is not None
        with log.open("rb") as file:
            file.seek(begin)
            lines = file.read().decode("utf-8", "replace").splitlines()
        for at, line in enumerate(lines):
            if line.startswith(STARTED):
                return "\n".join(lines[max(0, at - 1) : at + 1])
        if ended:
            return None
        time.sleep(POLL_S)


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: clock ticks between the machine's start and the process's."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
