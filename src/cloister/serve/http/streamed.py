"""Chunked OHTTP at the gateway: a request that is opened as it comes, an answer that is sealed as it is made.

A model takes whole requests, so the content is gathered here. What that may take is bounded three ways: by
the length of one request, by the number of requests that are half here, and by what these hold together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from cloister.errors import CloisterError, MalformedInput, Overloaded, RequestTooLarge
from cloister.ohttp import bhttp, chunked
from cloister.ohttp.bhttp_stream import Reader
from cloister.ohttp.chunked_message import MessageSealer
from cloister.ohttp.gateway import StreamedRequest
from cloister.serve.frames import Headers
from cloister.serve.http.errors import render_failure
from cloister.serve.http.messages import Request, Response

REQUEST_TYPE = chunked.REQUEST_TYPE.encode()
STREAM_HEADERS: Headers = [
    (b"content-type", chunked.RESPONSE_TYPE.encode()),
    (b"cache-control", b"no-store"),
]
MAX_UPLOADS = 1024
"""Requests that are half here, of all connections; further ones are told to come again."""
MAX_HELD_BYTES = 256 << 20
"""What these may hold together."""
LARGE_PIECE_BYTES = 1024
"""Pieces of at least so much each are read one by one; smaller ones are joined first."""


class Uploads:
    """What all requests that are half here share."""

    def __init__(self, *, max_count: int = MAX_UPLOADS, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_count, self._max_bytes = max_count, max_bytes
        self.count = 0
        self.held_bytes = 0

    def enter(self) -> None:
        """One more.

        Raises:
            Overloaded: too many.
        """
        if self.count >= self._max_count:
            raise Overloaded(f"{self._max_count} sealed requests are half here already")
        self.count += 1

    def hold(self, size: int) -> None:
        """Keep so many bytes more.

        Raises:
            Overloaded: too many.
        """
        if self.held_bytes + size > self._max_bytes:
            raise Overloaded("sealed requests that are half here hold too much memory")
        self.held_bytes += size

    def leave(self, held_bytes: int) -> None:
        """One less."""
        self.count -= 1
        self.held_bytes -= held_bytes


class Upload:
    """One chunked request on its way in; to be used as a context, which ends when it is whole or refused.

    Args:
        read: makes a request of the message inside, or the answer to one that is none.
        max_bytes: longest content.
    """

    def __init__(
        self,
        stream: StreamedRequest,
        uploads: Uploads,
        read: Callable[[bhttp.Request, bytes], Request | Response],
        *,
        max_bytes: int,
        pad: bool,
    ) -> None:
        self._stream, self._uploads, self._read = stream, uploads, read
        self._max_bytes, self._pad = max_bytes, pad
        self._reader: Reader[bhttp.Request] = Reader(bhttp.Request)
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._content: list[bytes] = []
        self._held = 0

    def __enter__(self) -> Self:
        self._uploads.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._uploads.leave(self._held)

    def receive(self, data: bytes) -> Response | None:
        """Take bytes in; an answer, to be sealed, if what is inside can be none already.

        Raises:
            UnknownKeyConfig, Replayed, BadCiphertext, Overloaded: as ``Gateway.open``.
        """
        pieces = [piece for piece in self._stream.receive(data) if piece]
        self._pieces += pieces
        self._pieces_bytes += sum(map(len, pieces))
        # Read in larger parts: a head that comes byte by byte would be parsed as often.
        return self._take() if self._pieces_bytes >= chunked.PIECE_BYTES else None

    def finish(self) -> Request | Response:
        """The request, now that it is whole; the answer if it is none.

        Raises:
            BadCiphertext: it was cut.
            Replayed, Overloaded: as ``receive``.
        """
        last = self._stream.finish()
        self._pieces.append(last)
        self._pieces_bytes += len(last)
        refusal = self._take()
        if refusal is not None:
            return refusal
        try:
            self._reader.finish()
        except MalformedInput as error:
            return render_failure(error)
        assert self._reader.head is not None
        content = b"".join(self._content)
        self._content.clear()
        return self._read(self._reader.head, content or self._reader.head.content)

    def seal(self, response: Response) -> Response:
        """The sealed answer: whole, or in parts as they come."""
        sealer = self._stream.response_sealer()
        if isinstance(response.content, bytes):
            sealed = _message(sealer, response, pad=self._pad).whole(response.content)
            return Response(200, list(STREAM_HEADERS), sealed)
        return Response(200, list(STREAM_HEADERS), seal_parts(sealer, response, pad=self._pad))

    def _take(self) -> Response | None:
        pieces, size = self._pieces, self._pieces_bytes
        if size < LARGE_PIECE_BYTES * len(pieces):
            pieces = [b"".join(pieces)]
        self._pieces, self._pieces_bytes = [], 0
        try:
            for piece in pieces:
                self._keep(self._reader.receive_parts(piece))
        except CloisterError as error:
            return render_failure(error)
        return None

    def _keep(self, parts: list[bytes]) -> None:
        size = sum(map(len, parts))
        if self._held + size > self._max_bytes:
            raise RequestTooLarge(f"request body is over {self._max_bytes} bytes")
        self._uploads.hold(size)
        self._held += size
        self._content += parts


def _message(sealer: chunked.ResponseSealer, response: Response, *, pad: bool) -> MessageSealer:
    headers = tuple((name, value.strip(b" \t")) for name, value in response.headers)
    return MessageSealer(sealer, bhttp.Response(response.status, headers), pad=pad)


async def seal_parts(
    sealer: chunked.ResponseSealer, response: Response, *, pad: bool
) -> AsyncIterator[bytes]:
    """An answer whose content comes in parts. One that breaks off has no final chunk.

    Raises:
        CloisterError: it broke off.
    """
    assert not isinstance(response.content, bytes)
    message = _message(sealer, response, pad=pad)
    yield message.begin()
    async for part in response.content:
        if part:
            yield message.content(part)
    yield message.end()
