"""The core's end of one frontend process: its requests are asked here, and their answers handed back.

All that is decided about a request is decided on this side, by what decides where there is no frontend
process: ``Front.admits`` and ``Asking`` for predictions and sealed requests, ``Api.handle`` for the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import msgspec

from cloister.errors import CloisterError, MalformedInput, ModelFailed
from cloister.serve.frames import (
    FRAME_BYTES,
    MAX_ANSWER_BYTES,
    FrameDecoder,
    HeadEncoder,
    Headers,
    write_frame,
)
from cloister.serve.frontends.frames import (
    Alive,
    AskHead,
    AskItem,
    Asks,
    FromFrontend,
    Gone,
    Ready,
    Refused,
    Replies,
    ReplyItem,
    ToFrontend,
)
from cloister.serve.http import paths
from cloister.serve.http.answers import check_first_part, join_parts, settle_whole
from cloister.serve.http.asking import Asking
from cloister.serve.http.errors import render_failure
from cloister.serve.http.exchange import Exchange
from cloister.serve.http.front import Front
from cloister.serve.http.gateway import is_streamed
from cloister.serve.http.heads import MAX_KEPT_BYTES, Head
from cloister.serve.http.messages import Request, Response, error_response
from cloister.serve.jobs import TOO_LARGE, Answer
from cloister.serve.log import log

_decode_head = msgspec.msgpack.Decoder(AskHead).decode


class Handed(Exchange, eq=False, kw_only=True):
    """An exchange whose connection is in a frontend process."""

    place: int = 0
    """Its number there."""


class Desk(asyncio.Protocol):
    """The socket to one frontend process.

    Args:
        fronts: the ports that it serves, in the order in which it was told of them.
        on_word: called with what it says of itself.
        on_broken: called with the reason, without content, when it says what it may not.
        on_lost: called when the connection is gone.
    """

    def __init__(
        self,
        fronts: Sequence[Front],
        *,
        on_word: Callable[[Ready | Alive], None],
        on_broken: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.asked: dict[int, Handed] = {}
        """What it waits for."""
        self.writable = asyncio.Event()
        """Clear while it reads more slowly than it is written to."""
        self.writable.set()
        self._counters = [Counter(front, self) for front in fronts]
        self._on_word = on_word
        self._on_broken = on_broken
        self._on_lost = on_lost
        self._decoder: FrameDecoder[FromFrontend] = FrameDecoder(FromFrontend)  # type: ignore[arg-type]
        self._transport: asyncio.Transport | None = None
        self._encode = HeadEncoder()
        self._heads: dict[bytes, int] = {}
        self._items: list[ReplyItem] = []
        self._bodies: list[bytes] = []
        self._bytes = 0
        self._flush_due = False

    def send(self, message: ToFrontend, bodies: Sequence[bytes] = ()) -> None:
        """Write one frame; nowhere after the frontend's end."""
        write_frame(self._transport, message, bodies)

    def close(self) -> None:
        """Let go of the socket, and of everything that was asked over it."""
        if self._transport is not None:
            self._transport.abort()
        for exchange in list(self.asked.values()):
            exchange.abandon()
        self.asked.clear()

    def reply(self, exchange: Handed, answer: Answer, *, broken: bool = False, request_id: str = "") -> None:
        """Hand back an answer or a part of one; all that one turn of the event loop brings goes together."""
        if exchange.place not in self.asked:
            return  # its caller has gone
        headers, body = answer.headers, answer.body
        raw = self._encode(headers)
        index = self._heads.setdefault(raw, len(self._heads))
        if not answer.more:
            del self.asked[exchange.place]
        self._items.append(
            ReplyItem(exchange.place, answer.status, index, len(body), request_id, answer.more, broken)
        )
        self._bodies.append(cast("bytes", body))  # joined or written, either of which takes a view too
        self._bytes += len(body)
        if self._bytes > FRAME_BYTES:
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if not self._items:
            return
        message, bodies = Replies(list(self._heads), self._items), self._bodies
        self._heads, self._items, self._bodies, self._bytes = {}, [], [], 0
        self.send(message, bodies)

    # The socket's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()
        self.close()
        self._on_lost()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            for message, payload in self._decoder.feed(data):
                if isinstance(message, (Asks, Refused)):
                    if message.port >= len(self._counters):
                        raise MalformedInput("requests of a port that it does not have")
                    counter = self._counters[message.port]
                    if isinstance(message, Asks):
                        counter.take(message, payload)
                    else:
                        counter.trace(message)
                elif isinstance(message, Gone):
                    self._abandon(message.numbers)
                else:
                    self._on_word(message)
        except MalformedInput as error:
            self._on_broken(f"it broke the protocol: {error.message}")

    def _abandon(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            exchange = self.asked.pop(number, None)  # it may have been answered meanwhile
            if exchange is not None:
                exchange.abandon()


class Counter(Asking):
    """One port of one frontend process."""

    def __init__(self, front: Front, desk: Desk) -> None:
        self.loop = desk.loop
        self._front = front
        self._desk = desk

    def take(self, message: Asks, payload: memoryview) -> None:
        """Ask what one frame holds.

        Raises:
            MalformedInput: the frame's parts do not fit together.
        """
        heads = [self._head(raw) for raw in message.heads]
        content: bytes | memoryview = payload.tobytes() if len(payload) <= 1 << 16 else payload
        start = 0
        for item in message.items:
            end = start + item.body_bytes
            if end > len(content) or item.head >= len(heads) or item.number in self._desk.asked:
                raise MalformedInput("a request that does not fit its frame")
            self._ask(item, heads[item.head], bytes(content[start:end]))
            start = end
        if start != len(content):
            raise MalformedInput(f"frame lists {start} bytes of bodies and carries {len(content)}")

    def trace(self, refused: Refused) -> None:
        """Note a refusal in the traces."""
        started = time.monotonic() - refused.took_s
        self._front.api.trace_refusal(refused.parent, refused.status, started)

    def _head(self, raw: bytes) -> Head:
        head = self._front.heads.get(raw)
        if head is None:
            try:
                said = _decode_head(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise MalformedInput("a frame's head is none of a request") from error
            head = Head(said.method, said.path, said.query, said.headers, 0, close=False)
            head.certificate = said.certificate
            if len(raw) <= MAX_KEPT_BYTES:
                self._front.heads.add(raw, head)
        return head

    def _ask(self, item: AskItem, head: Head, body: bytes) -> None:
        exchange = Handed(
            item.request_id,
            head.headers,
            head.query,
            body,
            self._take,
            priority=head.priority,
            place=item.number,
        )
        self._desk.asked[item.number] = exchange
        try:
            self._direct(exchange, head)
        except Exception as error:  # noqa: BLE001 (one caller's request must not end the frontend of others)
            self._fail(exchange, error)

    def _direct(self, exchange: Handed, head: Head) -> None:
        front = self._front
        fits = len(exchange.body) <= front.api.body_limit(head.path)  # the frontend has seen to it
        if not fits or not front.admits(head):
            exchange.task = self.loop.create_task(self._answer(exchange, head))
        elif head.target is None:
            self._open(exchange, exchange.body)
        else:
            exchange.headers = head.model_headers
            self._submit(head.target, exchange)

    def _fail(self, exchange: Handed, error: Exception) -> None:
        """A fault of ours: no traceback, which could hold what the caller sent."""
        log.error("request failed", exception=type(error).__name__, way=self._front.way.value)
        if exchange.streaming:
            self._break(exchange)
        else:
            self._complete(exchange, error_response(500, "InternalServerException", "Internal error"))

    def _take(self, exchange: Handed, answer: Answer) -> None:
        """The worker's callback: one part of the answer to one request."""
        if exchange.place not in self._desk.asked:
            return
        if exchange.sealer is not None and (answer.more or exchange.answers is not None):
            if not self._hold(exchange, answer):
                return
            answer = join_parts(exchange.answers or ())
        exchange.done = not answer.more
        if exchange.done and not exchange.streaming:
            self._desk.reply(exchange, settle_whole(self._front, exchange, answer))
        else:
            self._pass_on(exchange, answer)

    def _hold(self, exchange: Handed, part: Answer) -> bool:
        """Keep a part of what is sealed as a whole; whether it is the last one."""
        if exchange.answers is None:
            exchange.answers = []
        exchange.answers.append(part)
        exchange.held_bytes += len(part.body)
        if part.more and exchange.held_bytes > MAX_ANSWER_BYTES:
            exchange.cancel()
            exchange.answers = None
            self._complete(exchange, render_failure(ModelFailed(TOO_LARGE)))
        return not part.more

    def _pass_on(self, exchange: Handed, part: Answer) -> None:
        """One part of a streamed answer."""
        if part.fault is not None:
            self._break(exchange)
            return
        if not exchange.streaming:
            try:
                check_first_part(part)
            except ModelFailed as error:
                exchange.abandon()
                self._complete(exchange, render_failure(error))
                return
            exchange.streaming = True
        exchange.streamed_bytes += len(part.body)
        if not part.more:
            self._note(exchange.request_id, exchange.model, part.status, exchange)
        self._desk.reply(exchange, part)

    def _break(self, exchange: Handed) -> None:
        self._desk.reply(exchange, Answer(503, [], b""), broken=True)

    def _complete(self, exchange: Exchange, response: Response) -> None:
        """An answer that no worker made."""
        assert isinstance(response.content, bytes)
        assert isinstance(exchange, Handed)
        if exchange.place in self._desk.asked:
            exchange.done = exchange.own = True
            answer = Answer(response.status, response.headers, response.content)
            self._desk.reply(exchange, settle_whole(self._front, exchange, answer))

    async def _answer(self, exchange: Handed, head: Head) -> None:
        """What is no plain prediction and not sealed whole."""
        exchange.started = time.monotonic()
        exchange.own = True
        try:
            response = await self._handle(exchange, head)
            request_id = response.header(b"x-request-id").decode()
            headers = [pair for pair in response.headers if pair[0] != b"x-request-id"]
            if isinstance(response.content, bytes):
                content = response.content
                exchange.streamed_bytes = len(content)
            else:
                content = b""
                await self._answer_parts(exchange, response.status, headers, request_id, response.content)
        except CloisterError as error:
            if exchange.streaming:
                self._break(exchange)
            else:
                self._complete(exchange, render_failure(error))
            return
        except Exception as error:  # noqa: BLE001 (a fault of ours must not end in a traceback with content)
            self._fail(exchange, error)
            return
        self._note(request_id or exchange.request_id, "", response.status, exchange)
        self._desk.reply(exchange, Answer(response.status, headers, content), request_id=request_id)

    async def _handle(self, exchange: Handed, head: Head) -> Response:
        front = self._front
        gateway = front.api.gateway
        if gateway is not None and head.path == paths.GATEWAY and head.method == "POST" and _in_chunks(head):
            return await gateway.answer_streamed(exchange.body)
        request = Request(head.method, head.path, head.query, head.headers, exchange.body, head.certificate)
        return await front.api.handle(request, front.way)

    async def _answer_parts(
        self,
        exchange: Handed,
        status: int,
        headers: Headers,
        request_id: str,
        parts: AsyncIterator[bytes],
    ) -> None:
        async for part in parts:
            if part:
                exchange.streaming = True
                exchange.streamed_bytes += len(part)
                self._desk.reply(exchange, Answer(status, headers, part, more=True), request_id=request_id)
                await self._desk.writable.wait()

    def _note(self, request_id: str, model: str, status: int, exchange: Handed) -> None:
        if self._front.access_log is not None:
            size, started = exchange.streamed_bytes, exchange.started
            self._front.access_log.note(request_id, model, status, size, started)


def _in_chunks(head: Head) -> bool:
    return any(name == b"content-type" and is_streamed(value) for name, value in head.headers)
