"""The sealing transport for an event loop: ``cloister.client.transport``, awaited.

::

    httpx.AsyncClient(transport=AsyncOhttpTransport(url, reference_values=values), base_url=url)

Verification itself runs in a thread. Any loop that httpx knows will do (asyncio, trio).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import anyio.to_thread
import httpx
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import VerifiedService
from cloister.client.channel import AsyncChannel, check_url, reaching, verify_service
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
        self._reference_values = reference_values
        self._roots = roots
        self._max_age_s = max_age_s
        self._timeout_s = timeout_s
        self._streaming = streaming
        self._padding = padding
        self._renewing = anyio.Lock()
        self._channel: AsyncChannel | None = None
        self._users: Counter[AsyncChannel] = Counter()

    async def verify(self) -> VerifiedService:
        """Verify now, whatever the age of the last verification.

        Raises:
            VerificationError, PolicyDenied, MalformedInput, TransportError: as ``verify_service``.
        """
        return (await self._renew(self._channel)).verified.service

    async def service(self) -> VerifiedService:
        """What the service proved last, verified again only where that is too old; errors as ``verify``."""
        return (await self._current()).verified.service

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Seal ``request``, send it, open the answer."""
        return await (self._handle_stream(request) if self._streaming else self._handle_whole(request))

    async def aclose(self) -> None:
        """Close every connection that no request is using; the others close with their request."""
        await self._replace(None)

    async def _handle_whole(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        async with self._using() as channel:
            response = await self._exchange(channel, request, content)
        if response is None:
            async with self._using(instead_of=channel) as channel:
                response = await self._exchange(channel, request, content)
        if response is None:
            raise never_knows_its_key()
        return httpx.Response(
            response.status, headers=answer_headers(response), content=response.content, request=request
        )

    async def _exchange(
        self, channel: AsyncChannel, request: httpx.Request, content: bytes
    ) -> bhttp.Response | None:
        capsule, opener = seal_whole(channel.verified.key_config, request, content, padding=self._padding)
        try:
            with reaching(self.url):
                answer = await channel.http.post(
                    GATEWAY_PATH, content=capsule, headers=WHOLE_HEADERS, timeout=self._timeout(request)
                )
        except TransportError as error:
            if is_other_certificate(error):
                return None
            raise
        return open_whole(answer, opener, self.url)

    async def _handle_stream(self, request: httpx.Request) -> httpx.Response:
        whole = await request.aread() if isinstance(request.stream, httpx.ByteStream) else None
        stale: AsyncChannel | None = None
        for _ in range(2):
            async with AsyncExitStack() as stack:
                channel = await stack.enter_async_context(self._using(instead_of=stale))
                body = await self._begin(channel, request, whole, stack)
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

    async def _begin(
        self, channel: AsyncChannel, request: httpx.Request, whole: bytes | None, stack: AsyncExitStack
    ) -> _AnswerStream | None:
        sealed = StreamedRequest(channel.verified.key_config, request, padding=self._padding)
        content = _parts(sealed, request) if whole is None else sealed.whole(whole)
        outer = channel.http.build_request(
            "POST", GATEWAY_PATH, content=content, headers=STREAM_HEADERS, timeout=self._timeout(request)
        )
        try:
            with reaching(self.url):
                answer = await channel.http.send(outer, stream=True)
                stack.push_async_callback(answer.aclose)
                if not is_stream(answer):
                    await answer.aread()
        except TransportError as error:
            if is_other_certificate(error):
                return None
            raise
        if not is_stream(answer):
            refuse_unsealed(answer, self.url)
            return None
        body = await _AnswerStream.begin(answer, sealed.answer(), self.url)
        body.take_over(stack)
        return body

    def _timeout(self, request: httpx.Request) -> httpx.Timeout:
        return httpx.Timeout(**request.extensions.get("timeout", {"timeout": self._timeout_s}))

    async def _current(self) -> AsyncChannel:
        channel = self._channel
        if channel is not None and time.monotonic() - channel.verified.verified_at_s < self._max_age_s:
            return channel
        return await self._renew(channel)

    async def _renew(self, stale: AsyncChannel | None) -> AsyncChannel:
        async with self._renewing:
            if self._channel is not None and self._channel is not stale:
                return self._channel
            # Forgotten before it is replaced: if verification fails, the next request must not use it.
            await self._replace(None)
            verified = await anyio.to_thread.run_sync(
                partial(
                    verify_service,
                    self.url,
                    reference_values=self._reference_values,
                    roots=self._roots,
                    timeout_s=self._timeout_s,
                )
            )
            channel = verified.connect_async(self._timeout_s)
            await self._replace(channel)
            return channel

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
