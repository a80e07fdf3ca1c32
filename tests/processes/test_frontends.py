"""Two frontend processes before one core: a real server in open mode and in protected mode."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloister.ohttp import bhttp
from cloister.ohttp.capsule import KeyConfig, seal_request
from cloister.ohttp.replay import render_date
from cloister.settings import load_settings, settings_digest
from tests.processes.server import Server, free_port, pack
from tests.processes.test_protected import CANARIES, World, make_world

LIMIT = 100_000
HANDLER = """
import time
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    if data is None:
        return None
    asked = str(data[0].get("body") or data[0].get("data"))
    if asked == "sleep":
        time.sleep(1.0)
    if asked == "stream":
        for number in range(3):
            send_intermediate_predict_response([f"part{number} "], context.request_ids, "", 200, context)
            time.sleep(0.1)
        return ["end"]
    if asked == "endless":
        while True:
            send_intermediate_predict_response(["x" * 1000], context.request_ids, "", 200, context)
            time.sleep(0.01)
    return [asked]
"""
TEXT = {"content-type": "text/plain"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An open server with two frontends and a metrics port of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as memory:
        pack(tmp_path, "own", HANDLER)
        flags = {
            "serve.mode": "open",
            "serve.model_store": str(tmp_path),
            "serve.http_port": free_port(),
            "serve.metrics_port": free_port(),
            "serve.tmpfs": memory,
            "serve.max_request_bytes": LIMIT,
            "serve.request_timeout_s": 3.0,
            "serve.frontends": 2,
            "serve.access_log": True,
        }
        with Server(flags) as running:
            running.wait_ready()
            yield running


@dataclass
class Load:
    """Callers with a connection each, who ask until they are told to stop or their connection breaks."""

    address: tuple[str, int]
    answered: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def call(self, number: int) -> None:
        """One caller."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        count = 0
        try:
            while not self.stop.is_set():
                connection.request("POST", "/predictions/own", f"{number} {count}", TEXT)
                answer = connection.getresponse()
                said = answer.read().decode()
                if (answer.status, said) != (200, f"{number} {count}"):
                    self.wrong.append(f"{answer.status} {said}")
                count += 1
                self.answered.append(number)
        except (OSError, http.client.HTTPException):
            self.broken.append(number)
        finally:
            connection.close()

    @contextlib.contextmanager
    def running(self, callers: int) -> Iterator[None]:
        with ThreadPoolExecutor(callers) as threads:
            for number in range(callers):
                threads.submit(self.call, number)
            try:
                yield
            finally:
                self.stop.set()


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def test_killed_under_load(server: Server) -> None:
    """Kill -9 of a frontend breaks its own connections; no other request fails, and it is back at once."""
    load = Load(address(server))
    with load.running(24):
        time.sleep(0.5)
        first = server.frontends()
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        killed = time.monotonic()
        # The kernel gives the dead one's part of the new connections to its successor: none is refused.
        for number in range(8):
            answer = httpx.post(
                f"{server.url}/predictions/own", content=f"{number}", headers=TEXT, timeout=30
            )
            assert (answer.status_code, answer.text) == (200, str(number))
        assert time.monotonic() - killed < 10
        time.sleep(0.5)
        second = server.frontends()
        assert first[1] in second
        assert first[0] not in second
        assert len(second) == 2
    # Both had connections; those of the one that was killed broke, each once, and those of the other did not.
    assert load.wrong == []
    assert 0 < len(load.broken) < 24
    assert len(load.answered) > 24
    assert server.stop() == 0
    (line,) = [json.loads(line) for line in server.stderr.splitlines() if "starting another" in line]
    assert line["reason"] == "it ended with signal 9 (SIGKILL)"


def test_core_takes_frontends_with_it(server: Server) -> None:
    """Kill -9 of the core ends its frontends."""
    pids = server.frontends()
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def test_streams(server: Server) -> None:
    """Parts arrive as they are made, and a caller who leaves in the middle frees the worker."""
    parts: list[tuple[float, bytes]] = []
    with httpx.stream("POST", f"{server.url}/predictions/own", content=b"stream", headers=TEXT) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        parts += [(time.monotonic(), part) for part in answer.iter_raw()]
    assert b"".join(part for _, part in parts) == b"part0 part1 part2 end"
    assert parts[-1][0] - parts[0][0] > 0.15
    url = f"{server.url}/predictions/own"
    with httpx.stream("POST", url, content=b"endless", headers=TEXT) as answer:
        assert next(answer.iter_raw())
    assert server.predict("own", content=b"after", headers=TEXT).text == "after"


def _say(server: Server, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """All that a raw connection answers until it is closed."""
    with socket.create_connection(address(server), 30) as wire:
        for piece in pieces:
            wire.sendall(piece)
            time.sleep(pause_s)
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while more := wire.recv(1 << 16):
                said += more
        return said


def test_limits(server: Server) -> None:
    """What is too much or too slow is refused by the frontend, with the statuses of a server without any."""
    post = b"POST /predictions/own HTTP/1.1\r\nhost: a\r\n"
    too_long = _say(server, post + b"content-length: %d\r\n\r\n" % (LIMIT + 1), b"x" * 1000)
    assert too_long.startswith(b"HTTP/1.1 413 ")
    assert b"RequestEntityTooLargeException" in too_long
    assert _say(server, post + b"x: " + b"y" * 70_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    assert _say(server, post + b"content-length: 10\r\n\r\nx").startswith(b"HTTP/1.1 408 ")
    chunked = post + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1))
    assert _say(server, chunked).startswith(b"HTTP/1.1 413 ")


def test_each_request_is_counted_once(server: Server) -> None:
    """Metrics and access log know each request once, by the id that its caller was told."""
    ids = []
    for number in range(5):
        answer = server.predict("own", content=f"{number}", headers=TEXT)
        ids.append(answer.headers["x-request-id"])
    missing = server.predict("none", content=b"x")
    ids.append(missing.headers["x-request-id"])
    assert missing.status_code == 404
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'ts_inference_requests_total{model_name="own",model_version="default"' in metrics
    by_status = {
        line.partition("{")[0]: float(line.split()[-1])
        for line in metrics.splitlines()
        if line.startswith(("Requests2XX{", "Requests4XX{"))
    }
    assert by_status == {"Requests2XX": 5.0, "Requests4XX": 1.0}
    assert server.stop() == 0
    logged = [json.loads(line) for line in server.stderr.splitlines() if '"event":"access"' in line]
    assert sorted(line["request_id"] for line in logged if line["request_id"] in ids) == sorted(ids)


def test_drain(server: Server) -> None:
    """On SIGTERM what is being answered finishes, and nothing new is accepted."""
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(server.predict, "own", content=b"sleep", headers=TEXT)
        time.sleep(0.3)
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            server.predict("own", content=b"x")
        answer = asking.result()
    assert (answer.status_code, answer.text) == (200, "sleep")
    assert server.finish() == 0
    assert "starting another" not in server.stderr


def test_frontends_do_not_heed_signals(server: Server) -> None:
    """A SIGTERM to every process of a group, as service managers send, drains by the core's word alone."""
    pids = server.frontends()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert server.predict("own", content=b"x", headers=TEXT).text == "x"
    assert server.frontends() == pids


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A broker that lets a server with two frontends have its key."""
    with make_world(tmp_path_factory.mktemp("world"), **{"serve.frontends": 2}) as made:
        yield made


@pytest.fixture(scope="module")
def protected(world: World) -> Iterator[Server]:
    """The protected server."""
    with Server(world.flags, environment={"HOME": str(world.folder / "home")}) as running:
        running.wait_ready()
        yield running


def _key_of(port: int) -> bytes:
    """The certificate that one new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 30) as plain, context.wrap_socket(plain) as wire:
        assert wire.version() == "TLSv1.3"
        return wire.getpeercert(binary_form=True) or b""


def test_protected(world: World, protected: Server) -> None:
    """Verified callers are answered under seal and over attested TLS, whichever process takes them."""
    assert len(protected.frontends()) == 2
    for _ in range(6):
        with world.client() as client:
            verified = client.verify()
            assert verified.identity.settings_digest == settings_digest(load_settings(None, {}, world.flags))
            answer = client.predict("own", CANARIES["request"])
            assert answer.content.decode().endswith(CANARIES["request"])
    assert len({_key_of(world.https_port) for _ in range(12)}) == 1
    over_tls = httpx.post(f"{protected.url}/predictions/own", content="x", headers=TEXT, verify=False)
    assert over_tls.status_code == 200
    plain = httpx.post(f"http://127.0.0.1:{world.http_port}/predictions/own", content=b"secret")
    assert (plain.status_code, plain.json()["type"]) == (403, "PlainHttpRefused")


def test_replay_is_seen_by_all(world: World, protected: Server) -> None:
    """A sealed request that one frontend took is not taken a second time by any."""
    url = f"http://127.0.0.1:{world.http_port}/.well-known/ohttp-gateway"
    keys = httpx.get(url).content
    length = int.from_bytes(keys[:2])
    headers = ((b"date", render_date(datetime.now(UTC))), (b"content-type", b"text/plain"))
    message = bhttp.render_request(bhttp.Request(b"POST", b"https", b"a", b"/predictions/own", headers, b"x"))
    capsule, opener = seal_request(KeyConfig.parse(keys[2 : 2 + length]), message)
    sealed = {"content-type": "message/ohttp-req"}
    first = httpx.post(url, content=capsule, headers=sealed)
    assert bhttp.parse_response(opener.open(first.content)).status == 200
    for _ in range(12):  # each on a connection of its own
        assert httpx.post(url, content=capsule, headers=sealed).status_code == 409


def test_key_is_nowhere_to_be_read(world: World, protected: Server) -> None:
    """A frontend has the key in its memory alone: not in arguments or environment, and it dumps no core."""
    for pid in protected.frontends():
        process = Path(f"/proc/{pid}")
        assert b"PRIVATE" not in (process / "cmdline").read_bytes()
        limits = (process / "limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        with contextlib.suppress(PermissionError):  # itself a sign: it cannot be looked into
            environment = dict(
                item.split(b"=", 1) for item in (process / "environ").read_bytes().split(b"\0") if item
            )
            assert b"PRIVATE" not in b"".join(environment.values())
            assert set(environment) <= {
                b"PATH", b"LANG", b"LC_ALL", b"TZ", b"HOME", b"TMPDIR", b"PYTHONDONTWRITEBYTECODE",
                b"OMP_NUM_THREADS", b"MKL_NUM_THREADS", b"OPENBLAS_NUM_THREADS", b"NUMEXPR_NUM_THREADS",
                b"CUDA_VISIBLE_DEVICES", b"NVIDIA_VISIBLE_DEVICES",
            }  # fmt: skip


def test_protected_kill_and_quiet_end(world: World, protected: Server) -> None:
    """A killed frontend comes back with the same key; at the end no log has a word of any request."""
    before, first = _key_of(world.https_port), protected.frontends()
    os.kill(first[1], signal.SIGKILL)
    with world.client() as client:
        assert client.predict("own", CANARIES["request"]).status == 200
    deadline = time.monotonic() + 20
    while len(protected.frontends()) < 2 or first[1] in protected.frontends():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {_key_of(world.https_port) for _ in range(8)} == {before}
    assert protected.stop() == 0
    said: Any = protected.stdout + protected.stderr
    assert not [name for name, canary in CANARIES.items() if canary in said]
    assert "Traceback" not in said
