"""Workers on a real GPU: which one each gets, that it computes there, and that the sandbox lets it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
import pytest

from cloister.serve.pack import pack_archive
from tests.processes.server import Server, free_port
from tests.serve.sandbox.inside import sandbox_flags

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

HANDLER = """
import os, socket, torch
from ts.torch_handler.base_handler import BaseHandler

class OnGpu(BaseHandler):
    def initialize(self, context):
        self._choose_device(context.system_properties["gpu_id"])
        self.gpu_id = context.system_properties["gpu_id"]
        self.weight = torch.eye(64, device=self.device) * 2

    def handle(self, data, context):
        rows = torch.ones((len(data), 64), device=self.device) @ self.weight
        torch.cuda.synchronize(self.device)
        try:
            socket.create_connection(("127.0.0.1", 1), timeout=1)
            network = "there"
        except PermissionError:
            network = "none"
        except OSError:
            network = "there"
        found = {"pid": os.getpid(), "gpu": self.gpu_id, "device": str(rows.device)}
        return [{**found, "sum": rows.sum().item() / len(data), "network": network}] * len(data)
"""


def facts(server: Server, port: int, model: str) -> list[dict[str, object]]:
    """What management says of a model's workers."""
    described = httpx.get(f"http://127.0.0.1:{port}/models/{model}").json()
    listed: list[dict[str, object]] = described[0]["workers"]
    return listed


@pytest.mark.parametrize("sandbox", ["off", "required"])
def test_workers_compute_on_their_gpus(tmp_path: Path, sandbox: str) -> None:
    """Each worker is told its GPU in turn, computes there, and has no network for it in the sandbox."""
    if sandbox == "required" and sandbox_flags():
        pytest.skip("this machine has not the isolation that is required")
    count = torch.cuda.device_count()
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "config.yaml").write_text(f"minWorkers: {count}\nmaxWorkers: {count}\ndeviceType: gpu\n")
    store = tmp_path / "store"
    store.mkdir()
    pack_archive(
        store / "g.mar",
        name="g",
        version="1.0",
        handler=tmp_path / "handler.py",
        config_file=tmp_path / "config.yaml",
    )
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as memory:
        flags = {
            "serve.mode": "open",
            "serve.model_store": str(store),
            "serve.http_port": free_port(),
            "serve.management_port": port,
            "serve.tmpfs": memory,
            "serve.sandbox": sandbox,
        }
        with Server(flags) as server:
            server.wait_ready()
            seen = {}
            for _ in range(50):
                answer = server.predict("g", json=1)
                assert answer.status_code == 200, answer.text
                found = answer.json()
                assert (found["device"], found["sum"]) == (f"cuda:{found['gpu']}", 128.0)
                assert found["network"] == ("none" if sandbox == "required" else "there")
                seen[found["pid"]] = found["gpu"]
            workers = facts(server, port, "g")
            assert all(worker["gpu"] for worker in workers)
            assert sorted(seen.values()) == sorted(set(seen.values()))
            assert set(seen.values()) <= set(range(count))
            assert server.stop() == 0
