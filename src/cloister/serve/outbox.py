"""Answers on their way from a worker to the frontend: several in one frame, large bodies in more than one."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.serve.frames import (
    FRAME_BYTES,
    MAX_ANSWER_BYTES,
    AnswerItem,
    Answers,
    Fault,
    FrameSocket,
    HeadEncoder,
    MetricSample,
    ToWorker,
)
from cloister.serve.handler import Outcome
from cloister.serve.jobs import TOO_LARGE

_TOO_LARGE = Outcome(503, fault=Fault(TOO_LARGE))


class Outbox:
    """Sends answers. Not for several threads at a time."""

    def __init__(self, frames: FrameSocket[ToWorker]) -> None:
        self._frames = frames
        self._encode_head = HeadEncoder()

    def send(
        self,
        done: Sequence[tuple[int, Outcome]],
        *,
        inference_s: float = 0.0,
        calls: int = 0,
        metrics: list[MetricSample] | None = None,
    ) -> None:
        """Send answers by their requests' numbers, with what the model took for them."""
        total = first = 0
        for place, (_, outcome) in enumerate(done):
            total += len(outcome.body)
            if total > FRAME_BYTES and place > first:
                self._write(done[first:place], inference_s, calls, metrics or [])
                first, total = place, len(outcome.body)
                inference_s, calls, metrics = 0.0, 0, None
        if done:
            self._write(done[first:], inference_s, calls, metrics or [])

    def send_part(self, number: int, outcome: Outcome) -> None:
        """Send a part of one answer; others follow."""
        item = AnswerItem(number, outcome.status, 0, len(outcome.body), outcome.fault, more=True)
        self._frames.write(Answers([self._encode_head(outcome.headers)], [item]), [outcome.body])

    def _write(
        self,
        done: Sequence[tuple[int, Outcome]],
        inference_s: float,
        calls: int,
        metrics: list[MetricSample],
    ) -> None:
        heads: list[bytes] = []
        places: dict[int, int] = {}
        items: list[AnswerItem] = []
        bodies: list[bytes] = []
        for number, outcome in done:
            if len(outcome.body) > MAX_ANSWER_BYTES:
                outcome = _TOO_LARGE
            headers = outcome.headers
            place = places.get(id(headers))
            if place is None:
                place = places[id(headers)] = len(heads)
                heads.append(self._encode_head(headers))
            body = outcome.body
            items.append(AnswerItem(number, outcome.status, place, len(body), outcome.fault))
            bodies.append(body)
        self._frames.write(Answers(heads, items, inference_s, calls, metrics), bodies)
