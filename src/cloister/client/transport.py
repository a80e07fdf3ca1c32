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
from cloister.client.channel import Channel, Trust, check_age, check_url, reaching
from cloister.client.renewal import EARLY, Renewal
from cloister.client.sealing import (
    GATEWAY_PATH,
    STREAM_HEADERS,
    WHOLE_HEADERS,
    Attempts,
    RawAnswer,
    StreamedAnswer,
    StreamedRequest,
    answer_headers,
    is_stream,
    seal_whole,
)
from cloister.errors import CloisterError, TransportError, UnknownKeyConfig
from cloister.ohttp import bhttp


class OhttpTransport(httpx.BaseTransport):
    """Sends nothing to a service that has not proved itself, and everything sealed to one that has.

    Verifies on first use, again before the last verification is older than ``max_age_s`` (in the background,
    while requests come), and once more when the service no longer knows its key or has another certificate,
    as after a restart. Errors are this package's own. Safe to share between threads.
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
        self._trust = Trust(reference_values, roots, timeout_s)
        self._max_age_s = check_age(max_age_s)
        self._streaming = streaming
        self._padding = padding
        self._renewing = threading.Lock()
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._users: Counter[Channel] = Counter()
        self._early: Renewal[Channel] = Renewal(lambda: Channel.open(self.url, self._trust), Channel.close)

    def verify(self) -> VerifiedService:
        """Verify now, whatever the age of the last verification.

        Raises:
            VerificationError, PolicyDenied, MalformedInput, TransportError: as ``Channel.open``.
        """
        return self._renew(self._channel).verified.service

    def service(self) -> VerifiedService:
        """What the service proved last, verified again only where that is too old; errors as ``verify``."""
        return self._current().verified.service

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Seal ``request``, send it, open the answer."""
        at_hand = not self._streaming or isinstance(request.stream, httpx.ByteStream)
        content = request.read() if at_hand else None
        attempts, stale = Attempts(request, at_hand=at_hand), None
        while True:
            with ExitStack() as stack:
                channel = stack.enter_context(self._using(instead_of=stale))
                stale = None
                try:
                    if not self._streaming:
                        response = self._send_whole(channel, request, content or b"")
                    else:
                        response = self._send_stream(channel, request, content, stack)
                except TransportError as error:
                    if attempts.after(error):
                        continue
                    response = None
                if response is not None:
                    return response
            try:
                attempts.with_other_keys()
            except UnknownKeyConfig:
                self._forget(channel)
                raise
            stale = channel

    def close(self) -> None:
        """Close every connection that no request is using; the others close with their request."""
        self._early.forget()
        self._replace(None)

    def _send_whole(self, channel: Channel, request: httpx.Request, content: bytes) -> httpx.Response | None:
        """The opened answer; None if the service has other keys than it was verified with."""
        capsule, opener = seal_whole(channel.verified.key_config, request, content, padding=self._padding)
        with (
            reaching(self.url),
            channel.http.stream(
                "POST", GATEWAY_PATH, content=capsule, headers=WHOLE_HEADERS, timeout=self._timeout(request)
            ) as outer,
        ):
            answer = self._gather(outer)
        response = answer.open(opener)
        if response is None:
            return None
        return httpx.Response(
            response.status,
            headers=answer_headers(response),
            stream=httpx.ByteStream(response.content),
            request=request,
        )

    def _send_stream(
        self, channel: Channel, request: httpx.Request, content: bytes | None, stack: ExitStack
    ) -> httpx.Response | None:
        """As ``_send_whole``, for an answer that comes piece by piece; ``stack`` stays open with it."""
        sealed = StreamedRequest(channel.verified.key_config, request, padding=self._padding)
        outer = channel.http.build_request(
            "POST",
            GATEWAY_PATH,
            content=_parts(sealed, request) if content is None else sealed.whole(content),
            headers=STREAM_HEADERS,
            timeout=self._timeout(request),
        )
        with reaching(self.url):
            answer = channel.http.send(outer, stream=True)
            stack.callback(answer.close)
            problem = None if is_stream(answer) else self._gather(answer)
        if problem is not None:
            problem.refuse()
            return None
        body = _AnswerStream(answer, sealed.answer(), self.url)
        body.take_over(stack)
        return httpx.Response(
            body.head.status, headers=answer_headers(body.head), stream=body, request=request
        )

    def _gather(self, outer: httpx.Response) -> RawAnswer:
        answer = RawAnswer(outer, self.url)
        for part in outer.iter_raw():
            answer.take(part)
        return answer

    def _timeout(self, request: httpx.Request) -> httpx.Timeout:
        return httpx.Timeout(**request.extensions.get("timeout", {"timeout": self._trust.timeout_s}))

    def _current(self) -> Channel:
        channel = self._channel
        if channel is None:
            return self._renew(None)
        if not self._is_older(channel, EARLY):
            return channel
        found = self._renew_early(channel)
        return self._renew(found) if self._is_older(found, 1) else found

    def _is_older(self, channel: Channel, part: float) -> bool:
        """Whether it was verified longer ago than this part of the maximum age."""
        return time.monotonic() - channel.verified.verified_at_s >= part * self._max_age_s

    def _renew(self, stale: Channel | None) -> Channel:
        """A new channel in place of ``stale``, or the one that another thread has made meanwhile."""
        with self._renewing:
            if self._channel is not None and self._channel is not stale:
                return self._channel
            # Forgotten before it is replaced: if verification fails, the next request must not use it.
            self._early.forget()
            self._replace(None)
            channel = Channel.open(self.url, self._trust)
            self._replace(channel)
            return channel

    def _forget(self, channel: Channel) -> None:
        """The next request is to verify anew."""
        with self._renewing:
            if self._channel is channel:
                self._replace(None)

    def _renew_early(self, channel: Channel) -> Channel:
        """``channel``, still good, or what a verification in the background has found meanwhile."""
        with self._renewing:
            if self._channel is not channel:
                return self._channel or channel
            try:
                found = self._early.take()
            except TransportError:
                return channel
            except CloisterError:
                if self._is_older(channel, 1):
                    return channel  # to be verified anew: this may be long ago
                self._replace(None)
                raise
            if found is None:
                if not self._is_older(channel, 1):
                    self._early.begin()
                return channel
            renewed = found
            self._replace(renewed)
            return renewed

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
