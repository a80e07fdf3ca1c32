"""A worker on another machine, as the supervisor here sees it: the same five words as ``WorkerProcess``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from cloister.errors import MalformedInput
from cloister.serve.frames import (
    MAX_ANSWER_BYTES,
    Answers,
    Cancel,
    Frame,
    FrameDecoder,
    Predict,
    Stop,
    write_frame,
)
from cloister.serve.process import LEAVE_S


class RemoteWorker(asyncio.Protocol):
    """One worker of one host, from its connection to that connection's end.

    What comes is a guest's, like what comes from a worker here: anything but answers ends it.
    """

    def __init__(self, *, host: str, pid: int, state: str) -> None:
        self.on_answers: Callable[[Frame[Answers]], None] = lambda _: None
        self.on_end: Callable[[Any], None] = lambda _: None
        self.host = host
        """Name of the machine that it runs on, as that one gave it."""
        self.pid = pid
        """Process number there."""
        self.state = state
        """What confines it, in one word."""
        self.reason = "its connection ended"
        self.round_trip_s = 0.0
        """Time of the link alone, there and back: so much more work is on its way or to be held ahead."""
        self.stopping = False
        """Whether it was asked to leave."""
        self._decoder: FrameDecoder[Answers] = FrameDecoder(Answers, payload_limit=MAX_ANSWER_BYTES)
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()
        self._when_gone: Callable[[], None] = lambda: None

    def when_gone(self, call: Callable[[], None]) -> None:
        """Call this after ``on_end``, at once if it has gone already."""
        self._when_gone = call
        if self._ended.is_set():
            call()

    def send(self, message: Predict | Cancel | Stop, bodies: Sequence[bytes] = ()) -> None:
        """Write one frame. After the worker's end it goes nowhere; ``on_end`` has told the supervisor."""
        write_frame(self._transport, message, bodies)

    def kill(self, reason: str) -> None:
        """End it now: its host ends the process when the connection breaks."""
        if not self._ended.is_set():
            self.reason = reason
            if self._transport is not None:
                self._transport.abort()
            # A broken link may take its time to say so; the requests must not wait for that.
            self._end()

    async def stop(self) -> None:
        """Let it leave, then insist. Returns when it is gone."""
        if self._ended.is_set():
            return
        self.reason = "the server stopped it"
        self.stopping = True
        self.send(Stop())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._ended.wait()
        self.kill(self.reason)

    # The connection's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._ended.is_set():
            return
        try:
            for frame in self._decoder.feed(data):
                self.on_answers(frame)
        except MalformedInput as error:
            self.kill(f"it broke the protocol: {error.message}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self.on_end(self)
            self._when_gone()
