"""Servers on machines that have less to give, made here by a filter over the whole server."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes.server import Server, free_port, pack
from tests.serve.sandbox.inside import missing_here

HANDLER = """
import socket

def handle(data, context):
    if not data:
        return None
    try:
        socket.socket()
    except OSError as error:
        return [type(error).__name__]
    return ["a socket"]
"""
TAKE_AWAY = """
import errno
from cloister.serve.sandbox.bpf import Allow, Answer, assemble
from cloister.serve.sandbox.kernel import PR_SET_NO_NEW_PRIVS, prctl
from cloister.serve.sandbox.syscalls import install_program

prctl(PR_SET_NO_NEW_PRIVS, 1)
rules = dict.fromkeys({numbers}, Answer(errno.EPERM))
install_program(assemble(rules, Allow(), machine="x86_64", unknown_from=100_000))
"""
UNSHARE, MOUNT, LANDLOCK = 272, 165, 444

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="calls by their number on x86-64")


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in memory."""
    if missing_here():
        pytest.skip(f"this machine has no isolation of {', '.join(missing_here())}")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        yield folder


def serve(folder: Path, memory: str, numbers: list[int], level: str) -> Server:
    """A server in open mode with the sandbox on, on a machine without the calls of these numbers."""
    (folder / "sitecustomize.py").write_text(TAKE_AWAY.replace("{numbers}", str(numbers)))
    store = folder / "store"
    store.mkdir()
    pack(store, "own", HANDLER)
    flags: dict[str, Any] = {
        "serve.mode": "open",
        "serve.model_store": str(store),
        "serve.http_port": free_port(),
        "serve.tmpfs": memory,
        "serve.sandbox": level,
    }
    return Server(flags, environment={"PYTHONPATH": f"{folder}:{Path(__file__).parents[3] / 'src'}"})


def test_container_without_namespaces(tmp_path: Path, memory: str) -> None:
    """Where namespaces are refused, as containers do, Landlock and the filter are enough for ``required``."""
    with serve(tmp_path, memory, [UNSHARE, MOUNT], "required") as server:
        server.wait_ready()
        assert server.predict("own", content=b"x").text == "PermissionError"
        (model,) = httpx.get(f"{server.url}/models").json()["models"]
        assert "network=seccomp" in model["sandbox"]
        assert "files=landlock:" in model["sandbox"]


def test_required_refuses_to_start(tmp_path: Path, memory: str) -> None:
    """Where files cannot be isolated, the server does not start, and says why and what to do."""
    with serve(tmp_path, memory, [UNSHARE, LANDLOCK], "required") as server:
        assert server.finish() != 0
        assert "no files isolation" in server.stderr
        assert "serve.sandbox = best-effort" in server.stderr
        assert "Traceback" not in server.stderr


def test_best_effort_says_what_there_is(tmp_path: Path, memory: str) -> None:
    """Told in words, it serves on such a machine, and says so."""
    with serve(tmp_path, memory, [UNSHARE, LANDLOCK], "best-effort") as server:
        server.wait_ready()
        assert server.predict("own", content=b"x").text == "PermissionError"
        (model,) = httpx.get(f"{server.url}/models").json()["models"]
        assert "files=none" in model["sandbox"]
