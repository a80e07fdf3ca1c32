"""The cache's UNIX socket: whom it answers, and what it does with those who do not speak its protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ConfigError, KeyUnavailable, MalformedInput, TransportError
from cloister.kbs.cache.client import CacheClient
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.cache.local import ANSWER, REQUEST, LocalServer, Outcome
from tests.kbs.cache.test_keep import A, B, Broker

LOG = structlog.wrap_logger(structlog.testing.CapturingLogger())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder into which others can look, with a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="cache-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Path]:
    """A socket behind which key A is, for this user."""
    yield from serve(folder / "s", (os.getuid(),))


def serve(path: Path, uids: tuple[int, ...]) -> Iterator[Path]:
    keep: KeyKeep = Broker().keep(A)
    running = LocalServer(path, keep, uids, LOG).start()
    yield path
    running.close()
    keep.clear()


def test_key_comes_back(server: Path) -> None:
    """An allowed user gets the key, as often as wanted."""
    with CacheClient(server) as client:
        assert [client.get_resource(A) for _ in range(3)] == [b"key-a"] * 3


def test_refusals_become_the_errors_of_a_broker_client(server: Path) -> None:
    """A key that is not the cache's is KeyUnavailable, and what is no URI never leaves."""
    with CacheClient(server) as client:
        with pytest.raises(KeyUnavailable, match="not among"):
            client.get_resource(B)
        with pytest.raises(MalformedInput):
            client.get_resource("https://x/y")


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
def test_another_user_is_refused(folder: Path) -> None:
    """A process of a user who is not listed gets no key, whatever the rights of the socket."""
    for uids, outcome in (((0,), "user 12345 may not ask"), ((12345,), "key-a")):
        for path in serve(folder / "t", uids):
            program = (
                "import os, sys\n"
                "from pathlib import Path\n"
                "from cloister.kbs.cache.client import CacheClient\n"
                "os.setresuid(12345, 12345, 12345)\n"
                "try:\n"
                "    print(CacheClient(Path(sys.argv[1])).get_resource(sys.argv[2]))\n"
                "except Exception as error:\n"
                "    print(type(error).__name__, error)\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", program, str(path), A], capture_output=True, text=True, check=True
            )
            assert outcome in done.stdout, done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
def test_a_false_cache_is_not_believed(folder: Path) -> None:
    """Nobody takes keys from a socket that some other user opened in a folder of all."""
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    program = (
        "import os, socket, sys\n"
        "os.setresuid(12345, 12345, 12345)\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(shared / "s")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(TransportError, match="not one to take keys from"):
            CacheClient(shared / "s").get_resource(A)
        process.communicate("")


def test_nobody_there(folder: Path) -> None:
    """No socket, or a stale one, is a TransportError that says what to start."""
    with pytest.raises(TransportError, match="cannot be reached") as caught:
        CacheClient(folder / "absent").get_resource(A)
    assert "keys cache" in caught.value.hint


def test_a_silent_cache_is_given_up(folder: Path) -> None:
    """A cache that does not answer is left after the timeout."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "silent"))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(TransportError, match="not answered within"):
            CacheClient(folder / "silent", timeout_s=0.2).get_resource(A)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "answer", [b"", b"\0", ANSWER.pack(9, 0), ANSWER.pack(0, 9) + b"short", b"\0\xff\xff\xff\xff"]
)
def test_a_broken_answer(folder: Path, answer: bytes) -> None:
    """An answer that ends early, or has another form, is a TransportError."""
    path = folder / "broken"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        child = os.fork()
        if not child:
            peer, _ = listener.accept()
            peer.recv(100)
            peer.sendall(answer)
            os._exit(0)
        with pytest.raises(TransportError, match="no usable answer"):
            CacheClient(path).get_resource(A)
        os.waitpid(child, 0)
    path.unlink()


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(folder: Path) -> None:
    """After a crash the cache starts again; a second one beside it does not."""
    path = folder / "stale"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    for socket_path in serve(path, (os.getuid(),)):
        assert CacheClient(socket_path).get_resource(A) == b"key-a"
        with pytest.raises(ConfigError, match="another key cache"):
            LocalServer(path, Broker().keep(), (), LOG)
    assert not path.exists()


def test_a_file_in_the_way_is_left_alone(folder: Path) -> None:
    """What is not a socket is not removed; a folder that is not there is named."""
    (folder / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not a socket"):
        LocalServer(folder / "file", Broker().keep(), (), LOG)
    assert (folder / "file").read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot listen"):
        LocalServer(folder / "no" / "s", Broker().keep(), (), LOG)


@settings(max_examples=60)
@given(raw=st.binary(max_size=80))
def test_any_bytes_get_an_answer_and_no_key(server: Path, raw: bytes) -> None:
    """Whatever a peer sends: an error in the protocol's form, and the cache goes on."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(str(server))
        peer.sendall(REQUEST.pack(len(raw)) + raw)
        peer.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: peer.recv(4096), b""))
    outcome, length = ANSWER.unpack(received[: ANSWER.size])
    assert Outcome(outcome) is Outcome.MALFORMED
    assert len(received) == ANSWER.size + length
