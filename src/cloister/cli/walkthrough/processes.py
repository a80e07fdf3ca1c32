"""Real processes for the demo: started, waited for, stopped by pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from cloister.errors import TransportError

STOP_TIMEOUT_S = 15.0


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that are free right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def command(*arguments: str | Path) -> list[str]:
    """Command line that runs ``cloister`` with this interpreter."""
    return [sys.executable, "-m", "cloister", *(str(argument) for argument in arguments)]


def clean_environment(package_parent: Path | None = None) -> dict[str, str]:
    """This process's environment less Cloister's settings; ``package_parent`` holds another copy of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")}
    if package_parent is not None:
        environment["PYTHONPATH"] = str(package_parent)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment


class Process:
    """One background process that writes its output into a log file."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, for people who want to stop it themselves."""
        return self._process.pid

    def wait_until_ready(self, url: str, timeout_s: float = 90.0) -> None:
        """Wait until ``url`` answers 200.

        Raises:
            TransportError: the process ended, or did not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        # The certificate is not the question here: who answers is checked by attestation afterwards.
        with httpx.Client(verify=False, timeout=2.0) as client:  # noqa: S501
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise TransportError(f"{self.name} ended: {last_line(self.log)}", hint=f"see {self.log}")
                try:
                    if client.get(url).status_code == httpx.codes.OK:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.05)
        raise TransportError(f"{self.name} did not answer within {timeout_s:.0f} s", hint=f"see {self.log}")

    def stop(self) -> int:
        """Ask the process to end, insist after a while; returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()


def run_to_end(
    arguments: list[str], log: Path, *, package_parent: Path | None = None, timeout_s: float = 90.0
) -> tuple[int, str]:
    """Run a command that is expected to end; returns its exit code and its last line of output."""
    with log.open("wb") as output:
        code = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=clean_environment(package_parent),
            timeout=timeout_s,
            check=False,
        ).returncode
    return code, last_line(log)


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "(no output)"
