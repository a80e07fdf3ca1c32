"""HTTP/1.1 on one connection: hot requests straight to a model's queue, all others to uvicorn.

uvicorn's protocol on httptools does what is general: it parses, and runs the ASGI application for every
request that is not hot. A hot request is a POST with a Content-Length to a model or to the OHTTP gateway. It
becomes a job in the parser's own callback, and the worker's answer is written in the callback that brings it:
no coroutine, no future, no task. A head that was read before is not even parsed (``heads``).

Order of answers, when a caller pipelines: hot ones wait for each other in ``_pending``; a cold one starts
when that is empty; behind a cold one everything is cold, and uvicorn keeps the order.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from cloister.serve.frames import Headers
from cloister.serve.http.asgi import CERTIFICATE
from cloister.serve.http.asking import Asking
from cloister.serve.http.exchange import Exchange
from cloister.serve.http.front import HEAD_S, IDLE_S, Front
from cloister.serve.http.heads import (
    END,
    MAX_KEPT_BYTES,
    Head,
    HeadCache,
    Target,
    read_head,
    render_without_upgrade,
)
from cloister.serve.http.messages import Response, error_response
from cloister.serve.http.outgoing import MAX_PIPELINED, Outgoing
from cloister.serve.http.predictions import next_request_id

MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 256
OWN_HEADS = 8
"""Heads that a connection with a client certificate keeps for itself."""


class HotProtocol(Outgoing, Asking):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        front: Front,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop, front=front)
        self._raw: bytes | None = None
        self._upgrading = ""
        self._head_bytes = self._fed_bytes = 0
        self._missing = 0
        self._target: Target | None = None
        """Who answers ``_head``, as was decided when it came: others share the head, and decide anew."""
        self._take = self._take_answer
        self._part: set[Any] = set()
        self._certificate = b""
        self._heads = front.heads

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._part = self._front.enter(self)
        session = transport.get_extra_info("ssl_object")
        self._certificate = (session.getpeercert(binary_form=True) or b"") if session is not None else b""
        if self._certificate:
            # What is decided about a head holds for this caller only.
            self._heads = HeadCache(OWN_HEADS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._part.discard(self)
        self._held.release(self)
        for exchange in self._pending:
            exchange.abandon()
        self._pending.clear()
        self._deaf = True
        self._head, self._chunks = None, []
        self.pipeline.clear()
        if self._running is not None and self._running is not self.cycle:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        del self._take  # it refers to this object, which would wait for the garbage collector

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._discard(len(data))
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        position = 0
        if self._missing:
            position = self._continue_body(data)
        front = self._front
        size = len(data)
        while self._between and position < size:
            end = data.find(END, position, position + MAX_KEPT_BYTES) + 4
            if end < 4:
                break
            head = self._heads.get(data[position:end])
            if head is None or self._cold() or not front.admits(head):
                break
            position = end + head.body_bytes
            if position <= size:
                self._ask(head, head.target, data[end:position])
                if head.close:
                    return
            else:
                self._head, self._target, self._chunks = head, head.target, [data[end:]]
                self._missing = position - size
                self._since = self.due = front.now
                self._held.hold(self, size - end)
        if position < size:
            self._parse(data[position:] if position else data)

    def sweep(self, now: float) -> None:
        """Act on what has taken too long."""
        timeout_s = self._front.body_timeout_s
        if self.transport.is_closing() or self._pending or self._cold():
            # It may be slow to take its answer, and is slow to ask for none.
            self.due = now
            if self.flow.write_paused and now - self._since > timeout_s:
                self._end(now=True)
            return
        if self._linger is not None:
            if now > self._linger.due:
                self.transport.close()
            self.due = self._linger.due
            return
        refusal = None
        if self._head is not None:
            limit_s, refusal = timeout_s, "body too slow"
        elif not self._between:
            limit_s, refusal = min(HEAD_S, timeout_s), "head too slow"
        else:
            limit_s = IDLE_S
        self.due = self._since + limit_s
        if now > self.due:
            if refusal is None:
                self.transport.close()
            else:
                self._refuse(error_response(408, "RequestTimeoutException", refusal))
            self.due = now

    # Reading.

    def _continue_body(self, data: bytes) -> int:
        """Take what belongs to the body in progress; where in ``data`` it ends."""
        head, size = self._head, len(data)
        assert head is not None
        if size < self._missing:
            self._chunks.append(data)
            self._missing -= size
            self._held.hold(self, size)
            return size
        self._held.release(self)
        end = self._missing
        self._chunks.append(data[:end] if end < size else data)
        body = b"".join(self._chunks)
        target, self._target = self._target, None
        self._head, self._chunks, self._missing = None, [], 0
        self._ask(head, target, body)
        return end if not self._deaf else size

    def _parse(self, data: bytes) -> None:
        if self._between:
            end = data.find(END, 0, MAX_KEPT_BYTES)
            self._raw = data[: end + 4] if end >= 0 else None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            refusal = self._refusal or error_response(400, "BadRequestException", "not valid HTTP/1.1")
            self._refuse(refusal)
        else:
            if not self._between and not self._in_body:
                self._fed_bytes += len(data)
                if self._fed_bytes > MAX_HEAD_BYTES:
                    self._refuse(_head_too_large())

    def _ignore_upgrade(self, rest: bytes) -> None:
        """No other protocol is offered (RFC 9110, section 7.8): go on as if none had been asked for."""
        if self._deaf:
            return
        self.parser = httptools.HttpRequestParser(self)
        self._parse(render_without_upgrade(self.url, self.headers, self._upgrading) + rest)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._between = False
        self._in_body = False
        self._head_bytes = self._fed_bytes = 0
        self._since = self.due = self._front.now

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_HEAD_BYTES:
            self._fail(_head_too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer: nothing here has a use for one
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._fail(_head_too_large())

    def on_headers_complete(self) -> None:
        self._in_body = True
        raw, self._raw = self._raw, None
        version = self.parser.get_http_version()
        if self._deaf:
            self._fail(None)
        if version not in ("1.1", "1.0"):
            self._fail(error_response(505, "HttpVersionNotSupported", "HTTP/1.1 and 1.0 are spoken here"))
        self._check(self.headers)
        method = self.parser.get_method().decode("ascii")
        if self.parser.should_upgrade():
            if method == "CONNECT":
                self._fail(error_response(405, "MethodNotAllowedException", "this is no proxy"))
            self._upgrading = method
            return
        self._upgrading = ""
        if version == "1.1" and not self._cold():
            close = not self.parser.should_keep_alive()
            head = read_head(method, self.url, self.headers, close=close)
            if head is not None:
                head.certificate = self._certificate
                if self._front.admits(head):
                    self._head, self._target = head, head.target
                    if raw is not None:
                        self._heads.learn(raw, head)
                    return
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = expect
        cast("dict[str, Any]", self.scope)[CERTIFICATE] = self._certificate
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._head is None:
            super().on_body(body)
            return
        self._chunks.append(body)
        self._held.hold(self, len(body))
        if self._deaf:  # it has given way
            raise _StopParsing

    def on_message_complete(self) -> None:
        self._between = True
        self._in_body = False
        if self._upgrading:
            return  # the parser takes what follows for another protocol
        head = self._head
        if head is None:
            super().on_message_complete()
            return
        self._held.release(self)
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        target, self._target = self._target, None
        self._head, self._chunks = None, []
        self._ask(head, target, body)

    def _check(self, headers: Headers) -> None:
        """What the parser lets pass, and a proxy in front might read differently."""
        hosts = 0
        for name, value in headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                self._fail(error_response(501, "NotImplemented", "only chunked transfer coding is known"))
        if hosts > 1:
            self._fail(error_response(400, "BadRequestException", "more than one Host"))

    def _fail(self, refusal: Response | None) -> None:
        """End parsing from inside a callback."""
        self._refusal = refusal
        raise _StopParsing

    # Asking.

    def _ask(self, head: Head, target: Target | None, body: bytes) -> None:
        """Hand over one whole request, to the gateway if ``target`` is None."""
        exchange = Exchange(
            next_request_id(),
            head.model_headers,
            head.query,
            body,
            self._take,
            priority=head.priority,
            close=head.close,
        )
        self._pending.append(exchange)
        if head.close:
            self._deaf = True
        if target is None:
            self._open(exchange, body)
        else:
            self._submit(target, exchange)
        if len(self._pending) >= MAX_PIPELINED:
            self.flow.pause_reading()


class _StopParsing(Exception):
    """Ends the parser from inside its callback."""


def _head_too_large() -> Response:
    return error_response(431, "RequestHeaderFieldsTooLarge", f"head is over {MAX_HEAD_BYTES} bytes")
