"""TorchServe's own request collections, run by newman as TorchServe runs them, and its table of requests.

What they would download is given to them: archives of the same names in the model store.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes.server import pack
from tests.serve.torchserve.launch import NOOP, TorchServe
from tests.vectors import vector

NEWMAN = Path(__file__).resolve().parents[3] / ".venv" / "newman" / "node_modules" / ".bin" / "newman"
V2_HANDLER = """
class Handler:
    manifest = None

    def initialize(self, context):
        pass

    def handle(self, data, context):
        explain = context.get_request_header(0, "explain") == "True"
        return [[0.0] * 784 if explain else [1] for _ in data]
"""
ARCHIVES = ("squeezenet1_1", "mnist", "densenet161", "resnet-152-batch", "resnet-18")


def newman() -> str:
    """The command; skips the test where it is not installed (``make test`` installs it where npm is)."""
    found = str(NEWMAN) if NEWMAN.exists() else shutil.which("newman")
    if found is None or shutil.which("node") is None:
        pytest.skip("newman is not installed: npm install --prefix .venv/newman newman@6")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server as TorchServe's tests start it, with the four archives and some of our own."""
    folder = tmp_path_factory.mktemp("newman")
    (folder / "store").mkdir()
    for archive in sorted(vector("torchserve/dev").glob("*.mar")):
        shutil.copy(archive, folder / "store")
    for name in ARCHIVES:
        shutil.move(pack(folder, name, NOOP), folder / "store" / f"{name}.mar")
    shutil.move(pack(folder, "v2", V2_HANDLER), folder / "store" / "v2.mar")
    with TorchServe(folder, {}, ("--disable-token-auth", "--enable-model-api")) as running:
        yield running


def run_collection(server: TorchServe, name: str, data: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Run one collection over iterations of ``data``; newman's report of it."""
    command = newman()
    # Its last request names the default port of the metrics.
    text = vector(f"torchserve/dev/{name}").read_text()
    text = text.replace("http://localhost:8082", f"http://127.0.0.1:{server.ports['metrics']}")
    document = json.loads(text)
    for item in document["item"]:
        url = item["request"]["url"]
        if isinstance(url, dict) and "8082" in str(url.get("port")):
            item["request"]["url"] = f"http://127.0.0.1:{server.ports['metrics']}/metrics"
    (folder / "collection.json").write_text(json.dumps(document))
    (folder / "data.json").write_text(json.dumps(data))
    values = {"protocol": "http", "hostname": "127.0.0.1", "mgmt-port": server.ports["management"],
              "pred-port": server.ports["inference"]}  # fmt: skip
    shown = [{"key": key, "value": str(item), "enabled": True} for key, item in values.items()]
    environment = {"name": "t", "values": shown}
    (folder / "environment.json").write_text(json.dumps(environment))
    result = subprocess.run(
        [command, "run", "collection.json", "-d", "data.json", "-e", "environment.json", "--working-dir",
         str(folder), "-r", "json", "--reporter-json-export", "report.json"],
        cwd=folder, env={**os.environ, "NO_UPDATE_NOTIFIER": "1"}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (folder / "report.json").exists(), result.stdout + result.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())["run"]
    return report


def failures(report: dict[str, Any]) -> list[str]:
    """What failed, in words."""
    return [f"{item['source']['name']}: {item['error']['message']}" for item in report["failures"]]


def test_inference_collection(server: TorchServe, tmp_path: Path) -> None:
    """Register, predict, unregister and metrics hold for each archive, with the answer that it gives."""
    (tmp_path / "input.txt").write_text("hello")
    entry = {
        "worker": 1,
        "synchronous": "true",
        "file": "input.txt",
        "content-type": "text/plain",
        "expected": "OK",
    }
    data = [
        {**entry, "url": "noop.mar", "model_name": "noop"},
        {**entry, "url": "noop_v2.mar", "model_name": "noop"},
        {**entry, "url": "noop_handlername.mar", "model_name": "noop_handlername"},
        {**entry, "url": "resnet-18.mar", "model_name": "resnet-18"},
    ]
    report = run_collection(server, "test_postman_inference_api_test_collection.json", data, tmp_path)
    assert failures(report) == []
    assert report["stats"]["assertions"]["total"] == 5 * len(data)


def test_echo_archive(server: TorchServe) -> None:
    """Every byte comes back as it was, from a form's file and from a form's field."""
    assert server.manage("POST", "/models?url=echo.mar&initial_workers=1").status_code == 200
    raw = bytes(range(256))
    assert server.predict("/predictions/echo", files={"data": ("all.bin", raw)}).content == raw
    encoded = b"data=" + "".join(f"%{byte:02x}" for byte in raw).encode()
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert server.predict("/predictions/echo", content=encoded, headers=kind).content == raw
    assert server.manage("DELETE", "/models/echo").status_code == 200


def test_open_inference_collection(server: TorchServe, tmp_path: Path) -> None:
    """The same for the second version of the protocol, explanations included."""
    tensor = {"name": "input-0", "shape": [1], "datatype": "INT64", "data": [1]}
    (tmp_path / "input.json").write_text(json.dumps({"id": "1", "inputs": [tensor]}))
    data = [{"url": "v2.mar", "model_name": "v2", "worker": 1, "synchronous": "true", "file": "input.json"}]
    report = run_collection(server, "test_postman_kfv2_api_test_collection.json", data, tmp_path)
    assert failures(report) == []
    assert report["stats"]["requests"]["total"] == 5


def test_management_table(server: TorchServe) -> None:
    """TorchServe's table of management requests gives the statuses that it expects, one after the other.

    What needs a download is left out, and so are the requests that build on it.
    """
    names = {f"{{{{mar_path_{name}}}}}": f"{name}.mar" for name in ARCHIVES}
    table = json.loads(vector("torchserve/dev/test_postman_management_data.json").read_text())
    wrong = []
    for entry in table:
        path = entry["path"]
        if "https://" in path:
            continue
        for variable, name in names.items():
            path = path.replace(variable, name)
        answer = server.manage(entry["METHOD"].upper(), f"/{path}")
        expected = entry.get("status_code", 200)
        if answer.status_code != expected:
            wrong.append(
                f"{entry['METHOD']} {path}: {answer.status_code}, expected {expected}: {answer.text}"
            )
    assert wrong == []
    assert len(table) > 50
