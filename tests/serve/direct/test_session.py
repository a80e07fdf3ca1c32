"""A slow model's worker: several requests at a time, each answered when it is done."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cloister.engines.files import ModelFiles
from cloister.engines.spec import EngineSpec, ServedSpec
from cloister.serve.direct.model import DirectModel
from cloister.serve.direct.session import LaneSession
from cloister.serve.frames import (
    Answers,
    Cancel,
    FrameSocket,
    FromWorker,
    HeadEncoder,
    Headers,
    Predict,
    RequestItem,
    Stop,
    ToWorker,
)
from tests.serve.direct.doubler import Doubler

JSON: Headers = [(b"content-type", b"application/json")]


class Lanes:
    """A session in a thread, and the frontend's end of its socket."""

    def __init__(self, engine: Doubler, lanes: int) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self._sockets = (ours, theirs)
        self.frames: FrameSocket[Any] = FrameSocket(ours, FromWorker)  # type: ignore[arg-type]
        inside: FrameSocket[ToWorker] = FrameSocket(theirs, ToWorker)  # type: ignore[arg-type]
        model = DirectModel(engine, ServedSpec(EngineSpec("none", "none")), ModelFiles({}), show_text=False)
        self.died: list[int] = []
        self._session = LaneSession(inside, model, lanes=lanes, die=self.died.append)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.code = self._session.run()

    def ask(self, *bodies: bytes, first: int = 1) -> None:
        items = [RequestItem(n, str(n), 0, b"", len(body)) for n, body in enumerate(bodies, first)]
        self.frames.write(Predict([HeadEncoder()(JSON)], items), list(bodies))

    def answers(self, count: int) -> dict[int, tuple[int, Any]]:
        found: dict[int, tuple[int, Any]] = {}
        while len(found) < count:
            frame = self.frames.read()
            assert frame is not None
            message, payload = frame
            assert isinstance(message, Answers)
            start = 0
            for item in message.items:
                body = bytes(payload[start : start + item.body_bytes])
                start += item.body_bytes
                found[item.number] = (item.status, json.loads(body) if body else None)
        return found

    def end(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        for end in self._sockets:
            end.close()


@pytest.fixture
def together() -> Iterator[Lanes]:
    """Three lanes over an engine whose inferences wait for each other, two by two."""
    lanes = Lanes(Doubler(rows=1, streams=2, wait=threading.Barrier(2)), 3)
    yield lanes
    lanes.frames.write(Stop())
    lanes.end()


def test_inferences_run_beside_each_other(together: Lanes) -> None:
    """An inference that waits for a second one is answered, so the second one was begun meanwhile."""
    together.ask(b"[1, 1]", b"[2, 2]", b"[3, 3]", b"[4, 4]")
    assert together.answers(4) == {n: (200, [2 * n, 2 * n]) for n in range(1, 5)}


def test_a_bad_request_holds_nobody_up(together: Lanes) -> None:
    """It is answered by itself, and takes no stream."""
    together.ask(b"[1, 1]", b"[1", b"[1, 2, 3]", b"[2, 2]")
    assert {n: status for n, (status, _) in together.answers(4).items()} == {1: 200, 2: 400, 3: 400, 4: 200}


def test_a_few_go_together_and_fail_alone() -> None:
    """What waits goes through the engine in even shares; one that breaks it costs the others nothing."""
    engine = Doubler(rows=4)
    lanes = Lanes(engine, 1)
    lanes.ask(b"[1, 1]", b"[13, 13]", b"[3, 3]", b"[4, 4]", b"[5, 5]")
    found = lanes.answers(5)
    lanes.frames.write(Stop())
    lanes.end()
    assert found.pop(2)[0] == 503
    assert found == {n: (200, [2 * n, 2 * n]) for n in (1, 3, 4, 5)}
    assert engine.sizes == [4, 1, 1, 1, 1, 1]


def test_a_lane_takes_what_no_other_could() -> None:
    """While all others are busy, what waits is not left for them."""
    engine = Doubler(rows=4, streams=2, wait=threading.Barrier(3))
    lanes = Lanes(engine, 3)
    for number in (1, 2):
        lanes.ask(b"[1, 1]", first=number)
        while len(engine.sizes) < number:
            time.sleep(0.01)
    lanes.ask(*[b"[3, 3]"] * 4, first=3)
    assert lanes.answers(6) == {n: (200, [2, 2] if n < 3 else [6, 6]) for n in range(1, 7)}
    assert engine.sizes == [1, 1, 4]
    lanes.frames.write(Stop())
    lanes.end()


def test_what_nobody_waits_for_is_not_computed() -> None:
    """A request that is cancelled while it waits does not reach the engine."""
    engine = Doubler(rows=1, wait=threading.Barrier(2))
    lanes = Lanes(engine, 1)
    lanes.ask(b"[1, 1]", b"[13, 13]", b"[2, 2]")
    lanes.frames.write(Cancel([2]))
    barrier = engine._wait
    assert barrier is not None
    barrier.wait(10)
    barrier.wait(10)
    found = lanes.answers(3)
    assert found[2][0] == 499
    assert found[3] == (200, [4, 4])
    assert engine.sizes == [1, 1]
    lanes.frames.write(Stop())
    lanes.end()
    assert lanes.code == 0


def test_memory_that_is_gone_ends_the_worker() -> None:
    """The supervisor starts another one; this one does not go on with half a request."""

    class Full(Doubler):
        def infer(self, inputs: Any) -> Any:
            raise MemoryError

    lanes = Lanes(Full(rows=1), 1)
    lanes.ask(b"[1, 1]")
    lanes._thread.join(0.2)
    lanes.frames.write(Stop())
    lanes.end()
    assert lanes.died == [86]


def test_a_lane_that_fails_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would go on without it, and its request would never be answered."""

    def broken(_: DirectModel, __: object) -> object:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(DirectModel, "read", broken)
    lanes = Lanes(Doubler(rows=1), 2)
    lanes.ask(b"[1, 1]")
    lanes._thread.join(0.2)
    lanes.frames.write(Stop())
    lanes.end()
    assert lanes.died == [1]
