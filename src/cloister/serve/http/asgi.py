"""ASGI in, ``Api`` out: reads a body under its limit, and sends the response with its length.

Bare ASGI, without a framework: on this machine one costs four times the request itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cloister.errors import CloisterError, MalformedInput, RequestTooLarge, TransportError
from cloister.serve.http.api import Api, Way
from cloister.serve.http.errors import render_failure
from cloister.serve.http.messages import Request, Response, error_response

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

DISCARD_BYTES = 16 << 20
DISCARD_S = 2.0
"""How much and how long a refused body is still read, so that its sender gets to see the refusal."""
_CLOSE = (b"connection", b"close")


class AsgiApp:
    """The application behind one listening socket."""

    def __init__(self, api: Api, way: Way, *, body_timeout_s: float) -> None:
        self._api = api
        self._way = way
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        refusal = self._api.refuse_early(self._way, path)
        if refusal is not None:
            await _refuse(refusal, receive, send)
            return
        try:
            content = await self._read_body(scope, receive, self._api.body_limit(path))
        except TimeoutError:
            await _refuse(error_response(408, "RequestTimeoutException", "body too slow"), receive, send)
            return
        except TransportError:
            return  # the caller has gone
        except CloisterError as error:
            await _refuse(render_failure(error), receive, send)
            return
        request = Request(scope["method"], path, scope["query_string"], scope["headers"], content)
        response = await self._api.handle(request, self._way)
        await _send(response, send)

    async def _read_body(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """The whole body, refused by its declared length before, or by its real one while it is read."""
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not value.isdigit():
                    raise MalformedInput("content-length is not a number")
                if int(value) > limit:
                    raise RequestTooLarge(f"request body is over {limit} bytes")
        event = await receive()
        if event["type"] == "http.request" and not event.get("more_body"):
            body: bytes = event.get("body", b"")
            if len(body) > limit:
                raise RequestTooLarge(f"request body is over {limit} bytes")
            return body
        async with asyncio.timeout(self._body_timeout_s):
            return await _read_rest(event, receive, limit)


async def _read_rest(event: Event, receive: Receive, limit: int) -> bytes:
    content = bytearray()
    while True:
        if event["type"] == "http.disconnect":
            raise TransportError("the caller has gone")
        content += event.get("body", b"")
        if len(content) > limit:
            raise RequestTooLarge(f"request body is over {limit} bytes")
        if not event.get("more_body"):
            return bytes(content)
        event = await receive()


async def _send(response: Response, send: Send) -> None:
    length = (b"content-length", str(len(response.content)).encode())
    headers = [*response.headers, length]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})


async def _refuse(response: Response, receive: Receive, send: Send) -> None:
    """Answer before the body has come, and close.

    A socket that is closed with unread bytes resets the connection, and the sender loses the answer. So the
    answer goes out whole, a limited part of the body is read and dropped, and only then the end follows.
    """
    length = (b"content-length", str(len(response.content)).encode())
    headers = [*response.headers, _CLOSE, length]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.content, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            discarded = 0
            while discarded < DISCARD_BYTES:
                event = await receive()
                discarded += len(event.get("body", b""))
                if event["type"] == "http.disconnect" or not event.get("more_body"):
                    break
    await send({"type": "http.response.body", "body": b""})
