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
MAX_ANSWER_BYTES = 256 << 20
"""Longest whole answer; streamed ones have no limit, because they are not gathered."""
MAX_PROBLEM_BYTES = 1 << 16
"""Longest answer outside of a seal."""
REPEATABLE = "cloister.repeatable"
"""Extension of an httpx request that may be answered twice, although its method does not say so."""
_REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))  # RFC 9110, section 9.2.2
_BROKEN_OFF = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)

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


class RawAnswer:
    """What comes back outside of any seal, gathered up to a limit and never decompressed."""

    def __init__(self, answer: httpx.Response, url: str) -> None:
        self._answer, self._url = answer, url
        self._content = bytearray()
        sealed = answer.status_code == httpx.codes.OK and answer.headers.get("content-type") == RESPONSE_TYPE
        self._sealed, self._limit = sealed, MAX_ANSWER_BYTES if sealed else MAX_PROBLEM_BYTES

    def take(self, part: bytes) -> None:
        """More of it.

        Raises:
            TransportError: too much.
        """
        self._content += part
        if len(self._content) > self._limit:
            raise TransportError(
                f"the answer of {self._url} is over {self._limit} bytes",
                hint="read it as a stream: see transport()",
            )

    def open(self, opener: ResponseOpener) -> bhttp.Response | None:
        """The answer inside; None if the service has other keys than it was verified with.

        Raises:
            BadCiphertext, MalformedInput: forged.
            Replayed, RequestTooLarge, Overloaded, TransportError: answered without sealing.
        """
        if self._sealed:
            return bhttp.parse_response(opener.open(bytes(self._content)))
        self.refuse()
        return None

    def refuse(self) -> None:
        """Return if the service only says that it has other keys (RFC 9458, section 5.3).

        Nothing in such an answer is authentic.

        Raises:
            Replayed, RequestTooLarge, Overloaded, TransportError: any other answer.
        """
        if not _is_key_problem(self._answer, bytes(self._content)):
            raise _unsealed(self._answer, self._url)


def is_stream(answer: httpx.Response) -> bool:
    """Whether a chunked answer follows."""
    kind = answer.headers.get("content-type")
    return bool(answer.status_code == httpx.codes.OK and kind == chunked.RESPONSE_TYPE)


def is_other_certificate(error: TransportError) -> bool:
    """Whether the handshake failed because the service has another certificate, as after a restart."""
    cause: BaseException | None = error
    while cause is not None:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class Attempts:
    """What one request may still try: other keys of the service once, a connection that broke off once.

    Args:
        at_hand: whether its content can be sent again.
    """

    def __init__(self, request: httpx.Request, *, at_hand: bool) -> None:
        self._at_hand = at_hand
        self._other_keys = True
        self._broken = at_hand and (request.method in _REPEATABLE or bool(request.extensions.get(REPEATABLE)))

    def after(self, error: TransportError) -> bool:
        """Try again? True says yes on the same terms, False that the service has other keys.

        Raises:
            TransportError: ``error`` itself, where neither helps.
        """
        # The handshake failed, so that nothing was sent. After a restart the service has another key.
        if is_other_certificate(error):
            return False
        if self._broken and isinstance(error.__cause__, _BROKEN_OFF):
            self._broken = False
            return True
        raise error

    def with_other_keys(self) -> None:
        """The service has other keys than it was verified with.

        Raises:
            UnknownKeyConfig: not for the first time, or the request cannot be sent twice.
        """
        if not self._other_keys:
            raise UnknownKeyConfig(
                "the service does not know the key that it was just verified with",
                hint="something between may answer in its place, or several servers share one address",
            )
        if not self._at_hand:
            raise UnknownKeyConfig(
                "the service has a new key, and a streamed request cannot be sent twice", hint="send it again"
            )
        self._other_keys = False


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


def _is_key_problem(answer: httpx.Response, content: bytes) -> bool:
    """Whether the gateway says, outside of any sealing, that it has another key (RFC 9458, section 5.3)."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return False
    try:
        problem = json.loads(content)
    except (ValueError, RecursionError):
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
