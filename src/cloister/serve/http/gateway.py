"""``/.well-known/ohttp-gateway``: the keys (RFC 9540), and sealed requests (RFC 9458).

What goes wrong before a request is opened is answered in the clear, as a problem document that says nothing
of the request. What goes wrong afterwards is sealed like any other answer (RFC 9458, section 5.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

import msgspec

from cloister.errors import (
    BadCiphertext,
    CloisterError,
    MalformedInput,
    Overloaded,
    Replayed,
    UnknownKeyConfig,
)
from cloister.ohttp import bhttp
from cloister.ohttp.gateway import Gateway
from cloister.ohttp.padding import pad
from cloister.ohttp.replay import DATE_PROBLEM, check_date, render_date
from cloister.serve.frames import Headers
from cloister.serve.http.errors import method_not_allowed, render_failure
from cloister.serve.http.messages import Request, Response
from cloister.serve.http.streamed import REQUEST_TYPE as STREAM_TYPE
from cloister.serve.http.streamed import Upload, Uploads

KEYS_TYPE = b"application/ohttp-keys"
REQUEST_TYPE = b"message/ohttp-req"
RESPONSE_TYPE = b"message/ohttp-res"
KEY_PROBLEM = "https://iana.org/assignments/http-problem-types#ohttp-key"

_NO_STORE = (b"cache-control", b"no-store")
SEALED_HEADERS: Headers = [(b"content-type", RESPONSE_TYPE), _NO_STORE]

_REASONS: dict[type[CloisterError], str] = {
    Replayed: "replayed",
    UnknownKeyConfig: "unknown_key",
    BadCiphertext: "not_opened",
    Overloaded: "overloaded",
}


class Sealer(Protocol):
    """What seals the answer to one request."""

    def seal(self, response: bytes) -> bytes:
        """The encapsulated response."""


@dataclass(frozen=True, slots=True)
class Padding:
    """A sealer whose messages are filled up to their size classes first."""

    sealer: Sealer

    def seal(self, response: bytes) -> bytes:
        """The encapsulated response."""
        return self.sealer.seal(pad(response))


@dataclass(frozen=True, slots=True)
class Opened:
    """A request that was opened, or the answer to what was inside if that is no request."""

    inner: Request | Response
    sealer: Sealer


class GatewayEndpoint:
    """Opens sealed requests, has them answered, seals the answers.

    Args:
        max_request_bytes: longest content of a chunked request.
        pad_answers: fill answers up to size classes.
    """

    def __init__(
        self,
        gateway: Gateway,
        handle: Callable[[Request], Awaitable[Response]],
        *,
        max_request_bytes: int = 6_553_500,
        pad_answers: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._gateway = gateway
        self._handle = handle
        self._max_request_bytes = max_request_bytes
        self._pad = pad_answers
        self._clock = clock
        self.uploads = Uploads()
        self.refused: dict[str, int] = dict.fromkeys((*_REASONS.values(), "other"), 0)
        """Requests that were not opened, by reason."""

    async def answer(self, request: Request) -> Response:
        """Keys for GET, a sealed answer for POST."""
        if request.method == "GET":
            return Response(200, [(b"content-type", KEYS_TYPE), _NO_STORE], self._gateway.key_configs)
        if request.method != "POST":
            return method_not_allowed("GET", "POST")
        if request.header(b"content-type").partition(b";")[0].strip().lower() != REQUEST_TYPE:
            return _problem(415, "about:blank", "expected content type message/ohttp-req")
        opened = self.open(request.content)
        if isinstance(opened, Response):
            return opened
        response = await self.ask(opened.inner)
        sealed = seal_response(opened.sealer, response.status, response.headers, await response.whole())
        return Response(200, SEALED_HEADERS, sealed)

    async def ask(self, inner: Request | Response) -> Response:
        """The answer to what was inside."""
        return inner if isinstance(inner, Response) else await self._handle(inner)

    def open(self, capsule: bytes) -> Opened | Response:
        """Open one request; a response in the clear if that cannot be done."""
        try:
            raw, sealer = self._gateway.open(capsule)
        except CloisterError as error:
            return self.refuse(error)
        try:
            inner = self._read(bhttp.parse_request(raw))
        except MalformedInput as error:
            inner = render_failure(error)
        return Opened(inner, Padding(sealer) if self._pad else sealer)

    def refuse(self, error: CloisterError) -> Response:
        """The answer to a request that was not opened, so that none can be sealed; it is counted."""
        reason = next((name for kind, name in _REASONS.items() if isinstance(error, kind)), "other")
        self.refused[reason] = self.refused.get(reason, 0) + 1
        return _refuse_in_the_clear(error)

    def open_stream(self) -> Upload:
        """Open a chunked request as it comes; what goes wrong with that is for ``refuse``."""
        return Upload(
            self._gateway.open_stream(),
            self.uploads,
            self._read,
            max_bytes=self._max_request_bytes,
            pad=self._pad,
        )

    async def answer_streamed(self, content: bytes) -> Response:
        """The answer to a chunked request that is whole, its parts sealed as they come."""
        upload = self.open_stream()
        try:
            with upload:
                early = upload.receive(content)
                inner = upload.finish() if early is None else early
        except CloisterError as error:
            return self.refuse(error)
        return upload.seal(await self.ask(inner))

    def _read(self, inner: bhttp.Request, content: bytes | None = None) -> Request | Response:
        now = self._clock()
        try:
            check_date(inner, now, floor=self._gateway.floor)
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
        body = inner.content if content is None else content
        return Request(inner.method.decode("ascii", "replace"), decoded, query, headers, body)


def is_streamed(content_type: bytes) -> bool:
    """Whether a request is in chunked OHTTP."""
    return content_type.partition(b";")[0].strip().lower() == STREAM_TYPE


def _refuse_in_the_clear(error: CloisterError) -> Response:
    if isinstance(error, Replayed):
        return _problem(409, "about:blank", "this sealed request was received before")
    if isinstance(error, (UnknownKeyConfig, BadCiphertext, MalformedInput)):
        # One answer for all of them: a stale caller verifies again, an attacker learns nothing.
        return _problem(400, KEY_PROBLEM, "cannot be opened with a key in use: fetch the keys again")
    return render_failure(error)


def seal_response(sealer: Sealer, status: int, headers: Headers, content: bytes) -> bytes:
    """One answer under its request's seal."""
    return sealer.seal(bhttp.render_response(bhttp.Response(status, _sealable(tuple(headers)), content)))


@lru_cache(maxsize=256)
def _sealable(headers: bhttp.Fields) -> bhttp.Fields:
    return tuple((name, value.strip(b" \t")) for name, value in headers)


def _problem(status: int, kind: str, title: str) -> Response:
    """RFC 9457 problem details."""
    document = {"type": kind, "title": title, "status": status}
    return Response(
        status, [(b"content-type", b"application/problem+json"), _NO_STORE], msgspec.json.encode(document)
    )
