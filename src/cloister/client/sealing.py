"""From an httpx request to what goes over the wire, and back. No I/O: both transports use it.

Whole messages are RFC 9458's; streamed ones are chunked OHTTP. Method, path, headers and content are inside.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx

from cloister.errors import (
    CloisterError,
    MalformedInput,
    Overloaded,
    Replayed,
    RequestTooLarge,
    TransportError,
    UnknownKeyConfig,
)
from cloister.ohttp import bhttp, chunked
from cloister.ohttp.bhttp_stream import Reader
from cloister.ohttp.capsule import (
    KEY_PROBLEM,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    KeyConfig,
    ResponseOpener,
    seal_request,
)
from cloister.ohttp.chunked_message import MessageSealer
from cloister.ohttp.padding import pad
from cloister.ohttp.replay import render_date

GATEWAY_PATH = "/.well-known/ohttp-gateway"
WHOLE_HEADERS = {"content-type": REQUEST_TYPE, "accept": RESPONSE_TYPE}
STREAM_HEADERS = {"content-type": chunked.REQUEST_TYPE, "accept": chunked.RESPONSE_TYPE}

# RFC 9292, section 3.6: fields about a connection are left out; the authority stands in the control data.
_NOT_SEALED = frozenset(
    (
        b"connection",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"date",
    )
)


def seal_whole(
    config: KeyConfig, request: httpx.Request, content: bytes, *, padding: bool = False
) -> tuple[bytes, ResponseOpener]:
    """The capsule of a whole request, and what opens its answer.

    Args:
        padding: fill it up to a size class (``cloister.ohttp.padding``).
    Raises:
        MalformedInput: a method or header that HTTP does not have.
    """
    message = bhttp.render_request(_to_bhttp(request, content))
    return seal_request(config, pad(message) if padding else message)


class StreamedRequest:
    """A request that is sealed as its content comes: ``begin``, ``content``, ``end``; or ``whole``."""

    def __init__(self, config: KeyConfig, request: httpx.Request, *, padding: bool = False) -> None:
        self._sealer = chunked.RequestSealer(config)
        message = MessageSealer(self._sealer, _to_bhttp(request, b""), pad=padding)
        self.begin, self.content = message.begin, message.content
        self.end, self.whole = message.end, message.whole

    def answer(self) -> StreamedAnswer:
        """What opens the answer."""
        return StreamedAnswer(self._sealer.response_opener())


class StreamedAnswer:
    """An answer that is opened as it comes. One that was cut is an error, never a short answer."""

    def __init__(self, opener: chunked.ResponseOpener) -> None:
        self._opener = opener
        self._reader = Reader(bhttp.Response)

    @property
    def head(self) -> bhttp.Response | None:
        """Status and headers, once they have come."""
        return self._reader.head

    def receive(self, data: bytes) -> bytes:
        """Take bytes in; what they bring of the content.

        Raises:
            BadCiphertext, MalformedInput: forged, or not a response.
        """
        parts = [part for piece in self._opener.receive(data) for part in self._reader.receive_parts(piece)]
        return b"".join(parts)

    def finish(self) -> bytes:
        """The rest of the content, at the end of the stream.

        Raises:
            BadCiphertext: the stream was cut.
        """
        rest = self._reader.receive(self._opener.finish())
        self._reader.finish()
        return rest


def answer_headers(response: bhttp.Response) -> list[tuple[bytes, bytes]]:
    """Headers of an answer without those about the connection."""
    return [(name, value) for name, value in response.headers if name not in _NOT_SEALED]


def open_whole(answer: httpx.Response, opener: ResponseOpener, url: str) -> bhttp.Response | None:
    """The answer inside; None if the service has other keys than it was verified with.

    Raises:
        BadCiphertext, MalformedInput: forged.
        Replayed, RequestTooLarge, Overloaded, TransportError: answered without sealing.
    """
    if answer.status_code == httpx.codes.OK and answer.headers.get("content-type") == RESPONSE_TYPE:
        return bhttp.parse_response(opener.open(answer.content))
    refuse_unsealed(answer, url)
    return None


def is_stream(answer: httpx.Response) -> bool:
    """Whether a chunked answer follows."""
    kind = answer.headers.get("content-type")
    return bool(answer.status_code == httpx.codes.OK and kind == chunked.RESPONSE_TYPE)


def refuse_unsealed(answer: httpx.Response, url: str) -> None:
    """Return if the service only says that it has other keys (RFC 9458, section 5.3).

    Nothing in such an answer is authentic.

    Raises:
        Replayed, RequestTooLarge, Overloaded, TransportError: any other answer.
    """
    if not _is_key_problem(answer):
        raise _unsealed(answer, url)


def never_knows_its_key() -> UnknownKeyConfig:
    """The error of a service that was just verified and still does not know its key."""
    return UnknownKeyConfig(
        "the service does not know the key that it was just verified with",
        hint="something between may answer in its place, or several servers share one address",
    )


def is_other_certificate(error: TransportError) -> bool:
    """Whether the handshake failed because the service has another certificate, as after a restart."""
    cause: BaseException | None = error
    while cause is not None:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _to_bhttp(request: httpx.Request, content: bytes) -> bhttp.Request:
    try:
        # The date is ours, so that the gateway can refuse a replay however late it comes.
        headers = [(b"date", render_date(datetime.now(UTC)))]
        headers += [
            (name.lower(), value) for name, value in request.headers.raw if name.lower() not in _NOT_SEALED
        ]
        return bhttp.Request(
            method=request.method.encode("ascii"),
            scheme=b"https",
            authority=request.url.netloc,
            path=request.url.raw_path,
            headers=tuple(headers),
            content=content,
        )
    except UnicodeEncodeError as error:
        raise MalformedInput("request method: not ASCII") from error


def _is_key_problem(answer: httpx.Response) -> bool:
    """Whether the gateway says, outside of any sealing, that it has another key (RFC 9458, section 5.3)."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return False
    try:
        problem = json.loads(answer.content)
    except ValueError:
        return False
    return isinstance(problem, dict) and problem.get("type") == KEY_PROBLEM


def _unsealed(answer: httpx.Response, url: str) -> CloisterError:
    status = answer.status_code
    if status == httpx.codes.CONFLICT:
        return Replayed("the gateway has seen this sealed request before")
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return RequestTooLarge("the gateway refuses a request of this size")
    if status in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
        return Overloaded(
            f"the gateway is not accepting requests: HTTP status {status}", hint="try again later"
        )
    return TransportError(
        f"{url} answered without sealing: HTTP status {status}",
        hint="is there a proxy that changes requests?",
    )
