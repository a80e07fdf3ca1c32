"""Starts and stops Cloister and its peers, one at a time, each from an environment of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BATCH_SIZE, DELAY_MS = 16, 5
START_S = 90.0
PACKAGES = {
    "mosec": ["mosec==0.9.8", "numpy"],
    "torchserve": [
        "torchserve==0.12.0",
        "torch-model-archiver",
        "torch==2.13.0",
        "numpy",
        "setuptools",
        "pyyaml",
    ],
    "litserve": ["litserve==0.2.19", "numpy"],
    "mlserver": ["mlserver==1.7.1", "uvloop==0.21.0", "numpy"],
    "fastapi": ["fastapi", "uvicorn[standard]", "numpy"],
}
"""What each peer's environment holds."""


@dataclass
class Running:
    """A server that answers."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    body: str | bytes
    log: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.split("/")[2].partition(":")
        return host, int(port)

    @property
    def path(self) -> str:
        return "/" + self.url.split("/", 3)[3]

    def memory_bytes(self) -> int:
        """Resident memory of the first process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def children(self) -> list[int]:
        """Process numbers of its children."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        found = [(task / "children").read_text().split() for task in tasks.iterdir()]
        return sorted(int(pid) for pids in found for pid in pids)


def free_port() -> int:
    """A port that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_environment(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment; made on first use."""
    target = folder / name
    python = target / "bin" / "python"
    if not (target / "ready").exists():
        print(f"installing {name} into {target}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *PACKAGES[name]], check=True)
        (target / "ready").touch()
    return python


@contextlib.contextmanager
def start(name: str, *, batching: bool, environments: Path, work: Path) -> Iterator[Running]:
    """One server with the tiny model, from its start to its end."""
    work.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command, environment, path, body = _command(name, batching, environments, work, port)
    log = work / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            cwd=work,
            start_new_session=True,
        )
    running = Running(name, f"http://127.0.0.1:{port}{path}", process, body, log)
    try:
        wait_ready(running)
        yield running
    finally:
        stop(process)


def wait_ready(running: Running, content_type: str = "application/json") -> None:
    """Wait for the first right answer."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and running.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(*running.address, timeout=10)
            headers = {"content-type": content_type}
            connection.request("POST", running.path, running.body, headers)
            response = connection.getresponse()
            response.read()
            connection.close()
            if response.status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{running.name} did not start: {running.log.read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server with all its processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    time.sleep(0.3)


def _command(
    name: str, batching: bool, environments: Path, work: Path, port: int
) -> tuple[Sequence[str], dict[str, str], str, str]:
    """Command, environment, path and body of a request."""
    body = "[0.1, 0.2, 0.3, 0.4]"
    size, delay = (BATCH_SIZE, DELAY_MS) if batching else (1, 0)
    if name == "cloister":
        return _cloister(size, work, port), {}, "/predictions/tiny", body
    python = str(make_environment(name, environments))
    if name == "mosec":
        sockets = work / f"mosec-{port}"
        command = [python, str(HERE / "mosec_app.py"), "--address", "127.0.0.1", "--port", str(port)]
        command += ["--path", str(sockets), "--log-level", "warning"]
        return command, {"BATCH_SIZE": str(size), "DELAY_MS": str(delay)}, "/inference", body
    if name == "torchserve":
        return *_torchserve(python, size, work, port), "/predictions/tiny", body
    if name == "litserve":
        return [python, str(HERE / "litserve_app.py"), str(port), str(size), str(delay)], {}, "/predict", body
    if name == "mlserver":
        return *_mlserver(python, size, work, port), "/v2/models/tiny/infer", MLSERVER_BODY
    return [python, str(HERE / "fastapi_app.py"), str(port)], {}, "/predict", body


def pack_tiny(target: Path, batch_size: int, config: Path) -> None:
    """The tiny model as an archive."""
    from cloister.serve.pack import pack_archive

    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": batch_size, "maxBatchDelay": DELAY_MS}
    config.write_text(json.dumps(settings))
    pack_archive(
        target,
        name="tiny",
        version="1.0",
        handler=HERE / "tiny_handler.py",
        extra_files=[HERE / "tiny.py"],
        config_file=config,
    )


def _cloister(batch_size: int, work: Path, port: int) -> list[str]:
    store = work / f"store-{batch_size}"
    store.mkdir(exist_ok=True)
    pack_tiny(store / "tiny.mar", batch_size, work / "model.yaml")
    flags = {"serve.mode": "open", "serve.model_store": str(store), "serve.http_port": port}
    return [sys.executable, str(HERE / "cloister_app.py"), json.dumps(flags)]


def _torchserve(python: str, batch_size: int, work: Path, port: int) -> tuple[list[str], dict[str, str]]:
    store = work / "torchserve-store"
    store.mkdir(exist_ok=True)
    pack_tiny(store / "tiny.mar", batch_size, work / "model.yaml")
    version = {
        "defaultVersion": True,
        "marName": "tiny.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": batch_size,
        "maxBatchDelay": DELAY_MS,
        "responseTimeout": 120,
    }
    lines = [
        f"inference_address=http://127.0.0.1:{port}",
        f"management_address=http://127.0.0.1:{free_port()}",
        f"metrics_address=http://127.0.0.1:{free_port()}",
        f"grpc_inference_port={free_port()}",
        f"grpc_management_port={free_port()}",
        "job_queue_size=1000",
        "load_models=tiny.mar",
        "models=" + json.dumps({"tiny": {"1.0": version}}),
    ]
    config = work / "config.properties"
    config.write_text("\n".join(lines) + "\n")
    folder = Path(python).parent
    command = [str(folder / "torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth"]
    command += ["--model-store", str(store), "--models", "tiny=tiny.mar", "--ts-config", str(config)]
    return command, {"PATH": f"{folder}:{os.environ['PATH']}", "LOG_LOCATION": str(work / "logs")}


MLSERVER_BODY = json.dumps(
    {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [0.1, 0.2, 0.3, 0.4]}]}
)


def _mlserver(python: str, batch_size: int, work: Path, port: int) -> tuple[list[str], dict[str, str]]:
    folder = work / "mlserver"
    folder.mkdir(exist_ok=True)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    server = {"host": "127.0.0.1", "parallel_workers": 1, "debug": False, **ports}
    (folder / "settings.json").write_text(json.dumps(server))
    model: dict[str, object] = {"name": "tiny", "implementation": "mlserver_app.TinyRuntime"}
    if batch_size > 1:
        model |= {"max_batch_size": batch_size, "max_batch_time": DELAY_MS / 1000}
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = [str(Path(python).parent / "mlserver"), "start", str(folder)]
    return command, {"PYTHONPATH": str(HERE)}
