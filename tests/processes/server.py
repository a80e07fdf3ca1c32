"""A real model server in a process of its own, on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from cloister.serve.pack import pack_archive
from tests.ports import free_port

__all__ = ["Server", "free_port", "pack"]

_RUN = (
    "import json, sys\n"
    "from cloister.errors import CloisterError\n"
    "from cloister.serve.server import run_server\n"
    "from cloister.settings import load_settings\n"
    "try:\n"
    "    run_server(load_settings(None, {}, json.loads(sys.argv[1])))\n"
    "except CloisterError as error:\n"
    "    print(error.message, file=sys.stderr)\n"
    "    sys.exit(error.exit_code)\n"
)
START_S = 60
STOP_S = 30


def pack(folder: Path, name: str, source: str, *, version: str = "1.0") -> Path:
    """An archive with one handler module."""
    code = folder / f"src-{name}-{version}"
    code.mkdir()
    (code / "handler.py").write_text(source)
    target = folder / f"{name}-{version}.mar"
    pack_archive(target, name=name, version=version, handler=code / "handler.py")
    return target


class Server:
    """Runs from ``with`` to its end; what it printed is in ``stdout`` and ``stderr`` afterwards."""

    def __init__(
        self, flags: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, **spawn: Any
    ) -> None:
        self.stdout = self.stderr = ""
        self.url = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN, json.dumps(dict(flags))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            **spawn,
        )
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> str:
        """The line by which it says that it is ready; fails if it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("Cloister serves"), (line, self.finish(), self.stderr)
        self.url = line.split(" at ")[1].split()[0]
        return line

    def finish(self) -> int:
        """Wait for its end; its exit code."""
        code = self._process.wait(STOP_S)
        assert self._process.stdout is not None
        self.stdout = self._process.stdout.read()
        self._reader.join()
        self.stderr = "".join(self._errors)
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.finish()

    def workers(self) -> list[int]:
        """Process numbers of its workers."""
        return [child for child in self._children() if child not in self.frontends()]

    def frontends(self) -> list[int]:
        """Process numbers of its frontends."""
        return [child for child in self._children() if b"frontends.main" in _command(child)]

    def _children(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in children]

    def predict(self, model: str, **options: Any) -> httpx.Response:
        """POST to one model."""
        return httpx.post(f"{self.url}/predictions/{model}", timeout=30, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self.stop(signal.SIGKILL)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)


def _command(pid: int) -> bytes:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
