"""A worker's work when an engine serves its requests without a handler.

A quick model's requests go through it many at a time, in the one thread that reads them (``DirectHandler``).
A slow one has lanes: threads that each take a request, or a few where more wait, make the input, wait for
one of the engine's streams and send the answers at once. There are more lanes than streams, so that the next
inputs are ready when a stream is: decoding, inference and rendering go on beside each other, and no stream
waits for the others.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from cloister.engines.engine import FEW_ROWS
from cloister.errors import MalformedInput
from cloister.serve.direct.model import DirectModel, Ready, group
from cloister.serve.frames import Cancel, Fault, Frame, FrameSocket, Load, Loaded, Predict, Stop, ToWorker
from cloister.serve.handler import Outcome
from cloister.serve.incoming import Incoming, Intake
from cloister.serve.outbox import Outbox
from cloister.serve.process import OUT_OF_MEMORY_EXIT
from cloister.serve.session import GONE, Session

MAX_LANES = 64


def serve_direct(frames: FrameSocket[ToWorker], model: DirectModel, load: Load) -> int:
    """Say that the model is ready, then answer until the frontend says stop or is gone; the exit code."""
    frames.write(Loaded(model.engine.schema, capacity_of(model)))
    if not is_quick(model):
        return LaneSession(frames, model, lanes=lanes_of(model)).run()
    size = max(load.batch_size, model.engine.rows)
    return Session(frames, DirectHandler(model), batch_size=size, idempotent=load.idempotent).run()


def is_quick(model: DirectModel) -> bool:
    """Whether one thread is enough: many requests, soon read, go together, one inference at a time."""
    engine = model.engine
    return engine.rows > FEW_ROWS and engine.streams == 1 and not model.reads_pictures


def lanes_of(model: DirectModel) -> int:
    """How many threads keep the engine's streams full."""
    streams = model.engine.streams
    return min(MAX_LANES, streams + max(1, streams // 2))


def capacity_of(model: DirectModel) -> int:
    """How many requests a worker should have at a time."""
    if is_quick(model):
        return model.engine.rows
    return lanes_of(model) * model.engine.rows + 1


class DirectHandler:
    """Runs batches in the thread that calls it."""

    def __init__(self, model: DirectModel) -> None:
        self._model = model
        self.part_sink: Callable[[Incoming, Outcome], None] | None = None
        self.inference_s = 0.0
        self.calls = 0

    def run(self, requests: Sequence[Incoming]) -> list[Outcome]:
        """One outcome for each request, in order."""
        outcomes: dict[int, Outcome] = {}
        ready: list[Ready] = []
        for item in requests:
            found = self._model.read(item)
            if isinstance(found, Outcome):
                outcomes[item.number] = found
            else:
                ready.append(found)
        for batch in group(ready, self._model.engine.rows):
            computed, took_s = self._model.compute(batch)
            self.inference_s += took_s
            self.calls += 1
            for part, outcome in zip(batch, computed, strict=True):
                outcomes[part.request.number] = outcome
        return [outcomes[item.number] for item in requests]


class LaneSession:
    """Answers the requests of one connection in several threads."""

    def __init__(
        self,
        frames: FrameSocket[ToWorker],
        model: DirectModel,
        *,
        lanes: int,
        die: Callable[[int], None] = os._exit,
    ) -> None:
        self._frames = frames
        self._model = model
        self._lanes = lanes
        self._die = die
        self._outbox = Outbox(frames)
        self._sending = threading.Lock()
        self._intake = Intake()
        self._changed = threading.Condition()
        self._waiting: deque[Incoming] = deque()
        self._cancelled: set[int] = set()
        self._stopped = False
        self._idle = 0
        """Lanes that have nothing to do."""

    def run(self) -> int:
        """Until the frontend says stop or is gone; returns the exit code."""
        threads = [threading.Thread(target=self._work, name=f"lane-{place}") for place in range(self._lanes)]
        for thread in threads:
            thread.start()
        try:
            while (frame := self._frames.read()) is not None and self._take(frame):
                pass
            return 0
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            for thread in threads:
                thread.join()

    def _take(self, frame: Frame[ToWorker]) -> bool:
        """Note what a frame says; false at the end."""
        message, payload = frame
        if isinstance(message, Predict):
            taken = self._intake.take(message, payload)
            with self._changed:
                self._waiting.extend(taken)
                self._changed.notify(len(taken))
        elif isinstance(message, Cancel):
            with self._changed:
                here = {item.number for item in self._waiting}
                self._cancelled.update(here.intersection(message.numbers))
        elif isinstance(message, Stop):
            return False
        else:
            raise MalformedInput(f"expected requests, found {type(message).__name__}")
        return True

    def _work(self) -> None:
        try:
            while batch := self._next():
                self._answer(batch)
        except MemoryError:
            self._die(OUT_OF_MEMORY_EXIT)
        except Exception:  # noqa: BLE001 (a thread that ends alone leaves its requests without an answer)
            self._die(1)

    def _next(self) -> list[Incoming]:
        """The requests to go on with; empty at the end."""
        most = self._model.engine.rows
        with self._changed:
            self._idle += 1
            while not self._waiting and not self._stopped:
                self._changed.wait()
            batch: list[Incoming] = []
            # An even share, where there are lanes and streams that would take the others at once.
            takers = min(self._idle, self._model.engine.streams)
            self._idle -= 1
            most = max(1, min(most, -(-len(self._waiting) // takers)))
            while self._waiting and len(batch) < most and not (batch and self._waiting[0].alone):
                batch.append(self._waiting.popleft())
                if batch[-1].alone:
                    break
            return batch

    def _answer(self, batch: list[Incoming]) -> None:
        done: list[tuple[int, Outcome]] = []
        ready: list[Ready] = []
        for item in batch:
            found = self._prepare(item)
            if isinstance(found, Outcome):
                done.append((item.number, found))
            else:
                ready.append(found)
        if done:
            self._send(done, 0.0, 0)
        for part in group(ready, self._model.engine.rows):
            outcomes, took_s = self._model.compute(part)
            numbers = [item.request.number for item in part]
            self._send(list(zip(numbers, outcomes, strict=True)), took_s, 1)

    def _prepare(self, item: Incoming) -> Ready | Outcome:
        with self._changed:
            if item.number in self._cancelled:
                self._cancelled.discard(item.number)
                return Outcome(GONE)
        try:
            item.prepare()
        except MalformedInput as error:
            return Outcome(400, fault=Fault(error.message))
        return self._model.read(item)

    def _send(self, done: list[tuple[int, Outcome]], took_s: float, calls: int) -> None:
        with self._sending:
            self._outbox.send(done, inference_s=took_s, calls=calls)
