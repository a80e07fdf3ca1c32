"""A request on its way through the server, and the parts of its answer.

Neither a future nor a coroutine: whoever submits a job gives the function that takes its answer, and the
event loop calls it straight from the worker's socket.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

import msgspec

from cloister.serve.frames import MAX_ANSWER_BYTES, Fault, Headers

URGENCIES = 8
DEFAULT_PRIORITY = 3
"""RFC 9218, section 4.1: 0 is the most urgent, 7 the least; 3 is meant where nothing is said."""
NEVER = math.inf
MAX_BACKLOG_BYTES = 16 << 20
"""Parts of a streamed answer that its reader has not taken: with more, it is dropped."""
TOO_LARGE = "The model's answer is too large"
TOO_SLOW = "The answer was taken too slowly"


class Answer(msgspec.Struct, gc=False):
    """An answer, or one part of it. Its repr leaves out what it carries."""

    status: int
    headers: Headers
    """Of the first part; shared between answers with the same ones, so never to be changed."""
    body: bytes | memoryview
    fault: Fault | None = None
    more: bool = False
    """This is a part; others follow."""

    def __repr__(self) -> str:
        return f"Answer({self.status}, {len(self.body)} bytes)"


class Owner(Protocol):
    """Whoever holds a job at the moment."""

    def give_up(self, job: Job) -> None:
        """Its caller has gone."""


class Job(msgspec.Struct, eq=False):
    """One request on its way; its fields after ``deliver`` have usable defaults."""

    request_id: str
    headers: Headers
    """Lower-case names. Shared between requests with the same head, so never to be changed."""
    query: bytes
    body: bytes
    deliver: Callable[[Any, Answer], None]
    """Takes this job and each part of its answer, in the event loop; the last part has ``more`` false.
    Called exactly once where the answer is one part, never after ``cancel``."""
    deadline: float = NEVER
    """``time.monotonic()`` after which it is not computed any more."""
    priority: int = DEFAULT_PRIORITY
    alone: bool = False
    """Computed in no batch with others."""
    attempts: int = 0
    """How many workers ended while they had it."""
    cancelled: bool = False
    started: float = 0.0
    """When it was submitted."""
    given: float = 0.0
    """When it was handed to a worker."""
    number: int = 0
    owner: Owner | None = None
    after: Callable[[Any], None] | None = None
    """Called with the job when it is done with, answered or not; the server's own."""
    parts: int = 0
    """How many parts of its answer were delivered."""

    def __repr__(self) -> str:
        return f"Job({self.request_id}, {len(self.body)} bytes)"

    def cancel(self) -> None:
        """Say that its caller has gone: not computed if it still waits, and any answer is dropped."""
        if not self.cancelled:
            self.cancelled = True
            if self.owner is not None:
                self.owner.give_up(self)


def failure(status: int, reason: str) -> Answer:
    """The server's own answer for a request that no handler answered."""
    return Answer(status, [], b"", Fault(reason))


async def whole_answer(submit: Callable[[Job], None], job: Job) -> Answer:
    """Submit ``job`` and wait for its answer; parts come joined. Cancels the job with the caller's task.

    A worker that sends parts without end is told to stop, and the answer is a failure.
    """
    parts: list[Answer] = []
    size = 0
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def deliver(_: Job, answer: Answer) -> None:
        nonlocal size
        size += len(answer.body)
        if size > MAX_ANSWER_BYTES and answer.more:
            job.cancel()
            parts[:] = [failure(503, TOO_LARGE)]
        else:
            parts.append(answer)
        if not parts[-1].more and not done.done():
            done.set_result(None)

    job.deliver = deliver
    submit(job)
    try:
        await done
    except asyncio.CancelledError:
        job.cancel()
        raise
    if len(parts) == 1 or parts[-1].fault is not None:
        return parts[-1]
    return Answer(parts[0].status, parts[0].headers, b"".join(part.body for part in parts))


async def answer_parts(submit: Callable[[Job], None], job: Job) -> AsyncGenerator[Answer]:
    """Submit ``job`` and yield the parts of its answer as they come. Cancels the job when left early.

    What a slow reader has not taken is bounded: with too much of it the answer breaks off.
    """
    parts: asyncio.Queue[Answer] = asyncio.Queue()
    waiting = 0

    def deliver(_: Job, answer: Answer) -> None:
        nonlocal waiting
        waiting += len(answer.body)
        if waiting > MAX_BACKLOG_BYTES and answer.more:
            job.cancel()
            answer = failure(503, TOO_SLOW)
        parts.put_nowait(answer)

    job.deliver = deliver
    submit(job)
    try:
        while True:
            part = await parts.get()
            waiting -= len(part.body)
            yield part
            if not part.more:
                return
    finally:
        job.cancel()
