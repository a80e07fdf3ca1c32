"""Open mode end to end: a real server, real workers, TorchServe's archives and hostile ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.processes.server import Server, free_port, pack
from tests.vectors import vector

LIMIT = 100_000

HANDLER = """
import os, sys, time
from pathlib import Path

class Service:
    def initialize(self, context):
        self.calls = 0
    def handle(self, data, context):
        command = data[0]["body"]
        self.calls += 1
        if command == "environment":
            return [dict(os.environ)]
        if command == "where":
            files = [str(p) for p in Path(context.system_properties["model_dir"]).rglob("*")]
            return [{"pid": os.getpid(), "cwd": os.getcwd(), "files": files}]
        if command == "sleep":
            time.sleep(0.5)
        if command == "hang":
            time.sleep(600)
        if command == "exit":
            os._exit(7)
        if command == "raise":
            raise ValueError("canary-in-exception")
        if command == "fork":
            if os.fork() == 0:
                time.sleep(600)
        return [command]
"""


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder on a tmpfs of this test alone."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, memory: Path) -> Iterator[Server]:
    """One server with one own model, shared by the tests that leave it alive."""
    store = tmp_path_factory.mktemp("models")
    pack(store, "own", HANDLER)
    pack(store, "own", "def handle(data, context): return data and ['two']", version="2.0")
    flags = {
        "serve.mode": "open",
        "serve.model_store": str(store),
        "serve.models": ["own=1.0", "own=2.0"],
        "serve.http_port": free_port(),
        "serve.tmpfs": str(memory),
        "serve.max_request_bytes": LIMIT,
        "serve.worker_threads": 3,
    }
    with Server(flags, environment={"SECRET_OF_PARENT": "x"}) as running:
        running.wait_ready()
        yield running


def ask(server: Server, command: str, model: str = "own/1.0") -> httpx.Response:
    return server.predict(model, content=command.encode(), headers={"content-type": "text/plain"})


def living_in_group(group: int) -> list[int]:
    """Processes of a group that are more than an entry waiting for its parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member_of) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_torchserve_archives(tmp_path: Path, memory: Path) -> None:
    """TorchServe's echo and noop archives answer TorchServe's requests, and the server stops clean."""
    for name in ("echo.mar", "noop.mar", "noop_v2.mar", "noop_handlername.mar"):
        (tmp_path / name).write_bytes(vector(f"torchserve/dev/{name}").read_bytes())
    flags = {"serve.mode": "open", "serve.model_store": str(tmp_path), "serve.http_port": free_port(),
             "serve.models": ["echo", "noop=1.11", "noop=1.2.1", "noop_handlername"],
             "serve.tmpfs": str(memory)}  # fmt: skip
    with Server(flags) as server:
        server.wait_ready()
        assert server.predict("echo", files={"data": b"hello\x00"}).content == b"hello\x00"
        assert server.predict("echo", data={"data": "form"}).content == b"form"
        for model in ("noop", "noop/1.2.1", "noop_handlername/1.0"):
            answer = server.predict(model, content=b"x")
            assert (answer.status_code, answer.text) == (200, "OK")
        assert answer.headers["x-request-id"]
        workers = server.workers()
        assert len(workers) == 4
        mine = [path for path in memory.iterdir() if f"-{server.pid}-" in path.name]
        assert len(mine) == 1
        assert server.stop() == 0
        assert "OPEN MODE" in server.stderr
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        assert not mine[0].exists()


def test_versions_and_listing(server: Server) -> None:
    """The newest version answers unless one is named, and both are listed."""
    assert ask(server, "hi", "own").text == "two"
    assert ask(server, "hi", "own/1.0").text == "hi"
    assert ask(server, "hi", "own/3.0").status_code == 404
    listed = httpx.get(f"{server.url}/models").json()["models"]
    assert [(m["modelName"], m["modelVersion"], m["modelUrl"]) for m in listed] == [
        ("own", "1.0", "own-1.0.mar"),
        ("own", "2.0", "own-2.0.mar"),
    ]


def test_put_is_taken_as_post(server: Server) -> None:
    """``curl -T``, which TorchServe's guides use, sends PUT."""
    headers = {"content-type": "text/plain"}
    answer = httpx.put(f"{server.url}/predictions/own/1.0", content=b"same", headers=headers)
    assert (answer.status_code, answer.text) == (200, "same")


def test_ping_and_metrics(server: Server) -> None:
    """Health and metrics answer; metrics count requests by model and class."""
    ask(server, "hi")
    assert httpx.get(f"{server.url}/ping").json() == {"status": "Healthy"}
    text = httpx.get(f"{server.url}/metrics").text
    assert 'cloister_workers{model_name="own",model_version="1.0",} 1.0' in text
    assert 'cloister_request_seconds_bucket{model_name="own",model_version="1.0",le="+Inf",}' in text


def test_worker_environment_is_clean(server: Server) -> None:
    """A handler finds neither the parent's variables nor a home folder outside of memory."""
    environment = ask(server, "environment").json()
    assert "SECRET_OF_PARENT" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HOME"].startswith("/dev/shm/")
    assert set(environment) <= {
        "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR", "PYTHONDONTWRITEBYTECODE",
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
    }  # fmt: skip


def test_archive_is_unpacked_in_memory_only(server: Server, memory: Path) -> None:
    """The handler's files are under the tmpfs, and the worker's core dumps are off."""
    where = ask(server, "where").json()
    assert where["cwd"].startswith(str(memory))
    assert all(file.startswith(str(memory)) for file in where["files"])
    limits = Path(f"/proc/{where['pid']}/limits").read_text()
    assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]


def test_handler_exception(server: Server) -> None:
    """A handler's exception about its input is 400 with type, fingerprint and reason, for its caller."""
    answer = ask(server, "raise")
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequestException")
    assert "ValueError, fingerprint " in answer.json()["message"]
    assert "canary-in-exception" in answer.json()["message"]
    assert ask(server, "still here").text == "still here"


def test_many_at_once(server: Server) -> None:
    """50 requests at the same time each get their own answer."""
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: ask(server, f"request {i}").text, range(50)))
    assert answers == [f"request {i}" for i in range(50)]


@pytest.mark.parametrize(
    "path", ["/predictions/../models", "/predictions/%2e%2e/x", "/x", "/predictions/%00", "//x//"]
)
def test_bad_paths(server: Server, path: str) -> None:
    """Paths that lead nowhere are 404 in TorchServe's form."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 404"), reply
    assert b'"code": 404' in reply


def test_body_limit(server: Server) -> None:
    """A body over the limit is 413 with and without a declared length, and the sender gets to read it."""

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 10_000

    assert server.predict("own", content=b"x" * LIMIT).status_code == 200
    for body in (b"x" * (LIMIT + 1), b"x" * 3_000_000, chunks()):
        answer = server.predict("own", content=body)
        assert (answer.status_code, answer.json()["code"]) == (413, 413)


def test_killed_worker_is_replaced(server: Server) -> None:
    """Kill -9 of a worker fails no request: a new worker answers it, and the next ones."""
    before = ask(server, "where").json()["pid"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server, "sleep")
        time.sleep(0.2)
        os.kill(before, signal.SIGKILL)
        assert running.result().text == "sleep"
    after = ask(server, "where").json()["pid"]
    assert after != before


def test_worker_that_exits(server: Server) -> None:
    """A request that ends every worker that gets it is answered 507, and only that one."""
    answer = ask(server, "exit")
    assert (answer.status_code, answer.json()["message"]) == (507, "Worker died.")
    assert ask(server, "hi").text == "hi"
    assert httpx.get(f"{server.url}/ping").json() == {"status": "Healthy"}


def test_hung_worker_and_full_queue(tmp_path: Path, memory: Path) -> None:
    """A worker that hangs is replaced after the time limit; a full queue is 503 with Retry-After."""
    pack(tmp_path, "own", HANDLER)
    flags = {"serve.mode": "open", "serve.model_store": str(tmp_path), "serve.http_port": free_port(),
             "serve.tmpfs": str(memory), "serve.request_timeout_s": 1.0, "serve.max_queue": 2}  # fmt: skip
    with Server(flags) as server, ThreadPoolExecutor(8) as pool:
        server.wait_ready()
        begin = time.monotonic()
        hung = pool.submit(ask, server, "hang", "own")
        time.sleep(0.2)
        others = [pool.submit(ask, server, f"{i}", "own") for i in range(6)]
        refused = [answer for job in others if "retry-after" in (answer := job.result()).headers]
        assert hung.result().status_code == 507
        assert time.monotonic() - begin < 5
        assert refused
        assert {answer.json()["type"] for answer in refused} == {"ServiceUnavailableException"}
        assert ask(server, "back", "own").text == "back"
        assert server.stop() == 0


def test_graceful_stop_drains(tmp_path: Path, memory: Path) -> None:
    """SIGTERM lets a running request finish, ends what a handler forked, and leaves nothing behind."""
    pack(tmp_path, "own", HANDLER)
    flags = {"serve.mode": "open", "serve.model_store": str(tmp_path), "serve.http_port": free_port(),
             "serve.tmpfs": str(memory)}  # fmt: skip
    with Server(flags) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready()
        ask(server, "fork", "own")
        group = ask(server, "where", "own").json()["pid"]
        running = pool.submit(ask, server, "sleep", "own")
        time.sleep(0.2)
        assert server.stop() == 0
        assert running.result().text == "sleep"
        assert living_in_group(group) == []
    assert not [path for path in memory.iterdir() if f"-{server.pid}-" in path.name]


def test_killed_server_leaves_no_worker(tmp_path: Path, memory: Path) -> None:
    """Kill -9 of the server takes its workers along, and the next server removes its folder."""
    pack(tmp_path, "own", HANDLER)
    flags = {"serve.mode": "open", "serve.model_store": str(tmp_path), "serve.http_port": free_port(),
             "serve.tmpfs": str(memory)}  # fmt: skip
    with Server(flags) as server:
        server.wait_ready()
        worker = ask(server, "where", "own").json()["pid"]
        server.stop(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()
    with Server(flags) as second:
        second.wait_ready()
        assert not [path for path in memory.iterdir() if f"-{server.pid}-" in path.name]
        assert second.stop(signal.SIGINT) == 0


def test_start_failures(tmp_path: Path, memory: Path) -> None:
    """A handler that cannot load, a taken port and an absent store end the start with one line and a code."""
    flags = {"serve.mode": "open", "serve.model_store": str(tmp_path), "serve.http_port": free_port(),
             "serve.tmpfs": str(memory)}  # fmt: skip
    pack(tmp_path, "broken", "import no_such_module")
    with Server(flags) as server:
        assert server.finish() == 6
        assert "ModuleNotFoundError" in server.stderr.splitlines()[-1]
    with Server({**flags, "serve.model_store": str(tmp_path / "none")}) as server:
        assert server.finish() == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", flags["serve.http_port"]))
        taken.listen()
        with Server(flags) as server:
            assert server.finish() == 2
            assert "cannot listen" in server.stderr
    assert not [path for path in memory.iterdir() if f"-{server.pid}-" in path.name]


def test_logs_are_json_without_content(server: Server) -> None:
    """Each event is one JSON object, and nothing that was asked or answered is in any."""
    ask(server, "canary-in-request")
    ask(server, "raise")
    lines = [line for line in list(server._errors) if line.startswith("{")]
    assert all(json.loads(line)["event"] for line in lines)
    assert "canary-in-request" not in "".join(lines)
