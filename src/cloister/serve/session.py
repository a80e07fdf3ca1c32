"""A worker's work after its handler is loaded: requests in, in batches through the handler, answers out.

It takes what has come since the last batch, so that requests which gathered while one ran make the next one.
It never waits for a batch to fill.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from cloister.errors import MalformedInput
from cloister.serve.batching import run_in_halves
from cloister.serve.frames import (
    Cancel,
    Fault,
    Frame,
    FrameSocket,
    MetricSample,
    Predict,
    Stop,
    ToWorker,
)
from cloister.serve.handler import Outcome
from cloister.serve.incoming import Incoming, Intake
from cloister.serve.outbox import Outbox

FLUSH_S = 0.001
"""Answers wait at most this long, and one batch, for others of the same frame."""
POLL_S = 0.005
"""How long a worker that has enough to do may go without looking what else has come."""
GONE = 499
"""Status for a request that was not computed because its caller has gone; nobody sees it."""


class Runner(Protocol):
    """What computes a connection's requests: a handler, or an engine without one."""

    part_sink: Callable[[Incoming, Outcome], None] | None
    inference_s: float
    """Time in the model; whoever reads it sets it back."""
    calls: int

    def run(self, requests: Sequence[Incoming]) -> list[Outcome]: ...


class Session:
    """Answers the requests of one connection."""

    def __init__(
        self,
        frames: FrameSocket[ToWorker],
        handler: Runner,
        *,
        batch_size: int,
        idempotent: bool,
        decode: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frames = frames
        self._handler = handler
        self._batch_size = batch_size
        self._idempotent = idempotent
        self._clock = clock
        self._intake = Intake(decode=decode)
        self._outbox = Outbox(frames)
        self._waiting: deque[Incoming] = deque()
        self._cancelled: set[int] = set()
        self._batch: list[int] = []
        """The requests that the handler has at the moment."""
        self._done: list[tuple[int, Outcome]] = []
        self._flushed = 0.0
        self._stopped = False
        self._take_metrics: Callable[[], list[MetricSample]] = getattr(handler, "take_metrics", list)
        handler.part_sink = self._send_part

    def run(self) -> int:
        """Until the frontend says stop or is gone; returns the exit code."""
        waiting, clock = self._waiting, self._clock
        polled = clock()
        while True:
            looked = False
            if not waiting:
                self._flush()
                frame = self._frames.read()
                if frame is None or not self._take(frame):
                    return 0
                # Looking again costs a system call for each request of a single caller. What was there
                # already may be followed by its cancellation, but that would have come in the same read.
                looked = self._frames.drained
            if not looked and (len(waiting) < self._batch_size or clock() - polled > POLL_S):
                while (frame := self._frames.poll()) is not None:
                    if not self._take(frame):
                        return 0
                polled = clock()
            batch = self._next_batch()
            if batch:
                self._answer(batch)
            if self._stopped:
                self._flush()
                return 0
            if self._done and clock() - self._flushed > FLUSH_S:
                self._flush()

    def _take(self, frame: Frame[ToWorker]) -> bool:
        """Note what a frame says; false at the end."""
        message, payload = frame
        if isinstance(message, Predict):
            self._waiting.extend(self._intake.take(message, payload))
        elif isinstance(message, Cancel):
            here = {item.number for item in self._waiting}.union(self._batch)
            self._cancelled.update(here.intersection(message.numbers))
        elif isinstance(message, Stop):
            return False
        else:
            raise MalformedInput(f"expected requests, found {type(message).__name__}")
        return True

    def _next_batch(self) -> list[Incoming]:
        """Up to a batch of requests that are well-formed; the others are answered here."""
        waiting, size = self._waiting, self._batch_size
        batch: list[Incoming] = []
        while waiting and len(batch) < size:
            item = waiting[0]
            if item.alone and batch:
                break
            waiting.popleft()
            if self._cancelled and item.number in self._cancelled:
                self._cancelled.discard(item.number)
                self._done.append((item.number, Outcome(GONE)))
                continue
            try:
                item.prepare()
            except MalformedInput as error:
                self._done.append((item.number, Outcome(400, fault=Fault(error.message))))
                continue
            batch.append(item)
            if item.alone:
                break
        return batch

    def _answer(self, batch: list[Incoming]) -> None:
        self._batch = [item.number for item in batch]
        outcomes = run_in_halves(batch, self._handler.run, again=self._idempotent)
        if self._cancelled:
            self._cancelled.difference_update(self._batch)
        self._batch = []
        self._done.extend([(item.number, outcome) for item, outcome in zip(batch, outcomes, strict=True)])

    def _flush(self) -> None:
        """Send the answers that there are, in one frame, or several where their bodies are large."""
        self._flushed = self._clock()
        done, self._done = self._done, []
        if done:
            handler = self._handler
            self._outbox.send(
                done,
                inference_s=handler.inference_s,
                calls=handler.calls,
                metrics=self._take_metrics(),
            )
            handler.inference_s, handler.calls = 0.0, 0

    def _send_part(self, request: Incoming, outcome: Outcome) -> None:
        """Send a part of one answer now, after the answers before it.

        Raises:
            BrokenPipeError: its caller has gone, and it is the only one of its batch: the handler may stop.
        """
        while (frame := self._frames.poll()) is not None:
            self._stopped = not self._take(frame) or self._stopped
        if self._batch == [request.number] and request.number in self._cancelled:
            raise BrokenPipeError("the caller has gone")
        self._flush()
        self._outbox.send_part(request.number, outcome)
