"""The limit of a model on this machine: its engine in a loop, in a process that waits to be asked."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig.forms import make_body
from rig.servers import on_cores

APPS = Path(__file__).resolve().parents[1] / "peers"


@dataclass
class Limit:
    """A loaded model that runs when it is asked to."""

    process: subprocess.Popen[str]
    way: str
    """How the engine is called, the better of those tried."""

    def run(self, seconds: float) -> dict[str, float]:
        """Answers per second, middle latency, processor seconds for each answer."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{seconds}\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit("the loop in process ended")
        found: dict[str, float] = json.loads(line)
        return found


@contextlib.contextmanager
def start_limit(task: str, forms: Path, precision: str, work: Path, *, cores: str = "") -> Iterator[Limit]:
    """The loop, from its choice of a way to its end."""
    body = work / f"{task}.limit"
    body.write_bytes(make_body(task))
    process = subprocess.Popen(
        on_cores([sys.executable, str(APPS / "limit.py"), task, str(forms), precision], cores),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BODY_FILE": str(body)},
    )
    try:
        assert process.stdout is not None
        way = process.stdout.readline().strip()
        if not way:
            raise SystemExit("the loop in process did not start")
        yield Limit(process, way)
    finally:
        process.communicate()
