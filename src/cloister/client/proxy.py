"""A local proxy for every other language: plain HTTP in, verified and sealed out.

It listens on the loopback interface (or a UNIX socket), where whoever can connect is trusted as much as the
machine's user. A request goes on only to a service that has proved itself; otherwise it is answered 502 with
the check that failed, and nothing has left. Answers are streamed; one that is cut ends the connection without
its last chunk, which every HTTP client reports.

Web pages can send requests to the loopback interface too. So a request with an ``Origin`` that was not
allowed, one without that a page of another site has caused (an image, a link: ``Sec-Fetch-Site``), or one
under a host name that is not this machine's (DNS rebinding) is refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import httpx

from cloister.client.aio import AsyncOhttpTransport
from cloister.errors import (
    CloisterError,
    MalformedInput,
    Overloaded,
    PolicyDenied,
    Replayed,
    RequestTooLarge,
    VerificationError,
)

MAX_REPEATABLE_BYTES = 1 << 20
"""Requests with a body of at most so much are kept until they are answered, so that one that meets a new key
or a restart of the service can be sealed again; longer ones are passed on as they come."""
HEALTH_PATH = "/.well-known/cloister/proxy"
_OWN_SITES = ("none", "same-origin")
"""What a browser says (Fetch Metadata) of a request that no other site's page has caused."""
LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "[::1]"))

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_STATUSES: tuple[tuple[type[CloisterError], int], ...] = (
    (RequestTooLarge, 413),
    (Replayed, 409),
    (Overloaded, 503),
    (MalformedInput, 502),
    (CloisterError, 502),
)
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


class ProxyApp:
    """The ASGI application: one service behind it."""

    def __init__(
        self,
        transport: AsyncOhttpTransport,
        *,
        host_names: Iterable[str] = LOOPBACK_NAMES,
        origins: Iterable[str] = (),
        on_refusal: Callable[[CloisterError], None] = lambda _: None,
    ) -> None:
        """Set up.

        Args:
            host_names: values of ``Host``, without port, under which requests are taken; none means any.
            origins: web origins whose pages may send requests.
            on_refusal: told of each failure of verification.
        """
        self._transport = transport
        self._host_names = frozenset(name.lower() for name in host_names)
        self._origins = frozenset(origin.lower() for origin in origins)
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._transport.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refuse_page(scope["headers"])
        if refusal:
            await _send_error(send, 403, "ForbiddenException", refusal)
        elif scope["path"] == HEALTH_PATH:
            await self._health(send)
        else:
            await self._forward(scope, receive, send)

    def _refuse_page(self, headers: list[tuple[bytes, bytes]]) -> str:
        named = any(name == b"origin" for name, _ in headers)
        for name, value in headers:
            text = value.decode("latin-1").lower()
            if name == b"origin" and text not in self._origins:
                return "requests of web pages are not taken from this origin: see --allow-origin"
            if name == b"sec-fetch-site" and not named and text not in _OWN_SITES:
                return "requests of web pages are taken with their origin only: see --allow-origin"
            if name == b"host" and self._host_names and _without_port(text) not in self._host_names:
                return "this host name is not one of the proxy's: see --host-name"
        return ""

    async def _health(self, send: Send) -> None:
        try:
            service = await self._transport.service()
        except CloisterError as error:
            await self._send_failure(send, error)
            return
        identity = service.identity
        document = {
            "status": "verified",
            "service": self._transport.url,
            "models": [f"{model.name} {model.version}" for model in identity.models],
        }
        await _send_json(send, 200, document)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request = await self._request(scope, receive)
            response = await self._transport.handle_async_request(request)
        except CloisterError as error:
            await self._send_failure(send, error)
            return
        except httpx.InvalidURL:
            await _send_error(send, 400, "BadRequestException", "the request's target is not a path")
            return
        except _Gone:
            return
        try:
            headers = _end_to_end(response.headers.raw)
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except CloisterError as error:
            # The head has gone: an end without the last chunk is how HTTP says that the answer is cut.
            self._on_refusal(error)
            raise _Cut from None
        finally:
            await response.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _request(self, scope: Scope, receive: Receive) -> httpx.Request:
        query = scope["query_string"]
        raw_path = scope.get("raw_path") or scope["path"].encode()
        target = raw_path + (b"?" + query if query else b"")
        url = httpx.URL(self._transport.url).copy_with(raw_path=target)
        given = dict(scope["headers"])
        length = int(given.get(b"content-length", b"0"))
        content: bytes | AsyncIterator[bytes] = b""
        if b"transfer-encoding" in given or length > MAX_REPEATABLE_BYTES:
            content = _content(receive)
        elif length:
            content = b"".join([part async for part in _content(receive)])
        return httpx.Request(scope["method"], url, headers=_end_to_end(scope["headers"]), content=content)

    async def _send_failure(self, send: Send, error: CloisterError) -> None:
        if isinstance(error, (VerificationError, PolicyDenied)):
            self._on_refusal(error)
        status = next(number for kind, number in _STATUSES if isinstance(error, kind))
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        await _send_error(send, status, type(error).__name__, message)


class _Cut(Exception):
    """The answer was cut behind its head."""


class _Gone(Exception):
    """The caller went away before its request was whole."""


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without those about one connection, and those that ``Connection`` names (RFC 9110, section 7.6.1)."""
    pairs = list(headers)
    named = [value for name, value in pairs if name.lower() == b"connection"]
    left_out = _HOP_BY_HOP.union(*([part.strip().lower() for part in value.split(b",")] for value in named))
    return [pair for pair in pairs if pair[0].lower() not in left_out]


async def _content(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _Gone
        if event.get("body"):
            yield event["body"]
        if not event.get("more_body"):
            return


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def _send_error(send: Send, status: int, kind: str, message: str) -> None:
    await _send_json(send, status, {"code": status, "type": kind, "message": message})


async def _send_json(send: Send, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
