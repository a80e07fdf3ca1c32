"""Starts a server, waits for its first right answer, and stops it with all its processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

JSON_TYPE = "application/json"
START_S = 180.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Running:
    """A server that answers, and a request that it answers."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    body: str | bytes
    log: Path
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": JSON_TYPE})

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.split("/")[2].partition(":")
        return host, int(port)

    @property
    def path(self) -> str:
        return "/" + self.url.split("/", 3)[3]

    def memory_bytes(self) -> int:
        """Resident memory of the first process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE_BYTES

    def children(self) -> list[int]:
        """Process numbers of its children."""
        return children_of(self.process.pid)

    def processor_s(self) -> float:
        """Processor time that it and all its descendants have used so far."""
        return processor_s(self.process.pid)


def processor_s(pid: int) -> float:
    """Processor time that a process and all its descendants have used so far."""
    return sum(map(own_processor_s, family_of(pid)))


def own_processor_s(pid: int) -> float:
    """Processor time that one process has used so far; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def children_of(pid: int) -> list[int]:
    """Process numbers of a process's children."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return sorted(found)


def family_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for member in found:
        found += children_of(member)
    return found


def free_port() -> int:
    """A port that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_cores(command: Sequence[str], cores: str) -> list[str]:
    """The command confined to some cores; an empty list of them means all."""
    return ["taskset", "--cpu-list", cores, *command] if cores else list(command)


def spawn(
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with all its output in a file."""
    with log.open("wb") as output:
        return subprocess.Popen(
            list(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


@dataclass(frozen=True)
class Launch:
    """How a server is started, and what it is asked."""

    command: Sequence[str]
    path: str
    body: str | bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": JSON_TYPE})
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def launched(name: str, launch: Launch, port: int, work: Path) -> Iterator[Running]:
    """A server on loopback, from its first right answer to its end."""
    log = work / f"{name}.log"
    process = spawn(launch.command, log, cwd=work, environment=launch.environment)
    url = f"http://127.0.0.1:{port}{launch.path}"
    running = Running(name, url, process, launch.body, log, launch.headers)
    try:
        wait_ready(running)
        yield running
    finally:
        stop(process)


def wait_ready(running: Running) -> bytes:
    """Wait for the first right answer, and return it."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and running.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(*running.address, timeout=60)
            connection.request("POST", running.path, running.body, dict(running.headers))
            response = connection.getresponse()
            answer = response.read()
            connection.close()
            if response.status == 200:
                return answer
        time.sleep(0.1)
    raise SystemExit(f"{running.name} did not start: {running.log.read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server with all its processes."""
    family = family_of(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    for pid in family[1:]:  # those that left the group; one that has ended is not there any more
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3] == str(process.pid):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    time.sleep(0.3)
