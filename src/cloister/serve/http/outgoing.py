"""The answers of one connection, in the order of its requests, whoever makes them.

Hot requests wait for their answers in ``_pending``. A request of the general kind, which uvicorn runs, begins
when that is empty. A refusal is said when all that came before it is answered, and ends the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from cloister.errors import ModelFailed, Overloaded
from cloister.serve.frames import MAX_ANSWER_BYTES
from cloister.serve.http.answers import join_parts, render_parts, render_whole
from cloister.serve.http.errors import render_failure
from cloister.serve.http.exchange import Exchange
from cloister.serve.http.front import Front
from cloister.serve.http.heads import Head
from cloister.serve.http.held import REASON
from cloister.serve.http.linger import Linger
from cloister.serve.http.messages import Response
from cloister.serve.http.predictions import next_request_id
from cloister.serve.jobs import TOO_LARGE, Answer

MAX_PIPELINED = 64
"""With this many answers outstanding, a connection is not read further."""
MAX_STREAM_BACKLOG = 16 << 20
"""A caller who takes a streamed answer this much more slowly than it is made is dropped."""


class Outgoing(HttpToolsProtocol):
    """The writing half of a connection; ``HotProtocol`` is the reading one."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None,
        *,
        front: Front,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._front = front
        self._held = front.held
        self._pending: deque[Exchange] = deque()
        self._flush_due = False
        self._running: RequestResponseCycle | None = None
        self._since = front.now
        """When the present state began: a message, an answer, a pause."""
        self.due = front.now
        # The message in progress.
        self._between = True
        self._in_body = False
        self._head: Head | None = None
        self._chunks: list[bytes] = []
        # How it ends.
        self._draining = False
        self._deaf = False
        self._refusal: Response | None = None
        self._linger: Linger | None = None

    def _cold(self) -> bool:
        """Whether a request of the general kind is being answered, or waits for it."""
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    # uvicorn's callbacks for writing, and for the end.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._since = self.due = self._front.now
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._since = self._front.now
        self._resume_reading()

    def shutdown(self) -> None:
        self._draining = True
        if not self._pending and self._head is None:
            super().shutdown()

    # Answering.

    def _take_answer(self, exchange: Exchange, answer: Answer) -> None:
        """The worker's callback: one part of the answer to one request."""
        pending = self._pending
        if not pending:
            return  # the connection is gone
        if not answer.more:
            exchange.done = True
            if len(pending) == 1 and not exchange.streaming and exchange.answers is None:
                # The common case: one request, one answer.
                pending.clear()
                close = self._closes_after(exchange)
                self.transport.write(render_whole(self._front, exchange, answer, close=close))
                if close:
                    self._end()
                else:
                    self._after_answers()
                return
        if exchange.answers is None:
            exchange.answers = []
        exchange.answers.append(answer)
        if answer.more:
            exchange.held_bytes += len(answer.body)
            if exchange.held_bytes > MAX_ANSWER_BYTES and not exchange.streaming:
                exchange.cancel()
                self._complete(exchange, render_failure(ModelFailed(TOO_LARGE)))
                return
        self._flush_soon()

    def _complete(self, exchange: Exchange, response: Response) -> None:
        """An answer that no worker made."""
        assert isinstance(response.content, bytes)
        exchange.done = exchange.own = True
        exchange.answers = [Answer(response.status, response.headers, response.content)]
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the event loop, so that all its answers share one write."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        pending = self._pending
        out: list[bytes] = []
        close = False
        while pending and not close:
            exchange = pending[0]
            answers = exchange.answers
            if answers is None or (exchange.sealer is not None and not exchange.done):
                break
            exchange.answers, exchange.held_bytes = None, 0
            if exchange.done:
                pending.popleft()
            close = self._closes_after(exchange)
            if exchange.streaming or (exchange.sealer is None and answers[0].more):
                close = self._flush_parts(out, exchange, answers, close=close)
            else:
                out.append(render_whole(self._front, exchange, join_parts(answers), close=close))
            if not exchange.done:
                close = False
                break
        if out:
            self.transport.write(b"".join(out))
        if close:
            self._end()
        elif not pending:
            self._after_answers()
        elif self.transport.get_write_buffer_size() > MAX_STREAM_BACKLOG and pending[0].streaming:
            self._end(now=True)
        elif len(pending) < MAX_PIPELINED:
            self._resume_reading()

    def _flush_parts(
        self, out: list[bytes], exchange: Exchange, answers: list[Answer], *, close: bool
    ) -> bool:
        """Write parts of a streamed answer; whether the connection ends now."""
        try:
            render_parts(self._front, exchange, answers, out, close=close)
        except ModelFailed as error:
            if not exchange.done:
                exchange.done = True
                self._pending.popleft()
                exchange.abandon()
            if exchange.streaming:
                return True  # without the last chunk, so that nobody takes it for the whole
            exchange.own = True
            refusal = render_failure(error)
            assert isinstance(refusal.content, bytes)
            answer = Answer(refusal.status, refusal.headers, refusal.content)
            out.append(render_whole(self._front, exchange, answer, close=close))
        return close

    def _closes_after(self, exchange: Exchange) -> bool:
        """Whether this answer says ``Connection: close``."""
        if exchange.close:
            return True
        return self._draining and not self._pending and self._between and self._head is None

    def _after_answers(self) -> None:
        """No hot request is outstanding: go on with what waited for that."""
        if self._refusal is not None:
            self._say_refusal()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            if self._between:
                self._since = self._front.now
            if self.flow.read_paused:
                self._resume_reading()
            if self._draining:
                self.shutdown()

    def _end(self, *, now: bool = False) -> None:
        """Close the connection when what was written has gone out; with ``now`` without waiting for that."""
        self._deaf = True
        for exchange in self._pending:
            exchange.abandon()
        self._pending.clear()
        self._since = self.due = self._front.now
        if now:
            self.transport.abort()
        else:
            self.transport.close()

    def _resume_reading(self) -> None:
        if not self.flow.write_paused and len(self._pending) < MAX_PIPELINED:
            self.flow.resume_reading()

    # uvicorn's part, in its place among the answers.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._pending:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._since = self._front.now
        self._resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._say_refusal()
        elif self._draining:
            self.shutdown()

    # Refusing what cannot be answered.

    def give_way(self) -> None:
        """Of all unfinished bodies this one began first, and they hold too much."""
        self._refuse(render_failure(Overloaded(REASON)))

    def _refuse(self, refusal: Response) -> None:
        """Read no more requests; after the answers that are due, say why, and close."""
        if self._deaf:
            return
        self._deaf = True
        self._refusal = refusal
        self._held.release(self)
        self._head, self._chunks = None, []
        if self._in_body and self._cold():
            self._drop_cycle()
        if not self._pending and not self._cold():
            self._say_refusal()

    def _drop_cycle(self) -> None:
        """Give up the request of the general kind whose body is broken."""
        cycle = self.cycle
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
            return
        started = cycle.response_started
        cycle.disconnected = cycle.response_complete = True
        cycle.message_event.set()
        if started:
            self._refusal = None
            self.transport.close()

    def _say_refusal(self) -> None:
        """Send the refusal; what still comes is dropped for a while (``linger``), and then the end comes."""
        refusal, self._refusal = self._refusal, None
        if refusal is None or self.transport.is_closing():
            return
        assert isinstance(refusal.content, bytes)
        renderer = self._front.renderer
        prefix = renderer.learn(refusal.status, refusal.headers)
        self.transport.write(
            renderer.whole(refusal.status, prefix, refusal.content, next_request_id(), close=True)
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._since = self.due = self._front.now
        self._linger = Linger(self._since)
        self.flow.resume_reading()

    def _discard(self, size: int) -> None:
        if self._linger is not None and not self._linger.drop(size, self._front.now):
            self.transport.close()
