"""The guide for those who come from TorchServe: its examples run as they are written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.server import free_port, pack
from tests.serve.torchserve.launch import NOOP

PAGE = Path(__file__).resolve().parents[3] / "docs" / "torchserve.md"
PORTS = ("8080", "8081", "8082")


def test_examples(tmp_path: Path) -> None:
    """Start, ask, scale, register, unregister, read metrics, stop: on other ports, every command succeeds."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    text = PAGE.read_text()
    for port in PORTS:
        text = text.replace(port, str(free_port()))
    (tmp_path / "model_store").mkdir()
    shutil.move(pack(tmp_path, "noop", NOOP), tmp_path / "model_store" / "noop.mar")
    (properties,) = re.findall(r"^```properties\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "config.properties").write_text(
        properties + "grpc_inference_port=0\ngrpc_management_port=0\n"
    )
    shim = tmp_path / "bin" / "cloister"
    shim.parent.mkdir()
    run = "import sys; from cloister.cli.main import main; main(sys.argv[1:])"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{run}" "$@"\n')
    shim.chmod(0o755)
    environ = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    said = []
    try:
        for block in blocks:
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
            said.append(result.stdout)
    finally:
        subprocess.run([str(shim), "torchserve", "--stop"], cwd=tmp_path, env=environ, check=False)
    started, asked, stopped = said
    assert "Model server started." in started
    assert asked.startswith("OK")
    assert '"code"' not in asked
    assert "Workers scaled to 2 for model: noop" in asked
    assert 'Model \\"second\\" unregistered' in asked
    assert 'ts_inference_requests_total{model_name="noop",model_version="default"' in asked
    assert "TorchServe has stopped." in stopped
