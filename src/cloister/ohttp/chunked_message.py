"""Binary HTTP messages into chunks: what the sending side of chunked OHTTP does, caller and gateway alike.

A chunk holds at most ``PIECE_BYTES`` of the message, which every receiver takes (draft-08, section 3).
Content is encrypted from where it lies; only the beginning of each part is copied, behind its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cloister.ohttp.bhttp import Request, Response
from cloister.ohttp.bhttp_stream import Writer
from cloister.ohttp.chunked import PIECE_BYTES
from cloister.ohttp.padding import padded_bytes
from cloister.ohttp.varint import render_varint


class ChunkSealer(Protocol):
    """``RequestSealer`` or ``ResponseSealer``."""

    def begin(self) -> bytes:
        """The header."""

    def seal_parts(self, piece: bytes | memoryview, *, final: bool = False) -> tuple[bytes, bytes]:
        """The next chunk."""


class MessageSealer:
    """One message, whole or as its content comes: ``whole``, or ``begin``, ``content`` often, ``end``.

    Args:
        pad: fill it up to a size class (``cloister.ohttp.padding``).
    Raises:
        MalformedInput: a part that a reader would refuse, such as a line break in a header.
    """

    def __init__(self, sealer: ChunkSealer, message: Request | Response, *, pad: bool = False) -> None:
        self._sealer, self._pad = sealer, pad
        self._head = Writer.head(message)
        self._bytes = len(self._head)

    def begin(self) -> bytes:
        """Sent first: everything but the content."""
        return b"".join((self._sealer.begin(), *self._seal(self._head)))

    def content(self, data: bytes) -> bytes:
        """More of the content; nothing for nothing."""
        return b"".join(self._seal(self._length(data), data)) if data else b""

    def end(self) -> bytes:
        """Sent last."""
        return b"".join(self._seal(self._end(), final=True))

    def whole(self, content: bytes) -> bytes:
        """All of it at once; a small message is one chunk."""
        prefix = self._head + self._length(content) if content else self._head
        end = self._end()
        if len(prefix) + len(content) + len(end) <= PIECE_BYTES:
            return b"".join((self._sealer.begin(), *self._seal(prefix + content + end, final=True)))
        return b"".join((self._sealer.begin(), *self._seal(prefix, content), *self._seal(end, final=True)))

    def _length(self, data: bytes) -> bytes:
        length = render_varint(len(data))
        self._bytes += len(length) + len(data)
        return length

    def _end(self) -> bytes:
        length = self._bytes + len(Writer.end())
        return Writer.end(padding=padded_bytes(length) - length if self._pad else 0)

    def _seal(self, first: bytes, data: bytes = b"", *, final: bool = False) -> Iterator[bytes]:
        """Chunks of ``first`` and ``data``, one behind the other."""
        room = PIECE_BYTES - len(first)
        if room < 0:
            yield from self._seal(first[:PIECE_BYTES])
            yield from self._seal(first[PIECE_BYTES:], data, final=final)
            return
        last = final and len(data) <= room
        yield from self._sealer.seal_parts(first + data[:room], final=last)
        view = memoryview(data)
        for start in range(room, len(data), PIECE_BYTES):
            last = final and start + PIECE_BYTES >= len(data)
            yield from self._sealer.seal_parts(view[start : start + PIECE_BYTES], final=last)
