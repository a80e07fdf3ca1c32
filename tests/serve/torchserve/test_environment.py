"""What the workers of ``cloister torchserve`` have of the server's surroundings."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.processes.server import pack
from tests.serve.torchserve.launch import TorchServe

HANDLER = """
import os, sys

def handle(data, context):
    if data is None:
        return None
    import beside

    names = ("MINE", "WITHHELD", "HOME", "CLOISTER_SERVE_WORKER_SCRATCH_MB", "TS_KEYSTORE_PASS")
    return [{**{name: os.environ.get(name) for name in names}, "beside": beside.WORD}] * len(data)
"""


RAW = """
def handle(data, context):
    return data and [[type(value).__name__ for value in row.values()] for row in data]
"""


def test_undecoded_requests(tmp_path: Path) -> None:
    """With decode_input_request=false a handler gets what was sent, as SageMaker's configurations want it."""
    (tmp_path / "store").mkdir()
    shutil.move(pack(tmp_path, "m", RAW), tmp_path / "store" / "m.mar")
    properties = {"load_models": "m.mar", "default_workers_per_model": 1, "decode_input_request": "false"}
    with TorchServe(tmp_path, properties, ("--disable-token-auth",)) as server:
        for kind in ("application/json", "text/csv", "image/png"):
            answer = server.predict("/predictions/m", content=b"[1]", headers={"content-type": kind})
            assert answer.json() == ["bytearray"]
        part = {"data": ("x.json", b"[1]", "application/json")}
        assert server.predict("/predictions/m", files=part).json() == ["bytearray"]
        assert server.predict(
            "/predictions/m", content=b"{", headers={"content-type": "application/json"}
        ).json()


def test_handlers_find_the_servers_environment(tmp_path: Path) -> None:
    """Variables, home folder and PYTHONPATH are the server's, as TorchServe's are; secrets not."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "beside.py").write_text("WORD = 'found'")
    (tmp_path / "store").mkdir()
    shutil.move(pack(tmp_path, "m", HANDLER), tmp_path / "store" / "m.mar")
    environment = {
        "MINE": "x",
        "WITHHELD": "x",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(tmp_path / "lib"),
        "TS_KEYSTORE_PASS": "x",
        "CLOISTER_SERVE_WORKER_SCRATCH_MB": "7",
    }
    properties = {"load_models": "m.mar", "default_workers_per_model": 1, "blacklist_env_vars": "WITH.*"}
    with TorchServe(tmp_path, properties, ("--disable-token-auth",), environment=environment) as server:
        found = server.predict("/predictions/m", content=b"x").json()
    assert found == {
        "MINE": "x",
        "WITHHELD": None,
        "HOME": str(tmp_path),
        "CLOISTER_SERVE_WORKER_SCRATCH_MB": None,
        "TS_KEYSTORE_PASS": None,
        "beside": "found",
    }
