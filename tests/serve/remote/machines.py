"""Other machines for tests: network namespaces where the system allows them, else other addresses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

_RUN = (
    "import json, sys\n"
    "from cloister.errors import CloisterError\n"
    "from cloister.serve.remote.joining import run_worker\n"
    "from cloister.settings import load_settings\n"
    "try:\n"
    "    run_worker(load_settings(None, {}, json.loads(sys.argv[1])),"
    " ready=lambda line: print(line, flush=True))\n"
    "except CloisterError as error:\n"
    "    print(error.message, file=sys.stderr)\n"
    "    sys.exit(error.exit_code)\n"
)


class Machine:
    """A place for processes with a link to this one, which can be cut."""

    def __init__(self, number: int, *, real: bool) -> None:
        self.real = real
        """A network namespace of its own."""
        self._name = f"cloister-{os.getpid()}-{number}"
        self._link = f"cl{os.getpid() % 100_000:x}n{number}"
        self._net = f"10.{97 + number}.{os.getpid() % 250}"

    @property
    def here(self) -> str:
        """This machine's address, as that one sees it."""
        return f"{self._net}.1" if self.real else "127.0.0.2"

    @property
    def prefix(self) -> list[str]:
        """What a command there begins with."""
        return ["ip", "netns", "exec", self._name] if self.real else []

    def make(self) -> None:
        """Set it up."""
        if not self.real:
            return
        far = self._link + "x"
        for command in (
            f"ip netns add {self._name}",
            f"ip link add {self._link} type veth peer name {far} netns {self._name}",
            f"ip addr add {self._net}.1/24 dev {self._link}",
            f"ip link set {self._link} up",
            f"ip -n {self._name} addr add {self._net}.2/24 dev {far}",
            f"ip -n {self._name} link set {far} up",
            f"ip -n {self._name} link set lo up",
        ):
            subprocess.run(command.split(), check=True, capture_output=True)

    def cut(self) -> None:
        """Drop everything between the two machines, without a word to either."""
        subprocess.run(f"ip -n {self._name} link set {self._link}x down".split(), check=True)

    def mend(self) -> None:
        """Let it through again."""
        subprocess.run(f"ip -n {self._name} link set {self._link}x up".split(), check=True)

    def remove(self) -> None:
        """Take it down."""
        if self.real:
            subprocess.run(["ip", "link", "del", self._link], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", self._name], check=False, capture_output=True)


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many machines."""
    made = [Machine(number, real=True) for number in range(count)]
    try:
        for machine in made:
            machine.make()
    except (OSError, subprocess.CalledProcessError):
        for machine in made:
            machine.remove()
        made = [Machine(number, real=False) for number in range(count)]
    try:
        yield made
    finally:
        for machine in made:
            machine.remove()


class Host:
    """A worker host in a process of its own; what it said is in ``lines`` and ``errors``."""

    def __init__(self, flags: Mapping[str, Any], machine: Machine | None = None) -> None:
        prefix = machine.prefix if machine else []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _RUN, json.dumps(dict(flags))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        streams = ((self._process.stdout, self.lines), (self._process.stderr, self.errors))
        self._readers = [threading.Thread(target=_read, args=pair) for pair in streams]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_joined(self, times: int = 1, *, within_s: float = 30) -> None:
        """Wait until it has joined so many times."""
        deadline = time.monotonic() + within_s
        while sum("joined" in line for line in self.lines) < times:
            assert time.monotonic() < deadline, self.errors
            assert self._process.poll() is None, self.errors
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Process numbers of its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in children]

    def finish(self, within_s: float = 30) -> int:
        """Wait for its end; its exit code."""
        code = self._process.wait(within_s)
        for reader in self._readers:
            reader.join()
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self.stop(signal.SIGKILL)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def _read(stream: Any, lines: list[str]) -> None:
    for line in stream:
        lines.append(line)
