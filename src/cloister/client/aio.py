"""The sealing transport for an event loop: ``cloister.client.transport``, awaited.

::

    httpx.AsyncClient(transport=AsyncOhttpTransport(url, reference_values=values), base_url=url)

Evidence is judged in a thread. Any loop that httpx knows will do (asyncio, trio).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import httpx
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import VerifiedService
from cloister.client.channel import (
    AsyncChannel,
    Trust,
    Verified,
    check_age,
    check_url,
    reaching,
    verify_service,
)
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


class AsyncOhttpTransport(httpx.AsyncBaseTransport):
    """As ``OhttpTransport``, for one event loop."""

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
        self.url = check_url(url)
        self._trust = Trust(reference_values, roots, timeout_s)
        self._max_age_s = check_age(max_age_s)
        self._streaming = streaming
        self._padding = padding
        self._renewing = anyio.Lock()
        self._channel: AsyncChannel | None = None
        self._users: Counter[AsyncChannel] = Counter()
        self._early: Renewal[Verified] = Renewal(
            lambda: verify_service(
                self.url, reference_values=reference_values, roots=roots, timeout_s=timeout_s
            ),
            lambda _: None,
        )

    async def verify(self) -> VerifiedService:
        """Verify now, whatever the age of the last verification.

        Raises:
            VerificationError, PolicyDenied, MalformedInput, TransportError: as ``AsyncChannel.open``.
        """
        return (await self._renew(self._channel)).verified.service

    async def service(self) -> VerifiedService:
        """What the service proved last, verified again only where that is too old; errors as ``verify``."""
        return (await self._current()).verified.service

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Seal ``request``, send it, open the answer."""
        at_hand = not self._streaming or isinstance(request.stream, httpx.ByteStream)
        content = await request.aread() if at_hand else None
        attempts, stale = Attempts(request, at_hand=at_hand), None
        while True:
            async with AsyncExitStack() as stack:
                channel = await stack.enter_async_context(self._using(instead_of=stale))
                stale = None
                try:
                    if not self._streaming:
                        response = await self._send_whole(channel, request, content or b"")
                    else:
                        response = await self._send_stream(channel, request, content, stack)
                except TransportError as error:
                    if attempts.after(error):
                        continue
                    response = None
                if response is not None:
                    return response
            try:
                attempts.with_other_keys()
            except UnknownKeyConfig:
                await self._forget(channel)
                raise
            stale = channel

    async def aclose(self) -> None:
        """Close every connection that no request is using; the others close with their request."""
        self._early.forget()
        await self._replace(None)

    async def _send_whole(
        self, channel: AsyncChannel, request: httpx.Request, content: bytes
    ) -> httpx.Response | None:
        """The opened answer; None if the service has other keys than it was verified with."""
        capsule, opener = seal_whole(channel.verified.key_config, request, content, padding=self._padding)
        with reaching(self.url):
            async with channel.http.stream(
                "POST", GATEWAY_PATH, content=capsule, headers=WHOLE_HEADERS, timeout=self._timeout(request)
            ) as outer:
                answer = await self._gather(outer)
        response = answer.open(opener)
        if response is None:
            return None
        return httpx.Response(
            response.status,
            headers=answer_headers(response),
            stream=httpx.ByteStream(response.content),
            request=request,
        )

    async def _send_stream(
        self, channel: AsyncChannel, request: httpx.Request, content: bytes | None, stack: AsyncExitStack
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
            answer = await channel.http.send(outer, stream=True)
            stack.push_async_callback(answer.aclose)
            problem = None if is_stream(answer) else await self._gather(answer)
        if problem is not None:
            problem.refuse()
            return None
        body = await _AnswerStream.begin(answer, sealed.answer(), self.url)
        body.take_over(stack)
        return httpx.Response(
            body.head.status, headers=answer_headers(body.head), stream=body, request=request
        )

    async def _gather(self, outer: httpx.Response) -> RawAnswer:
        answer = RawAnswer(outer, self.url)
        async for part in outer.aiter_raw():
            answer.take(part)
        return answer

    def _timeout(self, request: httpx.Request) -> httpx.Timeout:
        return httpx.Timeout(**request.extensions.get("timeout", {"timeout": self._trust.timeout_s}))

    async def _current(self) -> AsyncChannel:
        channel = self._channel
        if channel is None:
            return await self._renew(None)
        if not self._is_older(channel, EARLY):
            return channel
        found = await self._renew_early(channel)
        return await self._renew(found) if self._is_older(found, 1) else found

    def _is_older(self, channel: AsyncChannel, part: float) -> bool:
        """Whether it was verified longer ago than this part of the maximum age."""
        return time.monotonic() - channel.verified.verified_at_s >= part * self._max_age_s

    async def _renew(self, stale: AsyncChannel | None) -> AsyncChannel:
        """A new channel in place of ``stale``, or the one that another task has made meanwhile."""
        async with self._renewing:
            if self._channel is not None and self._channel is not stale:
                return self._channel
            # Forgotten before it is replaced: if verification fails, the next request must not use it.
            self._early.forget()
            await self._replace(None)
            channel = await AsyncChannel.open(self.url, self._trust)
            await self._replace(channel)
            return channel

    async def _forget(self, channel: AsyncChannel) -> None:
        """The next request is to verify anew."""
        async with self._renewing:
            if self._channel is channel:
                await self._replace(None)

    async def _renew_early(self, channel: AsyncChannel) -> AsyncChannel:
        """``channel``, still good, or what a verification in the background has found meanwhile."""
        async with self._renewing:
            if self._channel is not channel:
                return self._channel or channel
            try:
                found = self._early.take()
            except TransportError:
                return channel
            except CloisterError:
                if self._is_older(channel, 1):
                    return channel  # to be verified anew: this may be long ago
                await self._replace(None)
                raise
            if found is None:
                if not self._is_older(channel, 1):
                    self._early.begin()
                return channel
            renewed = found.connect_async(self._trust.timeout_s)
            await self._replace(renewed)
            return renewed

    async def _replace(self, channel: AsyncChannel | None) -> None:
        former, self._channel = self._channel, channel
        if former is not None and not self._users[former]:
            await former.close()

    @asynccontextmanager
    async def _using(self, *, instead_of: AsyncChannel | None = None) -> AsyncIterator[AsyncChannel]:
        """The current channel, kept open while in use."""
        channel = await (self._current() if instead_of is None else self._renew(instead_of))
        self._users[channel] += 1
        try:
            yield channel
        finally:
            self._users[channel] -= 1
            if not self._users[channel]:
                del self._users[channel]
                if channel is not self._channel:
                    await channel.close()


class _AnswerStream(httpx.AsyncByteStream):
    """The content of a streamed answer; keeps its channel open until it is closed."""

    def __init__(self, opener: StreamedAnswer, url: str) -> None:
        self._opener, self._url = opener, url
        self._stack = AsyncExitStack()
        self.head = bhttp.Response(200)

    @classmethod
    async def begin(cls, answer: httpx.Response, opener: StreamedAnswer, url: str) -> _AnswerStream:
        """Read up to the end of the head."""
        stream = cls(opener, url)
        stream._pieces = stream._read(answer)
        stream._first = await anext(stream._pieces)
        assert opener.head is not None
        stream.head = opener.head
        return stream

    def take_over(self, stack: AsyncExitStack) -> None:
        """Keep what ``stack`` holds until this is closed."""
        self._stack = stack.pop_all()

    _pieces: AsyncIterator[bytes]
    _first: bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first:
            yield self._first
        async for piece in self._pieces:
            yield piece

    async def _read(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        begun = False
        with reaching(self._url):
            async for data in answer.aiter_raw():
                content = self._opener.receive(data)
                if content or (not begun and self._opener.head is not None):
                    begun = True
                    yield content
        content = self._opener.finish()
        if content or not begun:
            yield content

    async def aclose(self) -> None:
        await self._stack.aclose()


async def _parts(sealed: StreamedRequest, request: httpx.Request) -> AsyncIterator[bytes]:
    assert isinstance(request.stream, httpx.AsyncByteStream)
    yield sealed.begin()
    async for data in request.stream:
        if part := sealed.content(data):
            yield part
    yield sealed.end()
