"""A worker as its supervisor sees it, with workers that are played: also those from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve.frames import (
    AnswerItem,
    Answers,
    Cancel,
    Frame,
    FrameDecoder,
    HeadEncoder,
    MetricSample,
    Predict,
    encode_frame,
)
from cloister.serve.jobs import Answer, Job
from cloister.serve.seat import MAX_WINDOW, Seat
from cloister.serve.stats import ModelStats
from tests.serve.engine import engine, value
from tests.serve.test_supervisor import runs

HEAD = HeadEncoder()([(b"a", b"b")])


class Played:
    """A worker that notes what it is sent."""

    pid = 0
    reason = "it was ended"
    state = "none"
    round_trip_s = 0.0

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.bodies: list[Sequence[bytes]] = []
        self.on_answers: Callable[[Frame[Answers]], None] = lambda _: None
        self.on_end: Callable[[Any], None] = lambda _: None

    def send(self, message: Any, bodies: Sequence[bytes] = ()) -> None:
        self.sent.append(message)
        self.bodies.append(bodies)

    def kill(self, reason: str) -> None:
        self.on_end(self)

    async def stop(self) -> None:
        self.on_end(self)

    def answer(self, *items: AnswerItem, payload: bytes = b"", **more: Any) -> None:
        self.on_answers((Answers([HEAD], list(items), **more), memoryview(payload)))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make(batch_size: int = 1, **more: Any) -> tuple[Seat, Played, Clock]:
    worker, clock = Played(), Clock()
    seat = Seat(
        worker, ModelStats("m", "1"), batch_size=batch_size, on_room=lambda: None, clock=clock, **more
    )
    worker.on_answers = seat.take_answers
    return seat, worker, clock


def job(body: bytes = b"x", **more: Any) -> tuple[Job, list[Answer]]:
    answers: list[Answer] = []
    return Job("id", [], b"", body, lambda _, answer: answers.append(answer), **more), answers


def test_one_frame_and_its_answers() -> None:
    """Requests go in one frame with one head; each answer reaches its own job."""
    seat, worker, clock = make()
    headers = [(b"h", b"v")]
    jobs = [
        Job(str(n), headers, b"", bytes([n]), lambda job, answer: got.append((job, answer))) for n in range(3)
    ]
    got: list[tuple[Job, Answer]] = []
    seat.give(jobs, clock.now)
    (frame,) = worker.sent
    assert (len(frame.heads), [item.body_bytes for item in frame.items]) == (1, [1, 1, 1])
    numbers = [item.number for item in frame.items]
    worker.answer(
        AnswerItem(numbers[2], 200, 0, 2), AnswerItem(numbers[0], 201, 0, 1), payload=b"abc", batches=1
    )
    assert [(job.request_id, answer.status, bytes(answer.body)) for job, answer in got] == [
        ("2", 200, b"ab"),
        ("0", 201, b"c"),
    ]
    assert got[0][1].headers == [(b"a", b"b")]
    assert list(seat.sent.values()) == [jobs[1]]


@pytest.mark.parametrize(
    ("items", "payload"),
    [
        ([], b""),
        ([AnswerItem(9, 200, 0, 0)], b""),
        ([AnswerItem(1, 200, 1, 0)], b""),
        ([AnswerItem(1, 200, 0, 5)], b"abc"),
        ([AnswerItem(1, 200, 0, 1)], b"abc"),
        ([AnswerItem(1, 200, 0, 0), AnswerItem(1, 200, 0, 0)], b""),
    ],
)
def test_answers_that_do_not_fit(items: list[AnswerItem], payload: bytes) -> None:
    """No answer, one to nobody, twice, without its head or of another length is a broken protocol."""
    seat, worker, clock = make()
    seat.give([job()[0]], clock.now)
    with pytest.raises(MalformedInput):
        worker.answer(*items, payload=payload)


def test_claims_of_a_guest() -> None:
    """Times and numbers that no worker can have are not believed, and do not reach the metrics."""
    seat, worker, clock = make()
    for number, (batches, seconds) in enumerate(
        [(1 << 60, 0.1), (-1, 0.1), (1, float("inf")), (1, float("nan")), (1, -1.0)], 1
    ):
        seat.give([job()[0]], clock.now)
        worker.answer(AnswerItem(number, 200, 0, 0), batches=batches, inference_s=seconds)
    assert seat.batch_s == 0.0
    assert seat._stats.inference.count == 0


@given(st.binary(max_size=120), st.integers(0, 500), st.integers(0, 255))
def test_only_malformed_input_escapes(noise: bytes, place: int, changed: int) -> None:
    """Whatever a worker's frame holds, it is answers or MalformedInput, and no job is answered twice."""
    seat, _, clock = make()
    first, answers = job()
    seat.give([first], clock.now)
    raw = bytearray(b"".join(encode_frame(Answers([HEAD], [AnswerItem(1, 200, 0, 3)]), [b"abc"])))
    raw[place % len(raw)] = changed
    for data in (bytes(raw), noise):
        with contextlib.suppress(MalformedInput):
            for frame in FrameDecoder(Answers).feed(data):
                seat.take_answers(frame)
    assert sum(not answer.more for answer in answers) <= 1


def test_window() -> None:
    """A slow worker holds one batch, a quick one more, and never more than the limit."""
    seat, worker, clock = make(batch_size=4)
    assert seat.room == 8
    for seconds, room in ((1.0, 4), (1e-7, 4 + MAX_WINDOW)):
        for _ in range(40):
            jobs = [job()[0] for _ in range(4)]
            seat.give(jobs, clock.now)
            clock.now += 4 * seconds
            items = [AnswerItem(item.number, 200, 0, 0) for item in worker.sent[-1].items]
            worker.answer(*items, inference_s=4 * seconds, batches=1)
        assert seat.room == room


def test_a_caller_that_left() -> None:
    """The worker hears of it, and its answer is dropped."""
    seat, worker, clock = make()
    left, answers = job()
    seat.give([left], clock.now)
    left.cancel()
    assert worker.sent[-1] == Cancel([1])
    worker.answer(AnswerItem(1, 499, 0, 0))
    assert (answers, seat.sent) == ([], {})


def test_measurements_of_a_guest() -> None:
    """What a handler measures is kept in open mode, and dropped where its model is protected."""
    sample = MetricSample("requests", "counter", "count", [], 2.0)
    for measures in (True, False):
        seat, worker, clock = make(measures=measures)
        seat.give([job()[0]], clock.now)
        worker.answer(AnswerItem(1, 200, 0, 0), metrics=[sample])
        assert bool(list(seat._stats.measured.families())) is measures


@runs
async def test_a_worker_from_elsewhere() -> None:
    """A worker that is attached gets requests; when it ends, ours compute what it had."""
    async with engine() as e:
        worker = Played()
        worker.pid = 77
        e.supervisor.attach(worker)
        assert [view.remote for view in e.supervisor.workers()] == [False, True]
        busy = e.submit("sleep", s=0.3)
        asked = [e.submit("echo") for _ in range(6)]
        await e.until(lambda: worker.sent)
        frame = worker.sent[0]
        assert isinstance(frame, Predict)
        worker.on_end(worker)
        await e.until(lambda: all(answers for _, answers in [busy, *asked]))
        assert {value(answers[0])["pid"] for _, answers in asked} == {e.supervisor.pid}
        assert len(e.supervisor.workers()) == 1
        assert e.supervisor.stats.restarts == 0


@runs
async def test_a_worker_that_is_detached() -> None:
    """A worker that is let go answers what it has and gets nothing more."""
    async with engine() as e:
        worker = Played()
        e.supervisor.attach(worker)
        busy = e.submit("sleep", s=0.2)
        asked = e.submit("echo")
        await e.until(lambda: worker.sent)
        e.supervisor.detach(worker)
        count = len(worker.sent)
        for _ in range(5):
            assert value(await e.ask("echo"))["pid"] == e.supervisor.pid
        assert len(worker.sent) == count
        worker.answer(AnswerItem(worker.sent[0].items[0].number, 200, 0, 2), payload=b"ok")
        await e.until(lambda: busy[1] and asked[1])
        await e.until(lambda: len(e.supervisor.workers()) == 1)


@runs
async def test_the_last_worker_of_ours_dies() -> None:
    """While ours is started again a worker from elsewhere serves alone."""
    async with engine() as e:
        worker = Played()
        e.supervisor.attach(worker)
        os.kill(e.supervisor.pid, signal.SIGKILL)
        await e.until(lambda: all(view.remote for view in e.supervisor.workers()))
        assert e.supervisor.ready
        asked = e.submit("echo")
        await asyncio.sleep(0.01)
        worker.answer(AnswerItem(worker.sent[-1].items[0].number, 200, 0, 2), payload=b"ok")
        assert bytes(asked[1][0].body) == b"ok"
