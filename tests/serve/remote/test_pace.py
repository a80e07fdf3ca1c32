"""How much a worker over a link is given: enough that it never waits for the link."""

from __future__ import annotations

from collections import deque
from typing import Any

from cloister.serve.frames import AnswerItem, Answers, Predict
from cloister.serve.jobs import Job
from cloister.serve.seat import Seat
from cloister.serve.stats import ModelStats

ROUND_TRIP_S = 0.02
SERVICE_S = 0.0005


class Link:
    """A worker behind a link, on a clock of its own: it answers one by one, half a round trip away."""

    def __init__(self, round_trip_s: float) -> None:
        self.now = 0.0
        self.reason = self.state = ""
        self.pid = 1
        self.round_trip_s = round_trip_s
        self.on_answers: Any = None
        self.on_end: Any = None
        self.answered = 0
        self._free = 0.0
        self._due: deque[tuple[float, int]] = deque()

    def send(self, message: Any, bodies: Any = ()) -> None:
        assert isinstance(message, Predict)
        for item in message.items:
            self._free = max(self._free, self.now + self.round_trip_s / 2) + SERVICE_S
            self._due.append((self._free + self.round_trip_s / 2, item.number))

    def run(self, until_s: float) -> None:
        """Bring each answer at its time."""
        while self._due and self._due[0][0] <= until_s:
            self.now, number = self._due.popleft()
            self.answered += 1
            self.on_answers((Answers([b"\x90"], [AnswerItem(number, 200, 0, 0)]), memoryview(b"")))

    def kill(self, reason: str) -> None: ...

    async def stop(self) -> None: ...


def rate(round_trip_s: float, *, remote: bool) -> float:
    """Answers per second of a worker that always gets what it has room for."""
    link = Link(round_trip_s)
    seat: Seat

    def fill() -> None:
        room = seat.room
        if room > 0:
            seat.give([Job("", [], b"", b"", lambda *_: None) for _ in range(room)], link.now)

    seat = Seat(link, ModelStats("m", "1"), batch_size=1, on_room=fill, clock=lambda: link.now, remote=remote)
    link.on_answers = seat.take_answers
    fill()
    link.run(2.0)
    before = link.answered
    link.run(4.0)
    return (link.answered - before) / 2


def test_a_link_costs_no_throughput() -> None:
    """Behind 20 ms of link a worker answers nearly as fast as it can, and does not hoard either."""
    assert rate(ROUND_TRIP_S, remote=True) > 0.9 / SERVICE_S
    assert rate(0.0002, remote=True) > 0.9 / SERVICE_S
