"""What a worker on this machine could be confined by, found out by a process that tries it on itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

import cloister
from cloister.errors import WorkerLost
from cloister.serve.sandbox.confine import confine
from cloister.serve.sandbox.plan import SandboxPlan, SandboxState

_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); import cloister; sys.path.pop(0); "
    "from cloister.serve.sandbox.probe import main; main(sys.argv[2])"
)
TIMEOUT_S = 30


def probe() -> SandboxState:
    """The state that ``best-effort`` comes to here.

    Raises:
        WorkerLost: the process that tried it failed.
    """
    package = Path(cloister.__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("model", "scratch"):
            Path(folder, name).mkdir()
        try:
            run = subprocess.run(
                [sys.executable, "-I", "-B", "-c", _BOOTSTRAP, package, folder],
                capture_output=True,
                timeout=TIMEOUT_S,
                check=True,
            )
            return msgspec.json.decode(run.stdout, type=SandboxState)
        except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
            raise WorkerLost(f"the sandbox cannot be tried: {type(error).__name__}") from error


def main(folder: str) -> None:
    """Confine this process and print its state as JSON."""
    plan = SandboxPlan(level="best-effort", scratch_bytes=1 << 20)
    state = confine(plan, model=Path(folder, "model"), scratch=Path(folder, "scratch"), keep=[])
    sys.stdout.buffer.write(msgspec.json.encode(state))
