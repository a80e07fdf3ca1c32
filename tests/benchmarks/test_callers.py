"""The load generator, against a server that does what it is told."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig.callers import Load, read_bodies, run_callers, write_bodies


class Server(ThreadingHTTPServer):
    """Answers each body with itself after a moment; says no to `bad`."""

    daemon_threads = True
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append(body)
        time.sleep(0.02)
        self.send_response(400 if body == b"bad" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server in a thread."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def load(server: Server, bodies: Path, **changes: object) -> Load:
    """Four callers for half a second."""
    settings: dict[str, object] = {
        "host": "127.0.0.1",
        "port": server.server_address[1],
        "path": "/",
        "headers": {"content-type": "text/plain"},
        "bodies": str(bodies),
        "callers": 4,
        "seconds": 0.5,
    }
    return Load(**{**settings, **changes})  # type: ignore[arg-type]


def test_every_request_is_waited_for_and_counted(server: Server, tmp_path: Path) -> None:
    """The server saw as many requests as were counted, and none took less than it waits."""
    write_bodies(tmp_path / "bodies", [b"x" * 300_000])
    found = run_callers(load(server, tmp_path / "bodies"))
    assert found.requests == len(server.seen) > 4
    assert found.failed == 0
    assert found.p99_ms >= found.p50_ms >= 20
    assert found.per_s == pytest.approx(found.requests / found.took_s)


def test_each_body_is_sent_once(server: Server, tmp_path: Path) -> None:
    """Bodies that are used up end the run, and the kept answers are those of the first ones."""
    bodies = [b"body %d" % number for number in range(9)]
    write_bodies(tmp_path / "bodies", bodies)
    found = run_callers(load(server, tmp_path / "bodies", once=True, seconds=30.0, keep=2))
    assert sorted(server.seen) == bodies
    assert found.requests == 9
    assert [base64.b64decode(answer) for answer in found.answers] == bodies[:2]


def test_a_refusal_is_a_failure(server: Server, tmp_path: Path) -> None:
    """An answer that is not 200 is counted apart, with its status."""
    write_bodies(tmp_path / "bodies", [b"good", b"bad", b"good"])
    found = run_callers(load(server, tmp_path / "bodies", once=True, callers=1))
    assert found.failed == 1
    assert found.statuses == {"200": 2, "400": 1}


@given(bodies=st.lists(st.binary(max_size=300), max_size=20))
def test_bodies_survive_their_file(bodies: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bodies with newlines and digits in them are found again."""
    path = tmp_path_factory.getbasetemp() / "bodies"
    write_bodies(path, bodies)
    raw = path.read_bytes()
    assert [raw[start:end] for start, end in read_bodies(raw)] == bodies
