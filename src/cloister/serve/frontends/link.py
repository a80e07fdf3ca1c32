"""A frontend process's end of the socket to the core, and what stands for models and routes there.

``HotProtocol`` and ``AsgiApp`` run here as they do in a server of one process. A hot request's target is the
link instead of a model's queue; the application's ``Api`` hands over instead of answering.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec

from cloister.errors import MalformedInput, ModelFailed
from cloister.serve.frames import (
    FRAME_BYTES,
    FrameDecoder,
    HeadDecoder,
    Headers,
    split_payload,
    write_frame,
)
from cloister.serve.frontends.frames import (
    AskHead,
    AskItem,
    Asks,
    Drain,
    FromFrontend,
    Gone,
    Refused,
    Replies,
    Start,
    ToFrontend,
)
from cloister.serve.http import paths
from cloister.serve.http.cors import Cors, find_origin
from cloister.serve.http.exchange import Exchange
from cloister.serve.http.front import Front
from cloister.serve.http.heads import Head
from cloister.serve.http.held import HeldBodies
from cloister.serve.http.limits import body_limit, refuse_early
from cloister.serve.http.messages import Request, Response, error_response
from cloister.serve.http.predictions import next_request_id
from cloister.serve.http.ways import Way
from cloister.serve.jobs import NEVER, Answer, Job, answer_parts, failure

if TYPE_CHECKING:
    from cloister.serve.http.api import Api

_TRACE = frozenset((b"traceparent", b"tracestate"))
_encode = msgspec.msgpack.Encoder().encode


class Link(asyncio.Protocol):
    """Hands requests over and takes their answers; one frame for each turn of the event loop and port.

    Args:
        on_end: called when the core is gone, or says what cannot be understood.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Start] = self.loop.create_future()
        self.draining = asyncio.Event()
        """The core has said that the end is near."""
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._decoder: FrameDecoder[ToFrontend] = FrameDecoder(ToFrontend)  # type: ignore[arg-type]
        self._decode_head = HeadDecoder()
        self._asked: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._outboxes: dict[int, Outbox] = {}
        self._gone: list[int] = []
        self._flush_due = False

    @property
    def waiting(self) -> int:
        """How many requests are not answered yet."""
        return len(self._asked)

    def ask(self, port: int, raw_head: bytes, job: Job) -> None:
        """Hand over one whole request; its ``deliver`` gets the answer.

        Args:
            raw_head: ``AskHead`` as msgpack.
        """
        job.number = next(self._numbers)
        job.owner = self
        self._asked[job.number] = job
        outbox = self._outboxes.get(port)
        if outbox is None:
            outbox = self._outboxes[port] = Outbox()
        outbox.add(raw_head, job)
        if outbox.bytes > FRAME_BYTES:
            self._flush()
        else:
            self._flush_soon()

    def give_up(self, job: Job) -> None:
        """The caller of this one has left."""
        if self._asked.pop(job.number, None) is not None:
            self._gone.append(job.number)
            self._flush_soon()

    def send(self, message: FromFrontend, bodies: Sequence[bytes] = ()) -> None:
        """Write one frame."""
        write_frame(self._transport, message, bodies)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        outboxes, self._outboxes = self._outboxes, {}
        for port, outbox in outboxes.items():
            self.send(Asks(port, list(outbox.heads), outbox.items), outbox.bodies)
        if self._gone:  # after the requests, of which some may be among them
            self.send(Gone(self._gone))
            self._gone = []

    # The socket's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()

    def data_received(self, data: bytes) -> None:
        try:
            for message, payload in self._decoder.feed(data):
                if isinstance(message, Replies):
                    self._take(message, payload)
                elif isinstance(message, Drain):
                    self.draining.set()
                elif not self.started.done():
                    self.started.set_result(message)
        except MalformedInput:
            self._on_end()

    def _take(self, message: Replies, payload: memoryview) -> None:
        heads = [self._decode_head(raw) for raw in message.heads]
        bodies = split_payload([item.body_bytes for item in message.items], payload)
        for item, body in zip(message.items, bodies, strict=True):
            job = self._asked.get(item.number)
            if job is None:
                continue  # its caller left meanwhile
            if not item.more:
                del self._asked[item.number]
            if item.request_id:
                job.request_id = item.request_id
            if item.broken:
                answer = failure(503, "the answer broke off")
            else:
                answer = Answer(item.status, heads[item.head], body, None, item.more)
            job.deliver(job, answer)


class Outbox:
    """Requests of one port that wait for the end of this turn of the event loop."""

    __slots__ = ("bodies", "bytes", "heads", "items")

    def __init__(self) -> None:
        self.heads: dict[bytes, int] = {}
        self.items: list[AskItem] = []
        self.bodies: list[bytes] = []
        self.bytes = 0

    def add(self, raw_head: bytes, job: Job) -> None:
        """One more."""
        index = self.heads.setdefault(raw_head, len(self.heads))
        self.items.append(AskItem(job.number, job.request_id, index, len(job.body)))
        self.bodies.append(job.body)
        self.bytes += len(job.body)
        job.body = b""  # a caller who takes the answer slowly need not be remembered with the question


class HandOver:
    """The target of one head's requests."""

    __slots__ = ("_link", "_port", "_raw")
    stats = None
    """The model, and what is counted of it, is the core's business."""

    def __init__(self, link: Link, port: int, head: Head) -> None:
        self._link = link
        self._port = port
        self._raw = _encode(AskHead(head.method, head.path, head.query, head.headers, head.certificate))

    def submit(self, exchange: Exchange) -> None:
        """Hand over one request."""
        exchange.own = True  # the core has checked what comes
        self._link.ask(self._port, self._raw, exchange)


class RelayFront(Front):
    """One port of a frontend process: whatever is short enough to be taken goes to the core."""

    def __init__(self, api: RelayApi, way: Way, *, body_timeout_s: float) -> None:
        super().__init__(cast("Api", api), way, body_timeout_s=body_timeout_s)
        self._relay = api

    def _decide(self, head: Head) -> bool:
        """What the core decides anew for each request is not asked here, so that this holds for good."""
        head.generation = self._relay.generation
        head.until = NEVER
        head.target = None
        if head.body_bytes > self._relay.body_limit(head.path):
            return False
        if self._relay.refuse_early(self.way, head.path) is not None:
            return False
        if self._relay.cors.is_on and (head.path != paths.GATEWAY or find_origin(head.headers)):
            return False  # the hot path does not write what a page's browser needs
        head.target = HandOver(self._relay.link, self._relay.port, head)
        return True


class RelayApi:
    """What ``AsgiApp`` and ``Front`` need of ``Api``, for one port of a frontend process."""

    generation = 0
    gateway = None
    """Sealed requests are opened by the core; streamed ones go there whole."""

    def __init__(
        self,
        link: Link,
        port: int,
        *,
        max_request_bytes: int,
        cors: Cors,
        traced: bool,
        held: HeldBodies | None = None,
    ) -> None:
        self.link = link
        self.held = held or HeldBodies()
        self._traced = traced
        self.port = port
        self.cors = cors
        self._max_request_bytes = max_request_bytes

    def body_limit(self, path: str) -> int:
        """As ``Api.body_limit``."""
        return body_limit(path, self._max_request_bytes)

    def refuse_early(self, way: Way, path: str) -> Response | None:
        """As ``Api.refuse_early``."""
        return refuse_early(way, path)

    def trace_refusal(self, headers: Headers, status: int, started: float) -> None:
        """As ``Api.trace_refusal``."""
        if self._traced:
            parent = [pair for pair in headers if pair[0] in _TRACE]
            self.link.send(Refused(self.port, parent, status, time.monotonic() - started))

    async def handle(self, request: Request, way: Way) -> Response:
        """The core's response to one whole request."""
        raw = _encode(
            AskHead(request.method, request.path, request.query, request.headers, request.certificate)
        )
        job = Job(next_request_id(), request.headers, request.query, request.content, _nobody)
        parts = answer_parts(lambda job: self.link.ask(self.port, raw, job), job)
        first = await anext(parts)
        if first.fault is not None:
            return error_response(503, "InternalServerException", first.fault.reason)
        headers = [*first.headers, (b"x-request-id", job.request_id.encode())]
        if first.more:
            return Response(first.status, headers, _bodies(first, parts))
        await parts.aclose()
        return Response(first.status, headers, bytes(first.body))


async def _bodies(first: Answer, rest: AsyncIterator[Answer]) -> AsyncIterator[bytes]:
    yield bytes(first.body)
    async for part in rest:
        if part.fault is not None:
            raise ModelFailed("the answer broke off")
        yield bytes(part.body)


def _nobody(_: Job, __: Answer) -> None:
    """Replaced before it is called."""
