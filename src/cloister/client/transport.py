"""An httpx transport that verifies a service, then seals every request to the key it proved.

Put it under any httpx client and that client speaks sealed::

    httpx.Client(transport=OhttpTransport(url, reference_values=values), base_url=url)

Method, path, headers and content travel inside the capsule (RFC 9458); outside there is one POST to the
gateway. Whole answers are the default; with ``streaming`` answers come piece by piece (chunked OHTTP). Either
way a cut or changed one is an error, never a short answer. For an event loop: ``cloister.client.aio``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import httpx
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import VerifiedService
from cloister.client.channel import Channel, check_url, reaching, verify_service
from cloister.client.sealing import (
    GATEWAY_PATH,
    STREAM_HEADERS,
    WHOLE_HEADERS,
    StreamedAnswer,
    StreamedRequest,
    answer_headers,
    is_other_certificate,
    is_stream,
    never_knows_its_key,
    open_whole,
    refuse_unsealed,
    seal_whole,
)
from cloister.errors import TransportError, UnknownKeyConfig
from cloister.ohttp import bhttp


class OhttpTransport(httpx.BaseTransport):
    """Sends nothing to a service that has not proved itself, and everything sealed to one that has.

    Verifies on first use, again when the last verification is older than ``max_age_s``, and once more when
    the service no longer knows its key or has another certificate, as after a restart. Errors are this
    package's own. Safe to share between threads.
    """

    def __init__(
        self,
        url: str,
        *,
        reference_values: ReferenceValues,
        roots: Sequence[x509.Certificate] | None = None,
        max_age_s: float = 300.0,
        timeout_s: float = 60.0,
        streaming: bool = False,
        padding: bool = False,
    ) -> None:
        """Set up; no connection is made yet.

        Args:
            streaming: hand answers on as they come, for SDKs that read streams; each message costs a little
                more.
            padding: fill requests up to size classes, so that their length says less.
        """
        self.url = check_url(url)
        self._reference_values = reference_values
        self._roots = roots
        self._max_age_s = max_age_s
        self._timeout_s = timeout_s
        self._streaming = streaming
        self._padding = padding
        self._renewing = threading.Lock()
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._users: Counter[Channel] = Counter()

    def verify(self) -> VerifiedService:
        """Verify now, whatever the age of the last verification.

        Raises:
            VerificationError, PolicyDenied, MalformedInput, TransportError: as ``verify_service``.
        """
        return self._renew(self._channel).verified.service

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Seal ``request``, send it, open the answer."""
        return self._handle_stream(request) if self._streaming else self._handle_whole(request)

    def close(self) -> None:
        """Close every connection that no request is using; the others close with their request."""
        self._replace(None)

    def _handle_whole(self, request: httpx.Request) -> httpx.Response:
        content = request.read()
        with self._using() as channel:
            response = self._exchange(channel, request, content)
        if response is None:
            with self._using(instead_of=channel) as channel:
                response = self._exchange(channel, request, content)
        if response is None:
            raise never_knows_its_key()
        return httpx.Response(
            response.status, headers=answer_headers(response), content=response.content, request=request
        )

    def _exchange(self, channel: Channel, request: httpx.Request, content: bytes) -> bhttp.Response | None:
        """The opened answer; None if the service has other keys than it was verified with."""
        capsule, opener = seal_whole(channel.verified.key_config, request, content, padding=self._padding)
        try:
            with reaching(self.url):
                answer = channel.http.post(
                    GATEWAY_PATH, content=capsule, headers=WHOLE_HEADERS, timeout=self._timeout(request)
                )
        except TransportError as error:
            # The handshake failed, so that nothing was sent. After a restart the service has another key.
            if is_other_certificate(error):
                return None
            raise
        return open_whole(answer, opener, self.url)

    def _handle_stream(self, request: httpx.Request) -> httpx.Response:
        whole = request.read() if isinstance(request.stream, httpx.ByteStream) else None
        stale: Channel | None = None
        for _ in range(2):
            with ExitStack() as stack:
                channel = stack.enter_context(self._using(instead_of=stale))
                body = self._begin(channel, request, whole, stack)
                if body is not None:
                    return httpx.Response(
                        body.head.status, headers=answer_headers(body.head), stream=body, request=request
                    )
            stale = channel
            if whole is None:
                raise UnknownKeyConfig(
                    "the service has a new key, and a streamed request cannot be sent twice",
                    hint="send it again",
                )
        raise never_knows_its_key()

    def _begin(
        self, channel: Channel, request: httpx.Request, whole: bytes | None, stack: ExitStack
    ) -> _AnswerStream | None:
        sealed = StreamedRequest(channel.verified.key_config, request, padding=self._padding)
        content = _parts(sealed, request) if whole is None else sealed.whole(whole)
        outer = channel.http.build_request(
            "POST", GATEWAY_PATH, content=content, headers=STREAM_HEADERS, timeout=self._timeout(request)
        )
        try:
            with reaching(self.url):
                answer = channel.http.send(outer, stream=True)
                stack.callback(answer.close)
                if not is_stream(answer):
                    answer.read()
        except TransportError as error:
            if is_other_certificate(error):
                return None
            raise
        if not is_stream(answer):
            refuse_unsealed(answer, self.url)
            return None
        body = _AnswerStream(answer, sealed.answer(), self.url)
        body.take_over(stack)
        return body

    def _timeout(self, request: httpx.Request) -> httpx.Timeout:
        return httpx.Timeout(**request.extensions.get("timeout", {"timeout": self._timeout_s}))

    def _current(self) -> Channel:
        channel = self._channel
        if channel is not None and time.monotonic() - channel.verified.verified_at_s < self._max_age_s:
            return channel
        return self._renew(channel)

    def _renew(self, stale: Channel | None) -> Channel:
        """A new channel in place of ``stale``, or the one that another thread has made meanwhile."""
        with self._renewing:
            if self._channel is not None and self._channel is not stale:
                return self._channel
            # Forgotten before it is replaced: if verification fails, the next request must not use it.
            self._replace(None)
            channel = verify_service(
                self.url,
                reference_values=self._reference_values,
                roots=self._roots,
                timeout_s=self._timeout_s,
            ).connect(self._timeout_s)
            self._replace(channel)
            return channel

    def _replace(self, channel: Channel | None) -> None:
        with self._lock:
            former, self._channel = self._channel, channel
            idle = former is not None and not self._users[former]
        if former is not None and idle:
            former.close()

    @contextmanager
    def _using(self, *, instead_of: Channel | None = None) -> Iterator[Channel]:
        """The current channel, kept open while in use."""
        channel = self._acquire(instead_of)
        try:
            yield channel
        finally:
            with self._lock:
                self._users[channel] -= 1
                idle = not self._users[channel]
                if idle:
                    del self._users[channel]
                close = idle and channel is not self._channel
            if close:
                channel.close()

    def _acquire(self, stale: Channel | None) -> Channel:
        while True:
            channel = self._current() if stale is None else self._renew(stale)
            with self._lock:
                if channel is self._channel:
                    self._users[channel] += 1
                    return channel
            stale = None  # another thread replaced it in between


class _AnswerStream(httpx.SyncByteStream):
    """The content of a streamed answer; keeps its channel open until it is closed."""

    def __init__(self, answer: httpx.Response, opener: StreamedAnswer, url: str) -> None:
        self._opener, self._url = opener, url
        self._stack = ExitStack()
        self._pieces = self._read(answer)
        self._first = next(self._pieces)
        assert opener.head is not None
        self.head: bhttp.Response = opener.head

    def take_over(self, stack: ExitStack) -> None:
        """Keep what ``stack`` holds until this is closed."""
        self._stack = stack.pop_all()

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        yield from self._pieces

    def _read(self, answer: httpx.Response) -> Iterator[bytes]:
        """The content; the first piece, empty or not, comes when the head is known."""
        begun = False
        with reaching(self._url):
            for data in answer.iter_raw():
                content = self._opener.receive(data)
                if content or (not begun and self._opener.head is not None):
                    begun = True
                    yield content
        content = self._opener.finish()
        if content or not begun:
            yield content

    def close(self) -> None:
        self._stack.close()


def _parts(sealed: StreamedRequest, request: httpx.Request) -> Iterator[bytes]:
    assert isinstance(request.stream, httpx.SyncByteStream)
    yield sealed.begin()
    for data in request.stream:
        if part := sealed.content(data):
            yield part
    yield sealed.end()
