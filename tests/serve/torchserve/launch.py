"""``cloister torchserve`` in a process of its own, on loopback ports, with a model store of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from tests.processes.server import free_port

START_S = 90
STOP_S = 60
_RUN = "import sys; from cloister.cli.main import main; main(sys.argv[1:])"

NOOP = "def handle(data, context):\n    return None if data is None else ['OK'] * len(data)\n"


class TorchServe:
    """Runs from ``with`` to its end.

    Args:
        folder: working folder; ``store`` below it is the model store.
        properties: of ``config.properties``, besides addresses, which are free ports here.
        flags: of the command line.
    """

    def __init__(
        self,
        folder: Path,
        properties: Mapping[str, Any] | None = None,
        flags: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir(exist_ok=True)
        self.ports = {name: free_port() for name in ("inference", "management", "metrics")}
        keys: dict[str, Any] = {
            **{f"{name}_address": f"http://127.0.0.1:{port}" for name, port in self.ports.items()},
            "grpc_inference_port": 0,
            "grpc_management_port": 0,
            "default_workers_per_model": 0,
            **(properties or {}),
        }
        (folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
        self._words = ["torchserve", "--start", "--foreground", "--ncs", "--model-store", "store", *flags]
        self._environment = {**os.environ, "TMPDIR": str(folder), **(environment or {})}
        self._output: list[str] = []
        self._errors: list[str] = []
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *self._words],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [
            threading.Thread(target=self._read, args=(self._process.stdout, self._output)),
            threading.Thread(target=self._read, args=(self._process.stderr, self._errors)),
        ]
        for thread in self._threads:
            thread.start()
        assert self._started.wait(START_S), self.stderr
        assert self._process.poll() is None, self.stderr
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    @property
    def stderr(self) -> str:
        return "".join(self._errors)

    @property
    def stdout(self) -> str:
        return "".join(self._output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tokens(self) -> dict[str, Any]:
        """What the key file says."""
        document: dict[str, Any] = json.loads((self.folder / "key_file.json").read_text())
        return document

    def url(self, api: str, path: str) -> str:
        """The address of a path of one API."""
        return f"http://127.0.0.1:{self.ports[api]}{path}"

    def ask(self, api: str, method: str, path: str, **options: Any) -> httpx.Response:
        """One request to the ``inference``, ``management`` or ``metrics`` API."""
        return httpx.request(method, self.url(api, path), timeout=60, **options)

    def predict(self, path: str, **options: Any) -> httpx.Response:
        """POST to the inference API."""
        return self.ask("inference", "POST", path, **options)

    def manage(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request to the management API."""
        return self.ask("management", method, path, **options)

    def metrics(self, query: str = "") -> str:
        """The page of metrics."""
        return self.ask("metrics", "GET", f"/metrics{query}").text

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            if line.startswith("Model server started"):
                self._started.set()
        self._started.set()  # it has ended: nothing more to wait for
