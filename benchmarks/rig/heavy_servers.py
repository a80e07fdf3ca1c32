"""Peers with ResNet-50 and BERT-Large as their users run them, one worker, all cores.

=================== =====================================================================================
name                what runs
=================== =====================================================================================
torchserve          a handler of its own, eager PyTorch, batches of 16, at most 20 ms of waiting
mosec               eager PyTorch, dynamic batches of 16, at most 20 ms
litserve            eager PyTorch, batches of 16, at most 20 ms; pictures as base64 in JSON
mlserver            eager PyTorch, a runtime of its own; pictures as base64, as its protocol has it
mosec-openvino      the OpenVINO INT8 model, one worker with batches whose inferences overlap
mosec-openvino-2    the same model, two workers of one core each, no batches
=================== =====================================================================================
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from rig.environments import make_environment
from rig.forms import make_body
from rig.servers import Launch, Running, free_port, launched
from rig.tiny_servers import mlserver, torchserve

APPS = Path(__file__).resolve().parents[1] / "peers"
BATCH_SIZE, DELAY_MS = 16, 20
CONTENT_TYPES = {"resnet50": "image/jpeg", "bert-large": "application/json"}


@contextlib.contextmanager
def start_heavy(name: str, task: str, forms: Path, environments: Path, work: Path) -> Iterator[Running]:
    """One peer with one model, from its first answer to its end."""
    folder = work / f"{name}-{task}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind = name.partition("-")[0]
    python = str(make_environment(kind, environments, heavy=True))
    port = free_port()
    launch = _LAUNCHES[kind](python, task, forms, folder, port)
    environment = {
        "HEAVY_TASK": task,
        "HEAVY_FOLDER": str(forms),
        "HEAVY_FORM": "openvino-int8" if "openvino" in name else "eager",
        "HEAVY_WORKERS": "2" if name.endswith("-2") else "1",
        "BATCH_SIZE": "1" if name.endswith("-2") else str(BATCH_SIZE),
        "DELAY_MS": str(DELAY_MS),
        **launch.environment,
    }
    launch = Launch(launch.command, launch.path, launch.body, launch.headers, environment)
    with launched(name, launch, port, folder) as running:
        yield running


def _mosec(python: str, task: str, forms: Path, work: Path, port: int) -> Launch:
    command = [python, str(APPS / "mosec_heavy.py"), "--address", "127.0.0.1", "--port", str(port)]
    command += ["--path", str(work / "s"), "--log-level", "warning", "--timeout", "120000"]
    return Launch(command, "/inference", make_body(task), {"content-type": CONTENT_TYPES[task]})


def _torchserve(python: str, task: str, forms: Path, work: Path, port: int) -> Launch:
    from cloister.serve.pack import pack_archive

    (work / "store").mkdir()
    archive = work / "store" / f"{task}.mar"
    pack_archive(
        archive,
        name=task,
        version="1.0",
        handler=APPS / "heavy_handler.py",
        extra_files=[APPS / "heavy.py"],
        archive_format="zip-store",
    )
    version: dict[str, object] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": BATCH_SIZE}
    version |= {"maxBatchDelay": DELAY_MS, "responseTimeout": 300, "startupTimeout": 300}
    launch = torchserve(python, work, port, archive, version)
    headers = {"content-type": CONTENT_TYPES[task]}
    return Launch(launch.command, launch.path, make_body(task), headers, launch.environment)


def _litserve(python: str, task: str, forms: Path, work: Path, port: int) -> Launch:
    body = make_body(task)
    if task == "resnet50":
        body = json.dumps({"image": base64.b64encode(body).decode()}).encode()
    return Launch([python, str(APPS / "litserve_heavy.py"), str(port)], "/predict", body)


def _mlserver(python: str, task: str, forms: Path, work: Path, port: int) -> Launch:
    if task == "resnet50":
        data = [base64.b64encode(make_body(task)).decode()]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": data}
        tensor["parameters"] = {"content_type": "base64"}
    else:
        ids = json.loads(make_body(task))["input_ids"]
        tensor = {"name": "input_ids", "datatype": "INT64", "shape": [1, len(ids)], "data": ids}
    model: dict[str, object] = {"name": task, "implementation": "mlserver_heavy.HeavyRuntime"}
    if task != "resnet50":
        model |= {"max_batch_size": BATCH_SIZE, "max_batch_time": DELAY_MS / 1000}
    return mlserver(python, work, port, model, json.dumps({"inputs": [tensor]}))


_LAUNCHES = {"mosec": _mosec, "torchserve": _torchserve, "litserve": _litserve, "mlserver": _mlserver}
EAGER = ("torchserve", "mosec", "litserve", "mlserver")
SAME_ENGINE = ("mosec-openvino", "mosec-openvino-2")
