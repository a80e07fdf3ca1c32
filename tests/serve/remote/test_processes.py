"""Worker hosts end to end: real servers, real hosts, real workers, on machines made of network namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes.server import Server, free_port, pack
from tests.serve.remote.machines import Host, Machine, machines

HANDLER = """
import os, time

def handle(data, context):
    answers = []
    for row in data or []:
        body = bytes(row["body"])
        if body.startswith(b"sleep"):
            time.sleep(float(body[5:]))
        answers.append(f"{os.getpid()} {len(body)}")
    return answers
"""
TIMEOUT_S = 2.0


@dataclass
class Site:
    """A model store, a token, and the settings of a frontend and of its hosts."""

    folder: Path
    memory: str
    worker_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)

    def frontend(self, **changes: Any) -> dict[str, Any]:
        """Settings of a frontend without workers of its own."""
        return {
            "serve.mode": "open",
            "serve.model_store": str(self.folder),
            "serve.http_port": self.http_port,
            "serve.tmpfs": self.memory,
            "serve.worker_host": "0.0.0.0",
            "serve.worker_port": self.worker_port,
            "serve.worker_token": str(self.folder / "token"),
            "serve.worker_timeout_s": TIMEOUT_S,
            "serve.max_queue": 1000,
            "serve.remote_only": True,
            **changes,
        }

    def host(self, machine: Machine | None = None, **changes: Any) -> dict[str, Any]:
        """Settings of a worker host."""
        address = machine.here if machine else "127.0.0.2"
        return {
            "serve.mode": "open",
            "serve.model_store": str(self.folder),
            "serve.tmpfs": self.memory,
            "worker.frontend": f"https://{address}:{self.worker_port}",
            "worker.token": str(self.folder / "token"),
            "worker.timeout_s": TIMEOUT_S,
            **changes,
        }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A store with one model."""
    pack(tmp_path, "own", HANDLER)
    (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef\n")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as memory:
        yield Site(tmp_path, memory)


def answerer(server: Server, body: bytes = b"x") -> int:
    """The process that answers."""
    answer = server.predict("own", content=body)
    assert answer.status_code == 200, answer.text
    return int(answer.text.split()[0])


def until(met: Any, within_s: float = 20) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Load:
    """Callers who ask all the time; what they got is counted."""

    def __init__(self, server: Server, callers: int = 8) -> None:
        self.outcomes: Counter[Any] = Counter()
        self.pids: Counter[int] = Counter()
        self.slowest_s = 0.0
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as http:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    answer = http.post(f"{self._server.url}/predictions/own", content=b"sleep0.01")
                    self.outcomes[answer.status_code] += 1
                    if answer.status_code == 200:
                        self.pids[int(answer.text.split()[0])] += 1
                except httpx.HTTPError as error:
                    self.outcomes[type(error).__name__] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)


def test_join_predict_leave(site: Site) -> None:
    """A frontend without workers waits for a host, answers through it, and is unhealthy when it has left."""
    with machines(1) as (machine,), Server(site.frontend()) as server:
        server.wait_ready()
        assert httpx.get(f"{server.url}/ping").status_code != 200
        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(answerer, server)
            with Host(site.host(machine), machine) as host:
                host.wait_joined()
                pid = early.result()
                assert pid in host.workers()
                assert httpx.get(f"{server.url}/ping").status_code == 200
                assert server.predict("own", content=os.urandom(3_000_000)).text.endswith(" 3000000")
                running = pool.submit(answerer, server, b"sleep1")
                time.sleep(0.3)
                assert host.stop() == 0
                assert running.result() == pid
        until(lambda: httpx.get(f"{server.url}/ping").status_code != 200)
        assert server.stop() == 0


def test_local_and_remote_share_the_load(site: Site) -> None:
    """Workers here and there answer side by side."""
    flags = site.frontend(**{"serve.remote_only": False})
    with Server(flags) as server, Host(site.host(**{"worker.slots": 2})) as host:
        server.wait_ready()
        host.wait_joined()
        until(lambda: len(host.workers()) == 2)
        with Load(server) as load:
            until(lambda: len(load.pids) == 3)
        assert set(load.outcomes) == {200}


def test_killed_backend_loses_no_request(site: Site) -> None:
    """Kill -9 of a host, of another's worker, under load: 0 failed requests, and the worker comes back."""
    with machines(2) as (one, two), Server(site.frontend()) as server:
        server.wait_ready()
        with Host(site.host(one), one) as first, Host(site.host(two), two) as second:
            first.wait_joined()
            second.wait_joined()
            with Load(server) as load:
                until(lambda: len(load.pids) == 2)
                victim = first.workers()
                first.stop(signal.SIGKILL)
                until(lambda: not Path(f"/proc/{victim[0]}").exists())
                (worker,) = second.workers()
                os.kill(worker, signal.SIGKILL)
                until(lambda: len(load.pids) == 3)
                time.sleep(0.3)
            assert set(load.outcomes) == {200}


def test_cut_link(site: Site) -> None:
    """A link that drops everything is noticed by the heartbeat; no request is lost, the host comes back."""
    with machines(2) as (one, two), Server(site.frontend()) as server:
        if not one.real:
            pytest.skip("no network namespaces here: a link cannot be cut")
        server.wait_ready()
        with Host(site.host(one), one) as first, Host(site.host(two), two) as second:
            first.wait_joined()
            second.wait_joined()
            with Load(server) as load:
                until(lambda: len(load.pids) == 2)
                one.cut()
                time.sleep(TIMEOUT_S + 2)
                one.mend()
                first.wait_joined(2)
                until(lambda: len(load.pids) == 3)
            assert set(load.outcomes) == {200}
            assert load.slowest_s < TIMEOUT_S + 2
        assert "worker host gone" in "".join(server._errors)


def test_frontend_restarts(site: Site) -> None:
    """A host outlives its frontend's restart, graceful or not, and serves the next one."""
    with Host(site.host()) as host:
        time.sleep(1)  # it finds nobody at first
        for times, number in ((1, signal.SIGTERM), (2, signal.SIGKILL), (3, signal.SIGTERM)):
            with Server(site.frontend()) as server:
                server.wait_ready()
                host.wait_joined(times)
                assert answerer(server) > 0
                server.stop(number)
        assert host.stop() == 0


def test_refused(site: Site) -> None:
    """Another token, another mode, no model: one line, and the exit code of a refusal or a setting."""
    (site.folder / "other").write_text("another token of enough letters")
    (site.folder / "empty").mkdir()
    with Server(site.frontend()) as server:
        server.wait_ready()
        for changes, code, words in (
            ({"worker.token": str(site.folder / "other")}, 3, "another join token"),
            ({"serve.model_store": str(site.folder / "empty")}, 2, "no usable model"),
            ({"worker.token": ""}, 2, "join token only"),
            ({"worker.frontend": "http://127.0.0.2:1"}, 2, "is not https://host:port"),
        ):
            with Host(site.host(**changes)) as host:
                assert host.finish() == code, host.errors
                assert words in host.errors[-1]
        refusals = [line for line in list(server._errors) if "worker host refused" in line]
        assert len(refusals) == 1
        assert "another join token" in refusals[0]


def test_models_come_and_go(site: Site) -> None:
    """A model that is registered later gets a worker on the host; one that is unregistered loses it."""
    management = free_port()
    flags = site.frontend(**{"serve.management_port": management, "serve.model_api": True})
    with Server(flags) as server, Host(site.host()) as host:
        server.wait_ready()
        host.wait_joined()
        first = answerer(server)
        pack(site.folder, "late", HANDLER)
        url = f"http://127.0.0.1:{management}/models"
        assert httpx.post(url, params={"url": "late-1.0.mar", "initial_workers": 1}).status_code == 200
        answer = httpx.post(f"{server.url}/predictions/late", content=b"hello", timeout=60)
        assert answer.text.endswith(" 5"), answer.text
        assert len(host.workers()) == 2
        assert httpx.delete(f"{url}/own").status_code == 200
        until(lambda: first not in host.workers())
        assert server.predict("late", content=b"hello").status_code == 200


def test_registration_by_address_is_refused(site: Site) -> None:
    """The article's unauthenticated registration is answered with what to do instead."""
    management = free_port()
    flags = site.frontend(**{"serve.management_port": management})
    with Server(flags) as server:
        server.wait_ready()
        answer = httpx.put(f"http://127.0.0.1:{management}/models/own?IP=10.0.0.9&PORT=9000")
        assert answer.status_code == 400
        assert "cloister worker --frontend" in answer.json()["message"]


def test_command_line(site: Site) -> None:
    """`cloister worker` takes its settings from flags, prints its digest, ends with the documented code."""
    command = [str(Path(sys.executable).with_name("cloister")), "worker", "--open"]
    shown = subprocess.run([*command, "--digest", "--json"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert len(shown.stdout.split('"')[3]) == 96
    refused = subprocess.run([*command, "--frontend", "https://127.0.0.2:1"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "join token" in refused.stderr
