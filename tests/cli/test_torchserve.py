"""``cloister torchserve --start | --stop | --version``, as a shell runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from cloister.serve.torchserve.background import Background
from tests.processes.server import free_port, pack
from tests.serve.torchserve.launch import NOOP

RUN = "import sys; from cloister.cli.main import main; main(sys.argv[1:])"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One command in ``folder``, whose temporary folder it has for itself."""
    return subprocess.run(
        [sys.executable, "-c", RUN, "torchserve", *words],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def configure(folder: Path, **keys: object) -> int:
    """A store with one model and a configuration on free ports; the inference port."""
    (folder / "store").mkdir()
    shutil.move(pack(folder, "noop", NOOP), folder / "store" / "noop.mar")
    port = free_port()
    values = {
        "inference_address": f"http://127.0.0.1:{port}",
        "management_address": f"http://127.0.0.1:{free_port()}",
        "enable_metrics_api": "false",
        "grpc_inference_port": 0,
        "grpc_management_port": 0,
        "default_workers_per_model": 1,
        **keys,
    }
    (folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    return port


def test_version(tmp_path: Path) -> None:
    """--version prints TorchServe's version that it stands for."""
    result = run(tmp_path, "--version")
    assert result.returncode == 0
    assert result.stdout.startswith("TorchServe Version is 0.12.0")


def test_start_and_stop(tmp_path: Path) -> None:
    """--start returns when the server is up; a second one is refused; --stop waits for its end."""
    port = configure(tmp_path)
    assert "not currently running" in run(tmp_path, "--stop").stdout
    started = run(tmp_path, "--start", "--ncs", "--model-store", "store", "--models", "noop=noop.mar")
    assert started.returncode == 0, started.stderr
    try:
        assert "Model server started" in started.stdout
        key = json.loads((tmp_path / "key_file.json").read_text())["inference"]["key"]
        headers = {"authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{port}/predictions/noop"
        assert httpx.post(url, content=b"x", headers=headers, timeout=30).text == "OK"
        again = run(tmp_path, "--start", "--model-store", "store")
        assert again.returncode == 2
        assert "already running" in again.stderr
    finally:
        stopped = run(tmp_path, "--stop")
    assert stopped.stdout.strip() == "TorchServe has stopped."
    assert not (tmp_path / "key_file.json").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=5)
    assert "not currently running" in run(tmp_path, "--stop").stdout
    assert '"event"' in (tmp_path / "logs" / "ts_log.log").read_text()


def test_a_start_that_fails(tmp_path: Path) -> None:
    """What keeps it from starting is one line and a code, in the background too."""
    configure(tmp_path, keystore="absent.p12", inference_address="https://127.0.0.1:1")
    failed = run(tmp_path, "--start", "--model-store", "store")
    assert failed.returncode != 0
    assert "absent.p12" in failed.stderr
    for words, said in (
        (("--start",), "Missing mandatory parameter --model-store"),
        (("--start", "--model-store", "none"), "--model-store directory not found"),
        (("--start", "--ts-config", "none"), "--ts-config file not found"),
        (("--begin",), "unrecognized arguments"),
    ):
        failed = run(tmp_path, *words)
        assert failed.returncode == 2
        assert said in " ".join(failed.stderr.split()), failed.stderr
        assert "Traceback" not in failed.stderr


def test_help(tmp_path: Path) -> None:
    """--help shows TorchServe's flags."""
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    assert "--no-config-snapshots" in result.stdout


def test_a_broken_model_is_tried_again(tmp_path: Path) -> None:
    """One model that cannot be loaded keeps no other from being served, and is tried again and again."""
    port = configure(tmp_path, disable_token_authorization="true")
    source = f"import pathlib\nassert pathlib.Path({str(tmp_path)!r}, 'mended').exists()\n{NOOP}"
    shutil.move(pack(tmp_path, "broken", source), tmp_path / "store" / "broken.mar")
    (tmp_path / "store" / "text.mar").write_text("no archive")
    started = run(tmp_path, "--start", "--model-store", "store", "--models", "all")
    try:
        assert started.returncode == 0, started.stderr
        answer = httpx.post(f"http://127.0.0.1:{port}/predictions/noop", content=b"x", timeout=30)
        assert answer.text == "OK"
        assert httpx.get(f"http://127.0.0.1:{port}/ping", timeout=30).status_code == 500
        (tmp_path / "mended").touch()
        until = time.monotonic() + 60
        while (
            httpx.post(f"http://127.0.0.1:{port}/predictions/broken", content=b"x", timeout=60).text != "OK"
        ):
            assert time.monotonic() < until
        assert httpx.get(f"http://127.0.0.1:{port}/ping", timeout=30).status_code == 200
    finally:
        run(tmp_path, "--stop")
    log = (tmp_path / "logs" / "ts_log.log").read_text()
    assert log.count("model not loaded") == 1
    assert log.count("model has no worker yet") == 1


def test_another_process_is_never_stopped(tmp_path: Path) -> None:
    """A pid file that names a process of another start time, or is a link, names nobody."""
    background = Background(tmp_path / "pid")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "pid").write_text(f"{sleeper.pid} 1\n")
        assert background.find() == 0
        assert "not currently running" in background.stop(tmp_path)
        time.sleep(0.1)
        assert sleeper.poll() is None
        with background.running(sleeper.pid):
            assert background.find() == sleeper.pid
        assert background.find() == 0
        (tmp_path / "real").write_text("1 1")
        (tmp_path / "pid").symlink_to(tmp_path / "real")
        assert background.find() == 0
    finally:
        sleeper.send_signal(signal.SIGKILL)
        sleeper.wait()
