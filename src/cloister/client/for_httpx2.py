"""The sealing transports for httpx2, httpx's successor, which newer SDKs are built on (``openai`` from 3 on).

httpx2 has the same interfaces under other types; messages are handed over, bodies are not copied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx

from cloister.client.aio import AsyncOhttpTransport
from cloister.client.transport import OhttpTransport
from cloister.errors import MissingDependencyError

try:
    import httpx2
except ImportError as error:
    raise MissingDependencyError(
        "httpx2 is not installed",
        hint="pip install 'cloister[httpx2]', or use cloister.transport() with httpx",
    ) from error


class Httpx2Transport(httpx2.BaseTransport):
    """``OhttpTransport`` below an ``httpx2.Client``."""

    def __init__(self, inner: OhttpTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """As ``OhttpTransport.handle_request``."""
        if isinstance(request.stream, httpx2.ByteStream):
            content: bytes | Iterator[bytes] = request.read()
        else:
            assert isinstance(request.stream, httpx2.SyncByteStream)
            content = iter(request.stream)
        response = self._inner.handle_request(_handed_down(request, content))
        assert isinstance(response.stream, httpx.SyncByteStream)
        return httpx2.Response(
            response.status_code,
            headers=response.headers.raw,
            stream=_Stream(response.stream),
            request=request,
        )

    def close(self) -> None:
        """As ``OhttpTransport.close``."""
        self._inner.close()


class AsyncHttpx2Transport(httpx2.AsyncBaseTransport):
    """``AsyncOhttpTransport`` below an ``httpx2.AsyncClient``."""

    def __init__(self, inner: AsyncOhttpTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """As ``AsyncOhttpTransport.handle_async_request``."""
        if isinstance(request.stream, httpx2.ByteStream):
            content: bytes | AsyncIterator[bytes] = await request.aread()
        else:
            assert isinstance(request.stream, httpx2.AsyncByteStream)
            content = aiter(request.stream)
        response = await self._inner.handle_async_request(_handed_down(request, content))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return httpx2.Response(
            response.status_code,
            headers=response.headers.raw,
            stream=_AsyncStream(response.stream),
            request=request,
        )

    async def aclose(self) -> None:
        """As ``AsyncOhttpTransport.aclose``."""
        await self._inner.aclose()


class _Stream(httpx2.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner

    def close(self) -> None:
        self._inner.close()


class _AsyncStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


def _handed_down(
    request: httpx2.Request, content: bytes | Iterator[bytes] | AsyncIterator[bytes]
) -> httpx.Request:
    url = httpx.URL(str(request.url))
    return httpx.Request(
        request.method,
        url,
        headers=request.headers.raw,
        content=content,
        extensions=dict(request.extensions),
    )
