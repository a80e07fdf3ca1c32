"""Runs Python code in a process that has confined itself, with layers of the machine taken away at will."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import cloister
from cloister.serve.sandbox import landlock
from cloister.serve.sandbox.plan import SandboxPlan

PREAMBLE = """
import errno, json, os, sys
sys.path.insert(0, sys.argv[1])
import msgspec
from pathlib import Path
from cloister.serve.sandbox import confine as module, kernel, landlock, namespaces, mounts, syscalls
from cloister.serve.sandbox.plan import SandboxPlan

def refuse(*_, **__):
    raise OSError(errno.EPERM, "taken away by the test")

def attempt(action, *arguments):
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
"""
TAKEN_AWAY = {
    "namespaces": "namespaces.unshare = refuse",
    "mounts": "module.enter_own_root = refuse",
    "landlock": "landlock.abi = lambda: 0",
    "landlock-1": "landlock.abi = lambda: 1",
    "landlock-5": "landlock.abi = lambda: 5",
    "seccomp": "module.install_filter = refuse",
    # Without capabilities, as any user but root is, namespaces come by a user namespace only. The one that is
    # left (CAP_SETFCAP) is what root, and only root, needs to keep its number there.
    "root": "os.geteuid() or kernel.system_call('capset', kernel.struct.pack('=Ii', 0x20080522, 0), "
    "kernel.struct.pack('=6I', 1 << 31, 1 << 31, 0, 0, 0, 0))",
    "any capability": "os.geteuid() or kernel.system_call('capset', "
    "kernel.struct.pack('=Ii', 0x20080522, 0), bytes(24))",
}
CONFINE = """
plan = msgspec.json.decode(sys.argv[3], type=SandboxPlan)
folder = Path(sys.argv[2])
state = module.confine(plan, model=folder / "model", scratch=folder / "scratch", keep=[])
os.write(1, state.render().encode() + b"\\n")
"""


def run_confined(
    folder: Path, code: str, *, plan: SandboxPlan | None = None, without: Sequence[str] = ()
) -> tuple[str, Any]:
    """The rendered state, and what ``code`` assigns to ``result``.

    Args:
        folder: has the folders ``model`` and ``scratch`` made in it.
        without: keys of ``TAKEN_AWAY``.
    Raises:
        AssertionError: the process failed; with what it wrote.
    """
    for name in ("model", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    taken = "\n".join(TAKEN_AWAY[name] for name in without)
    source = f"{PREAMBLE}\n{taken}\n{CONFINE}\n{code}\nos.write(1, json.dumps(result).encode())"
    plan = plan or SandboxPlan(level="best-effort", scratch_bytes=8 << 20)
    package = Path(cloister.__file__).resolve().parents[1]
    run = subprocess.run(
        [sys.executable, "-I", "-B", "-c", source, package, folder, msgspec.json.encode(plan)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HOME": str(folder / "scratch")},  # as a worker's
    )
    assert run.returncode == 0, run.stderr[-3000:]
    state, _, result = run.stdout.partition("\n")
    return state, json.loads(result)


@functools.cache
def missing_here() -> tuple[str, ...]:
    """What ``serve.sandbox = "required"`` asks for and this machine does not have."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        state, _ = run_confined(Path(folder), "result = 0")
    return tuple(name for name in ("network", "files", "syscalls") if f"{name}=none" in state)


def sandbox_flags() -> dict[str, Any]:
    """Settings that a server in protected mode needs on this machine besides the defaults."""
    return {"serve.sandbox": "best-effort"} if missing_here() else {}


def landlock_version() -> int:
    """Of this machine."""
    return landlock.abi()
