"""``/.well-known/ohttp-gateway``: the keys (RFC 9540), and sealed requests (RFC 9458).

What goes wrong before a request is opened is answered in the clear, as a problem document that says nothing
of the request. What goes wrong afterwards is sealed like any other answer (RFC 9458, section 5.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import unquote

import msgspec

from cloister.errors import BadCiphertext, MalformedInput, Overloaded, Replayed, UnknownKeyConfig
from cloister.ohttp import bhttp
from cloister.ohttp.gateway import Gateway
from cloister.ohttp.replay import DATE_PROBLEM, check_date, render_date
from cloister.serve.http.errors import method_not_allowed, render_failure
from cloister.serve.http.messages import Request, Response

KEYS_TYPE = b"application/ohttp-keys"
REQUEST_TYPE = b"message/ohttp-req"
RESPONSE_TYPE = b"message/ohttp-res"
KEY_PROBLEM = "https://iana.org/assignments/http-problem-types#ohttp-key"

_NO_STORE = (b"cache-control", b"no-store")


class GatewayEndpoint:
    """Opens sealed requests, has them answered, seals the answers."""

    def __init__(
        self,
        gateway: Gateway,
        handle: Callable[[Request], Awaitable[Response]],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._gateway = gateway
        self._handle = handle
        self._clock = clock

    async def answer(self, request: Request) -> Response:
        """Keys for GET, a sealed answer for POST."""
        if request.method == "GET":
            return Response(200, [(b"content-type", KEYS_TYPE), _NO_STORE], self._gateway.key_configs)
        if request.method != "POST":
            return method_not_allowed("GET", "POST")
        if request.header(b"content-type").partition(b";")[0].strip().lower() != REQUEST_TYPE:
            return _problem(415, "about:blank", "expected content type message/ohttp-req")
        try:
            opened, sealer = self._gateway.open(request.content)
        except (UnknownKeyConfig, BadCiphertext, MalformedInput):
            # One answer for all of them: a stale caller verifies again, an attacker learns nothing.
            return _problem(400, KEY_PROBLEM, "cannot be opened with a key in use: fetch the keys again")
        except Replayed:
            return _problem(409, "about:blank", "this sealed request was received before")
        except Overloaded as error:
            return render_failure(error)
        inner = await self._answer_inner(opened)
        sealed = sealer.seal(bhttp.render_response(_sealable(inner)))
        return Response(200, [(b"content-type", RESPONSE_TYPE), _NO_STORE], sealed)

    async def _answer_inner(self, raw: bytes) -> Response:
        now = self._clock()
        try:
            inner = bhttp.parse_request(raw)
            check_date(inner, now)
        except Replayed as error:
            response = _problem(400, DATE_PROBLEM, error.message)
            response.headers.append((b"date", render_date(now)))
            return response
        except MalformedInput as error:
            return render_failure(error)
        path, _, query = inner.path.partition(b"?")
        headers = list(inner.headers)
        if inner.authority and inner.header(b"host") is None:
            headers.append((b"host", inner.authority))
        try:
            decoded = unquote(path.decode("ascii"), errors="strict")
        except UnicodeDecodeError:
            return render_failure(MalformedInput("path is not UTF-8"))
        method = inner.method.decode("ascii", "replace")
        return await self._handle(Request(method, decoded, query, headers, inner.content))


def _sealable(response: Response) -> bhttp.Response:
    headers = tuple((name, value.strip(b" \t")) for name, value in response.headers)
    return bhttp.Response(status=response.status, headers=headers, content=response.content)


def _problem(status: int, kind: str, title: str) -> Response:
    """RFC 9457 problem details."""
    document = {"type": kind, "title": title, "status": status}
    return Response(
        status, [(b"content-type", b"application/problem+json"), _NO_STORE], msgspec.json.encode(document)
    )
