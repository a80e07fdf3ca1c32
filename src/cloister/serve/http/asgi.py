"""ASGI in, ``Api`` out: reads a body under its limit, sends the response with its length or in chunks.

What is not hot comes here (``protocol``). Bare ASGI, without a framework: on this machine one costs four
times the request itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Protocol, TypeVar

from cloister.errors import CloisterError, MalformedInput, Overloaded, RequestTooLarge, TransportError
from cloister.serve.frames import Headers
from cloister.serve.http import paths
from cloister.serve.http.access_log import AccessLog
from cloister.serve.http.cors import Cors, find_origin
from cloister.serve.http.errors import render_failure
from cloister.serve.http.gateway import GatewayEndpoint, is_streamed
from cloister.serve.http.held import REASON, HeldBodies
from cloister.serve.http.linger import Linger
from cloister.serve.http.messages import Request, Response, error_response
from cloister.serve.http.predictions import next_request_id
from cloister.serve.http.render import NO_CACHE
from cloister.serve.http.streamed import Upload
from cloister.serve.http.ways import Way

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

CERTIFICATE = "cloister.certificate"
"""Where the scope has the DER of the client certificate that TLS has verified."""
_CLOSE = (b"connection", b"close")
_Result = TypeVar("_Result")


class Answering(Protocol):
    """The part of ``Api`` that is needed here."""

    @property
    def cors(self) -> Cors:
        """What pages of other origins may read."""

    @property
    def held(self) -> HeldBodies:
        """What bodies hold that have come in part."""

    @property
    def gateway(self) -> GatewayEndpoint | None:
        """What opens sealed requests; None where they are opened elsewhere."""

    def refuse_early(self, way: Way, path: str) -> Response | None:
        """What to answer before any of the body is read; None if the request may go on."""

    def body_limit(self, path: str) -> int:
        """How long a body may be at this path."""

    def trace_refusal(self, headers: Headers, status: int, started: float) -> None:
        """Note in the traces, where there are any, that a request came to no model."""

    async def handle(self, request: Request, way: Way) -> Response:
        """The response to one whole request."""


class AsgiApp:
    """The application behind one listening socket."""

    def __init__(self, api: Answering, way: Way, *, body_timeout_s: float) -> None:
        self.api = api
        self.way = way
        self.body_timeout_s = body_timeout_s
        self.access_log: AccessLog | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        cors = self.api.cors
        if cors.is_on:
            preflight = cors.preflight(scope)
            if preflight is not None:
                await send(_start(Response(204, preflight, b"")))
                await send({"type": "http.response.body", "body": b""})
                return
            send = _saying(cors.headers(find_origin(scope["headers"])), send)
        path, started = scope["path"], time.monotonic()
        refusal = self.api.refuse_early(self.way, path)
        if refusal is not None:
            await self._refuse(refusal, scope, started, receive, send)
            return
        if path == paths.GATEWAY and self.api.gateway is not None and _is_streamed(scope):
            await self._answer_streamed(self.api.gateway, scope, receive, send)
            return
        try:
            content = await self._read_body(scope, receive, self.api.body_limit(path))
        except TimeoutError:
            slow = error_response(408, "RequestTimeoutException", "body too slow")
            await self._refuse(slow, scope, started, receive, send)
            return
        except TransportError:
            return  # the caller has gone
        except CloisterError as error:
            await self._refuse(render_failure(error), scope, started, receive, send)
            return
        request = Request(
            scope["method"],
            path,
            scope["query_string"],
            scope["headers"],
            content,
            scope.get(CERTIFICATE, b""),
        )
        started = time.monotonic()
        response = await _unless_gone(self.api.handle(request, self.way), receive)
        if response is None:
            return
        await self._finish(response, receive, send, started)

    async def _refuse(
        self, refusal: Response, scope: Scope, started: float, receive: Receive, send: Send
    ) -> None:
        """Answer before the body has come whole."""
        self.api.trace_refusal(scope["headers"], refusal.status, started)
        await _refuse(refusal, receive, send)

    async def _finish(self, response: Response, receive: Receive, send: Send, started: float) -> None:
        size = await _send(response, receive, send)
        if self.access_log is not None:
            self.access_log.note(
                response.header(b"x-request-id").decode(), "", response.status, size, started
            )

    async def _answer_streamed(
        self, gateway: GatewayEndpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """A chunked sealed request: opened as it comes, its answer sealed as it comes."""
        upload = gateway.open_stream()
        try:
            _check_length(scope, self.api.body_limit(paths.GATEWAY))
            with upload:
                async with asyncio.timeout(self.body_timeout_s):
                    early = await _read_upload(upload, receive, self.api.body_limit(paths.GATEWAY))
                    inner = upload.finish() if early is None else early
        except TimeoutError:
            await _refuse(error_response(408, "RequestTimeoutException", "body too slow"), receive, send)
            return
        except TransportError:
            return  # the caller has gone
        except CloisterError as error:
            await _refuse(gateway.refuse(error), receive, send)
            return
        if early is not None:
            await _refuse(upload.seal(early), receive, send)
            return
        started = time.monotonic()
        response = await _unless_gone(gateway.ask(inner), receive)
        if response is not None:
            await self._finish(upload.seal(response), receive, send, started)

    async def _read_body(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """The whole body, refused by its declared length before, or by its real one while it is read."""
        _check_length(scope, limit)
        async with asyncio.timeout(self.body_timeout_s) as patience:
            reading = _Reading(self.api.held, patience)
            try:
                return await _read_pieces(receive, limit, reading)
            except asyncio.CancelledError:
                if reading.gave_way:
                    raise Overloaded(REASON) from None
                raise
            finally:
                self.api.held.release(reading)


def _saying(more: Headers, send: Send) -> Send:
    """``send`` with further headers in the response, where it has none of their names."""

    async def sending(event: Event) -> None:
        if event["type"] == "http.response.start":
            own = {name for name, _ in event["headers"]}
            event["headers"] = [*event["headers"], *(pair for pair in more if pair[0] not in own)]
        await send(event)

    return sending


def _is_streamed(scope: Scope) -> bool:
    return scope["method"] == "POST" and any(
        name == b"content-type" and is_streamed(value) for name, value in scope["headers"]
    )


def _check_length(scope: Scope, limit: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit():
                raise MalformedInput("content-length is not a number")
            if int(value) > limit:
                raise RequestTooLarge(f"request body is over {limit} bytes")


async def _read_upload(upload: Upload, receive: Receive, limit: int) -> Response | None:
    """Feed the whole body; an answer, to be sealed, if one is due before its end."""
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise TransportError("the caller has gone")
        data = event.get("body", b"")
        size += len(data)
        if size > limit:
            raise RequestTooLarge(f"request body is over {limit} bytes")
        early = upload.receive(data)
        if early is not None or not event.get("more_body"):
            return early


class _Reading:
    """A body that is being read."""

    def __init__(self, held: HeldBodies, patience: asyncio.Timeout) -> None:
        self._held, self._patience = held, patience
        self.gave_way = False

    def hold(self, size: int) -> None:
        """So much more has come."""
        self._held.hold(self, size)

    def give_way(self) -> None:
        """Waits no longer for the rest."""
        self.gave_way = True
        self._patience.reschedule(asyncio.get_running_loop().time())


async def _read_pieces(receive: Receive, limit: int, reading: _Reading) -> bytes:
    content = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise TransportError("the caller has gone")
        data = event.get("body", b"")
        content += data
        if len(content) > limit:
            raise RequestTooLarge(f"request body is over {limit} bytes")
        if not event.get("more_body"):
            return bytes(content)
        reading.hold(len(data))


async def _unless_gone(answering: Coroutine[Any, Any, _Result], receive: Receive) -> _Result | None:
    """What ``answering`` gives; None, and an end to it, if the caller leaves first."""
    task = asyncio.create_task(answering)
    leaving = asyncio.create_task(_wait_gone(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for waiting in (task, leaving):
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(response: Response, receive: Receive, send: Send) -> int:
    """Send a response with the headers that TorchServe sends with every one; how long its content was."""
    own = {name for name, _ in response.headers}
    if b"x-request-id" not in own:
        response.headers = [*response.headers, (b"x-request-id", next_request_id().encode())]
    content = response.content
    if isinstance(content, bytes):
        await send(_start(response, (b"content-length", b"%d" % len(content))))
        await send({"type": "http.response.body", "body": content})
        return len(content)
    await send(_start(response))
    return await _unless_gone(_send_parts(content, send), receive) or 0


async def _send_parts(parts: AsyncIterator[bytes], send: Send) -> int:
    """The parts as they come. What breaks off leaves the response without its end, and uvicorn closes."""
    size = 0
    with contextlib.suppress(CloisterError):
        async for part in parts:
            if part:
                size += len(part)
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    return size


def _start(response: Response, *more: tuple[bytes, bytes]) -> Event:
    own = {name for name, _ in response.headers}
    headers = [*response.headers, *more, *(pair for pair in NO_CACHE if pair[0] not in own)]
    return {"type": "http.response.start", "status": response.status, "headers": headers}


async def _refuse(response: Response, receive: Receive, send: Send) -> None:
    """Answer before the body has come, drop what still comes of it for a while (``linger``), and close."""
    content = await response.whole()
    await send(_start(response, _CLOSE, (b"content-length", b"%d" % len(content))))
    await send({"type": "http.response.body", "body": content, "more_body": True})
    loop = asyncio.get_running_loop()
    linger = Linger(loop.time())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(linger.due) as patience:
            while True:
                event = await receive()
                going = linger.drop(len(event.get("body", b"")), loop.time())
                if not going or event["type"] == "http.disconnect" or not event.get("more_body"):
                    break
                patience.reschedule(linger.due)
    await send({"type": "http.response.body", "body": b""})
