"""What a worker does between its socket and its handler."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

from cloister.serve.frames import (
    Answers,
    Frame,
    FrameSocket,
    FromWorker,
    HeadEncoder,
    Predict,
    RequestItem,
    Stop,
    ToWorker,
)
from cloister.serve.session import Session
from tests.serve.handlers import import_state, load

BATCH = "def handle(data, context):\n    return data and [len(data)] * len(data)\n"
HEAD = HeadEncoder()([(b"content-type", b"application/json")])


class Counting(FrameSocket[Any]):
    """Counts how often somebody looks what else has come."""

    polls = 0

    def poll(self) -> Frame[Any] | None:
        self.polls += 1
        return super().poll()


def ask(frontend: FrameSocket[Any], *numbers: int) -> None:
    """Send requests in one frame."""
    items = [RequestItem(number, f"id-{number}", 0, b"", 1) for number in numbers]
    frontend.write(Predict([HEAD], items), [b"1"] * len(items))


def answered(frontend: FrameSocket[Any]) -> dict[int, bytes]:
    """The answers of the next frame, by number."""
    frame = frontend.read()
    assert frame is not None
    message, payload = frame
    assert isinstance(message, Answers)
    found, start = {}, 0
    for item in message.items:
        found[item.number] = bytes(payload[start : start + item.body_bytes])
        start += item.body_bytes
    return found


def test_batching_costs_a_lone_caller_nothing(tmp_path: Path) -> None:
    """A worker with batches of 16 looks no more often than one without while there is one caller."""
    ours, theirs = socket.socketpair()
    with ours, theirs, import_state():
        frames = Counting(theirs, ToWorker)  # type: ignore[arg-type]
        session = Session(frames, load(tmp_path, BATCH), batch_size=16, idempotent=True)
        thread = threading.Thread(target=session.run)
        thread.start()
        frontend = FrameSocket[Any](ours, FromWorker)  # type: ignore[arg-type]
        for number in range(1, 6):
            ask(frontend, number)
            assert answered(frontend) == {number: b"1"}
        assert frames.polls == 0
        ask(frontend, *range(10, 20))
        assert answered(frontend) == dict.fromkeys(range(10, 20), b"10")
        frontend.write(Stop())
        thread.join(10)
        assert not thread.is_alive()
