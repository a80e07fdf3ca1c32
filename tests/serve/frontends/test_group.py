"""How many frontend processes there are, and what becomes of one that does not start or falls silent."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from cloister.errors import ConfigError, TransportError
from cloister.serve.frontends import group
from cloister.serve.frontends import process as process_module
from cloister.serve.frontends.group import Frontends, count_frontends
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.ways import Way
from cloister.serve.listen import Listener, bind
from cloister.settings import ServeSettings
from tests.serve.http.front_end import FakeApi, Wire, post, run


@pytest.mark.parametrize(
    ("setting", "cores", "count"), [(1, 64, 1), (3, 1, 3), (0, 2, 1), (0, 16, 2), (0, 24, 3), (0, 256, 4)]
)
def test_count(setting: int, cores: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are set; with 0 one for each eight cores, at least one and at most four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert count_frontends(ServeSettings(frontends=setting)) == count


@pytest.mark.parametrize("setting", [-1, 65])
def test_count_that_cannot_be(setting: int) -> None:
    """A number that makes no sense is a configuration error."""
    with pytest.raises(ConfigError, match="frontends is"):
        count_frontends(ServeSettings(frontends=setting))


def make(api: Any, count: int) -> tuple[Frontends, int]:
    sock = bind("127.0.0.1", 0)
    listener = Listener(sock, AsgiApp(api, Way.OPEN, body_timeout_s=5.0))
    return Frontends([listener], ServeSettings(), count=count, drain_s=2.0), sock.getsockname()[1]


async def ask(port: int, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    wire = Wire(reader, writer)
    await wire.send(post(body))
    _, _, answer = await wire.answer()
    await wire.close()
    return answer


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def test_silent_frontend_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stopped says nothing; it is ended, and its successor answers what waited in its queue."""
    monkeypatch.setattr(group, "SILENT_S", 2)

    async def test() -> None:
        frontends, port = make(FakeApi(), 1)
        await frontends.start()
        try:
            (pid,) = frontends.pids
            assert await ask(port, b"one") == b"one"
            os.kill(pid, signal.SIGSTOP)
            asking = asyncio.create_task(ask(port, b"two"))
            await until(lambda: frontends.pids not in ([], [pid]))
            assert await asking == b"two"
        finally:
            await frontends.stop()
        assert frontends.pids == []

    run(test())


def test_frontend_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose frontends end at once does not start, and says why."""
    monkeypatch.setattr(process_module, "_BOOTSTRAP", "import sys; sys.exit(3)")

    async def test() -> None:
        frontends, _ = make(FakeApi(), 2)
        with pytest.raises(TransportError, match="did not start: it ended with exit code 3"):
            await frontends.start()
        assert frontends.pids == []

    run(test())


def test_frontend_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not get ready is ended."""
    monkeypatch.setattr(process_module, "_BOOTSTRAP", "import time; time.sleep(600)")

    async def test() -> None:
        sock = bind("127.0.0.1", 0)
        listener = Listener(sock, AsgiApp(FakeApi(), Way.OPEN, body_timeout_s=5.0))  # type: ignore[arg-type]
        settings = ServeSettings(startup_timeout_s=0.3)
        frontends = Frontends([listener], settings, count=1, drain_s=2.0)
        with pytest.raises(TransportError, match=r"not ready within 0\.3 s"):
            await frontends.start()

    run(test())


def test_one_that_keeps_ending_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After failures at its start a frontend is tried until it comes up."""

    async def test() -> None:
        frontends, port = make(FakeApi(), 1)
        await frontends.start()
        try:
            good = process_module._BOOTSTRAP
            monkeypatch.setattr(process_module, "_BOOTSTRAP", "import sys; sys.exit(3)")
            os.kill(frontends.pids[0], signal.SIGKILL)
            await until(lambda: frontends._delays[0] >= 0.2)
            monkeypatch.setattr(process_module, "_BOOTSTRAP", good)
            assert await ask(port, b"one") == b"one"
        finally:
            await frontends.stop()

    run(test())
