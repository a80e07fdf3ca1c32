"""Cloister and its peers with the tiny model, one at a time, each peer from an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rig.environments import make_environment
from rig.servers import Launch, Running, free_port, launched

HERE = Path(__file__).resolve().parent
APPS = HERE.parent / "peers"
BATCH_SIZE, DELAY_MS = 16, 5
BODY = "[0.1, 0.2, 0.3, 0.4]"
MLSERVER_BODY = json.dumps(
    {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [0.1, 0.2, 0.3, 0.4]}]}
)


@contextlib.contextmanager
def start(name: str, *, batching: bool, environments: Path, work: Path) -> Iterator[Running]:
    """One server with the tiny model, from its start to its end."""
    work.mkdir(parents=True, exist_ok=True)
    port = free_port()
    size = BATCH_SIZE if batching else 1
    if name == "cloister":
        launch = _cloister(size, work, port)
    else:
        launch = _PEERS[name](str(make_environment(name, environments)), size, work, port)
    with launched(name, launch, port, work) as running:
        yield running


def pack_tiny(target: Path, batch_size: int, config: Path) -> None:
    """The tiny model as an archive."""
    from cloister.serve.pack import pack_archive

    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": batch_size, "maxBatchDelay": DELAY_MS}
    config.write_text(json.dumps(settings))
    pack_archive(
        target,
        name="tiny",
        version="1.0",
        handler=APPS / "tiny_handler.py",
        extra_files=[APPS / "tiny.py"],
        config_file=config,
    )


def _cloister(batch_size: int, work: Path, port: int) -> Launch:
    store = work / f"store-{batch_size}"
    store.mkdir(exist_ok=True)
    pack_tiny(store / "tiny.mar", batch_size, work / "model.yaml")
    flags = {"serve.mode": "open", "serve.model_store": str(store), "serve.http_port": port}
    command = [sys.executable, str(HERE / "cloister_app.py"), json.dumps(flags)]
    return Launch(command, "/predictions/tiny", BODY)


def _mosec(python: str, batch_size: int, work: Path, port: int) -> Launch:
    command = [python, str(APPS / "mosec_app.py"), "--address", "127.0.0.1", "--port", str(port)]
    command += ["--path", str(work / f"mosec-{port}"), "--log-level", "warning"]
    environment = {"BATCH_SIZE": str(batch_size), "DELAY_MS": str(DELAY_MS)}
    return Launch(command, "/inference", BODY, environment=environment)


def torchserve(python: str, work: Path, port: int, archive: Path, version: dict[str, object]) -> Launch:
    """TorchServe with one archive of one version, and nothing asked of callers."""
    name = archive.stem
    lines = [
        f"inference_address=http://127.0.0.1:{port}",
        f"management_address=http://127.0.0.1:{free_port()}",
        f"metrics_address=http://127.0.0.1:{free_port()}",
        f"grpc_inference_port={free_port()}",
        f"grpc_management_port={free_port()}",
        "job_queue_size=1000",
        f"load_models={archive.name}",
        "models=" + json.dumps({name: {"1.0": {"defaultVersion": True, "marName": archive.name, **version}}}),
    ]
    config = work / "config.properties"
    config.write_text("\n".join(lines) + "\n")
    folder = Path(python).parent
    command = [str(folder / "torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth"]
    command += ["--model-store", str(archive.parent), "--models", f"{name}={archive.name}"]
    command += ["--ts-config", str(config)]
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG_LOCATION": str(work / "logs")}
    return Launch(command, f"/predictions/{name}", BODY, environment=environment)


def _torchserve(python: str, batch_size: int, work: Path, port: int) -> Launch:
    store = work / "torchserve-store"
    store.mkdir(exist_ok=True)
    pack_tiny(store / "tiny.mar", batch_size, work / "model.yaml")
    version: dict[str, object] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": batch_size}
    version |= {"maxBatchDelay": DELAY_MS, "responseTimeout": 120}
    return torchserve(python, work, port, store / "tiny.mar", version)


def _litserve(python: str, batch_size: int, work: Path, port: int) -> Launch:
    arguments = [str(port), str(batch_size), str(DELAY_MS)]
    return Launch([python, str(APPS / "litserve_app.py"), *arguments], "/predict", BODY)


def _mlserver(python: str, batch_size: int, work: Path, port: int) -> Launch:
    model: dict[str, object] = {"name": "tiny", "implementation": "mlserver_app.TinyRuntime"}
    if batch_size > 1:
        model |= {"max_batch_size": batch_size, "max_batch_time": DELAY_MS / 1000}
    return mlserver(python, work, port, model, MLSERVER_BODY)


def mlserver(python: str, work: Path, port: int, model: dict[str, object], body: str) -> Launch:
    """MLServer with one model."""
    folder = work / "mlserver"
    folder.mkdir(exist_ok=True)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    server = {"host": "127.0.0.1", "parallel_workers": 1, "debug": False, **ports}
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = [str(Path(python).parent / "mlserver"), "start", str(folder)]
    path = f"/v2/models/{model['name']}/infer"
    return Launch(command, path, body, environment={"PYTHONPATH": str(APPS)})


def _fastapi(python: str, batch_size: int, work: Path, port: int) -> Launch:
    return Launch([python, str(APPS / "fastapi_app.py"), str(port)], "/predict", BODY)


_PEERS = {
    "mosec": _mosec,
    "torchserve": _torchserve,
    "litserve": _litserve,
    "mlserver": _mlserver,
    "fastapi": _fastapi,
}
NAMES = tuple(_PEERS)
