"""Models of every form under a real server: formats, shared weights, answers in parts, measures, packages."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloister.serve.pack import SUFFIXES, pack_archive
from tests.processes.server import Server, free_port
from tests.serve.test_requirements import NAME, wheel

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

MIB = 1 << 20
BIG_MIB = 200
ECHO = """
import os
from pathlib import Path

def handle(data, context):
    if data is None: return
    folder = context.system_properties["model_dir"]
    return [{"model": context.model_name, "folder": folder, "home": os.environ["HOME"],
             "tmp": os.environ["TMPDIR"], "files": sorted(os.listdir(folder)),
             "body": str(row.get("body")), "form": str(row.get("data"))} for row in data]
"""
PARTS = """
from ts.handler_utils.utils import send_intermediate_predict_response
def handle(data, context):
    if data is None: return
    for word in ("one ", "two "):
        send_intermediate_predict_response([word] * len(data), context.request_ids, "x", 200, context)
    return ["three"] * len(data)
"""
MEASURES = """
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
class Service:
    def initialize(self, context):
        with open(context.system_properties["model_dir"] + "/unpacked", "w") as file:
            file.write("handlers may write here in open mode")
        self.metric = context.metrics.add_metric_to_cache("WordCount", "count", ["Kind"], MetricTypes.COUNTER)
    def handle(self, data, context):
        self.metric.add_or_update(3, ["long"])
        context.metrics.add_size("SizeOfText", 2.5, None, "kB")
        return ["ok"] * len(data)
"""
NET = f"""
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.big = torch.nn.Parameter(torch.empty({BIG_MIB} * 256, 1024), requires_grad=False)
    def forward(self, x):
        return (self.big[:, 0].sum() + x).reshape(-1)
"""
SUM = """
import os, time
from ts.torch_handler.base_handler import BaseHandler
class Sum(BaseHandler):
    def preprocess(self, data):
        return super().preprocess([float(d["body"]) for d in data])
    def postprocess(self, data):
        time.sleep(0.2)
        return [{"pid": os.getpid(), "sum": v} for v in data.tolist()]
"""
NEEDS = f"import {NAME}\ndef handle(data, context):\n  return [{NAME}.VALUE] * len(data or [])\n"


def archive(folder: Path, name: str, source: str, **parts: Any) -> Path:
    """An archive of one handler in the store."""
    code = folder / f"src-{name}"
    code.mkdir()
    (code / "handler.py").write_text(source)
    archive_format = parts.pop("archive_format", "default")
    target = folder / "store" / f"{name}{SUFFIXES[archive_format]}"
    target.parent.mkdir(exist_ok=True)
    pack_archive(
        target, name=name, version="1.0", handler=code / "handler.py", archive_format=archive_format, **parts
    )
    return target


def settings_file(folder: Path, text: str) -> Path:
    path = folder / f"config-{abs(hash(text))}.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory, with a store of archives in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """A server of small models; its URL."""
    for archive_format in SUFFIXES:
        archive(folder, f"echo-{archive_format}", ECHO, archive_format=archive_format)
    archive(folder, "parts", PARTS)
    archive(folder, "measures", MEASURES)
    wheel(folder)
    (folder / "r.txt").write_text(f"--no-index\n--find-links {folder}\n{NAME}\n")
    archive(folder, "needs", NEEDS, requirements_file=folder / "r.txt")
    twice = settings_file(folder, "minWorkers: 2\nmaxWorkers: 2\n")
    source = ECHO.replace("return [", "__import__('time').sleep(0.2)\n    return [")
    source = source.replace('"form"', '"pid": os.getpid(), "form"')
    archive(folder, "twice", source, config_file=twice)
    memory = folder / "memory"
    memory.mkdir()
    flags = {
        "serve.mode": "open",
        "serve.model_store": str(folder / "store"),
        "serve.http_port": free_port(),
        "serve.tmpfs": str(memory),
        "serve.install_requirements": True,
    }
    with Server(flags) as running:
        running.wait_ready()
        yield running.url


@pytest.mark.parametrize("archive_format", list(SUFFIXES))
def test_formats(server: str, archive_format: str) -> None:
    """An archive of each format answers, and its worker has a folder of its own to write into."""
    name = f"echo-{archive_format}"
    found = httpx.post(f"{server}/predictions/{name}", content=b"hi", headers={"content-type": "text/plain"})
    document = found.json()
    assert (document["model"], document["body"]) == (name, "hi")
    assert document["home"] == document["tmp"] != document["folder"]
    assert "handler.py" in document["files"]


def test_two_workers_share_one_folder(server: str) -> None:
    """All workers of a model read the same files, and each writes into its own folder."""
    answers = from_all(f"{server}/predictions/twice", 2)
    seen = {pid: (document["folder"], document["home"]) for pid, document in answers.items()}
    (first, second) = seen.values()
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_answer_in_parts(server: str) -> None:
    """What a handler sends on the way comes as chunks, before its last word."""
    with httpx.stream("POST", f"{server}/predictions/parts", content=b"x") as response:
        assert response.headers.get("transfer-encoding") == "chunked"
        assert b"".join(response.iter_raw()) == b"one two three"


def test_custom_metrics(server: str) -> None:
    """What a handler measures is in the server's metrics, under its own names and dimensions."""
    for _ in range(2):
        assert httpx.post(f"{server}/predictions/measures", content=b"x").text == "ok"
    page = httpx.get(f"{server}/metrics").text
    (count,) = [line for line in page.splitlines() if line.startswith("WordCount") and "{" in line]
    assert 'Kind="long"' in count
    assert float(count.rsplit(" ", 1)[1]) == 6.0
    assert any(
        line.startswith("SizeOfText{") and 'ModelName="measures"' in line for line in page.splitlines()
    )


def test_packages_for_one_model(server: str) -> None:
    """A model's own wheel is there for its workers."""
    assert httpx.post(f"{server}/predictions/needs", content=b"x").text == "42"


def test_stream_of_big_form(server: str) -> None:
    """A form's field reaches the handler by its name."""
    files = {"data": ("x.bin", io.BytesIO(b"abc"))}
    document = httpx.post(f"{server}/predictions/echo-default", files=files).json()
    assert document["form"] == "bytearray(b'abc')"


def from_all(url: str, workers: int) -> dict[int, Any]:
    """An answer from each worker of a model, by its process number."""
    found: dict[int, Any] = {}
    deadline = time.monotonic() + 30
    with ThreadPoolExecutor(8) as threads:
        while len(found) < workers and time.monotonic() < deadline:
            for answer in threads.map(lambda _: httpx.post(url, content=b"1", timeout=30), range(8)):
                found[answer.json()["pid"]] = answer.json()
    assert len(found) == workers
    return found


def pss_bytes(pid: int) -> int:
    """A process's memory, its shared part divided by those who share it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


@pytest.mark.parametrize("kind", ["eager", "script"])
def test_workers_share_one_copy_of_the_weights(tmp_path: Path, kind: str) -> None:
    """Two workers of a model with 200 MiB of weights need about one copy of them, not two."""
    scope: dict[str, Any] = {}
    exec(NET, scope)
    net = scope["Net"]()
    torch.nn.init.normal_(net.big)
    (tmp_path / "h_net.py").write_text(NET)
    base: dict[int, int] = {}
    if kind == "eager":
        torch.save(net.state_dict(), tmp_path / "model.pt")
        parts = {"model_file": tmp_path / "h_net.py", "serialized_file": tmp_path / "model.pt"}
    else:
        torch.jit.trace(net, torch.zeros(1)).save(str(tmp_path / "model.pt"))
        parts = {"serialized_file": tmp_path / "model.pt"}
    for workers in (1, 2):
        config = settings_file(tmp_path, f"minWorkers: {workers}\nmaxWorkers: {workers}\n")
        here = tmp_path / f"w{workers}"
        here.mkdir()
        archive(here, "sum", SUM, config_file=config, **parts)
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as memory_folder:
            flags = {
                "serve.mode": "open",
                "serve.model_store": str(here / "store"),
                "serve.http_port": free_port(),
                "serve.tmpfs": memory_folder,
            }
            with Server(flags) as running:
                running.wait_ready()
                answers = from_all(f"{running.url}/predictions/sum", workers)
                expected = (net.big[:, 0].sum() + 1).item()
                for document in answers.values():
                    assert document["sum"] == pytest.approx(expected, rel=1e-4)
                base[workers] = sum(map(pss_bytes, answers))
    grown = (base[2] - base[1]) / MIB
    print(json.dumps({"kind": kind, "one": base[1] // MIB, "two": base[2] // MIB, "more": round(grown)}))
    assert grown < BIG_MIB
    assert base[2] < (BIG_MIB + 2 * 350) * MIB
