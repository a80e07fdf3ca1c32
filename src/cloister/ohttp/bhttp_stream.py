"""Binary HTTP (RFC 9292) as a stream: the head as soon as it is whole, then the content piece by piece.

Reads both forms and writes the one of indeterminate length. What is in memory is bounded by the limits of
``cloister.ohttp.bhttp``, whatever the sender does: content is handed on as it comes.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar, cast

from cloister.errors import MalformedInput
from cloister.ohttp.bhttp import (
    MAX_CHUNKS,
    MAX_CONTROL_BYTES,
    MAX_INFORMATIONAL,
    MAX_SECTION_BYTES,
    Fields,
    Informational,
    Request,
    Response,
    parse_request,
    parse_response,
    parse_section,
    render_request,
    render_response,
)
from cloister.ohttp.varint import Cursor, render_varint

MAX_HEAD_BYTES = 4 * MAX_CONTROL_BYTES + 2 * MAX_SECTION_BYTES
"""A head that is not whole after so many bytes never will be."""
MAX_VARINT_BYTES = 8

Message = TypeVar("Message", Request, Response)


class _State(enum.Enum):
    HEAD = 0
    LENGTH = 1
    CONTENT = 2
    TRAILERS = 3
    PADDING = 4


class _Short(Exception):
    """The part is not there whole yet."""


class Reader(Generic[Message]):
    """One message from bytes as they come. After an error it stays broken."""

    def __init__(self, kind: type[Message]) -> None:
        self._kind: type[Request] | type[Response] = kind
        self._rest = b""
        self._state = _State.HEAD
        self._left = 0
        self._chunks = 0
        self._indeterminate = False
        self._failed = False
        self.head: Message | None = None
        """Control data and headers, without content, as soon as they are there."""
        self.trailers: Fields = ()

    def receive(self, data: bytes) -> bytes:
        """Take bytes in; what they bring of the content.

        Raises:
            MalformedInput: anything that RFC 9292 calls invalid, or over a limit.
        """
        return b"".join(self.receive_parts(data))

    def receive_parts(self, data: bytes) -> list[bytes]:
        """As ``receive``, for who gathers content: parts of it, and ``data`` itself where it is content only.

        Raises:
            MalformedInput: as ``receive``.
        """
        if self._failed:
            raise MalformedInput("this message failed before")
        if self._state is _State.CONTENT and len(data) < self._left:
            self._left -= len(data)
            return [data]
        content: list[bytes] = []
        raw = self._rest + data if self._rest else data
        position = 0
        try:
            while (after := self._step(raw, position, content)) > position:
                position = after
        except MalformedInput:
            self._failed = True
            raise
        self._rest = raw[position:]
        return content

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            MalformedInput: not where a message may end (RFC 9292, section 3.8).
        """
        if self._failed or self._state is _State.CONTENT:
            raise MalformedInput("message: truncated in its content")
        if self._state is _State.HEAD:
            self.head = self._parse(self._rest)
        elif self._state is _State.LENGTH and (self._rest or self._chunks):
            raise MalformedInput("message: truncated in its content")
        elif self._state is _State.TRAILERS and self._rest:
            raise MalformedInput("message: truncated in its trailers")

    def _step(self, raw: bytes, position: int, content: list[bytes]) -> int:
        """Read one part of the message at ``position``; the place behind, or the same if more is needed."""
        if position == len(raw):
            return position
        if self._state is _State.PADDING:
            if raw.count(0, position) != len(raw) - position:
                raise MalformedInput("padding: not zero")
            return len(raw)
        if self._state is _State.CONTENT:
            taken = raw[position : position + self._left]
            content.append(taken)
            self._left -= len(taken)
            if not self._left:
                self._state = _State.LENGTH if self._indeterminate else _State.TRAILERS
            return position + len(taken)
        looked_at = MAX_VARINT_BYTES if self._state is _State.LENGTH else MAX_HEAD_BYTES
        cursor = _PartCursor(raw[position : position + looked_at])
        try:
            self._part(cursor)
        except _Short:
            if len(raw) - position >= MAX_HEAD_BYTES:
                raise MalformedInput("message: head or trailers over the limit") from None
            return position
        return position + cursor.position

    def _part(self, cursor: _PartCursor) -> None:
        if self._state is _State.HEAD:
            self._skip_head(cursor)
            self.head = self._parse(cursor.seen())
            self._state = _State.LENGTH
        elif self._state is _State.LENGTH:
            self._left = cursor.varint("content length")
            self._chunks += 1
            # A request is gathered somewhere. An answer may be a stream without end, read as it comes.
            if self._chunks > MAX_CHUNKS and self._kind is Request:
                raise MalformedInput(f"more than {MAX_CHUNKS} content chunks")
            self._state = _State.CONTENT if self._left else _State.TRAILERS
        else:
            _skip_section(cursor, self._indeterminate)
            self.trailers = parse_section(cursor.seen(), indeterminate=self._indeterminate)
            self._state = _State.PADDING

    def _parse(self, head: bytes) -> Message:
        parsed = parse_request(head) if self._kind is Request else parse_response(head)
        return cast("Message", parsed)

    def _skip_head(self, cursor: _PartCursor) -> None:
        framing = cursor.varint("framing indicator")
        self._indeterminate = framing >= 2
        if self._kind is Request:
            for what in ("method", "scheme", "authority", "path"):
                cursor.prefixed(MAX_CONTROL_BYTES, what)
        else:
            interim = 0
            while 100 <= cursor.varint("status") <= 199:
                interim += 1
                if interim > MAX_INFORMATIONAL:
                    raise MalformedInput(f"more than {MAX_INFORMATIONAL} interim responses")
                _skip_section(cursor, self._indeterminate)
        _skip_section(cursor, self._indeterminate)


class _PartCursor(Cursor):
    """A cursor whose end means that more is to come, not that the message is truncated."""

    __slots__ = ()

    def varint(self, what: str) -> int:
        if self.at_end() or self.position + (1 << (self._raw[self.position] >> 6)) > len(self._raw):
            raise _Short
        return super().varint(what)

    def take(self, size: int, what: str) -> bytes:
        if self.position + size > len(self._raw):
            raise _Short
        return super().take(size, what)

    def seen(self) -> bytes:
        """All that was read."""
        return self._raw[: self.position]


def _skip_section(cursor: _PartCursor, indeterminate: bool) -> None:
    if not indeterminate:
        cursor.prefixed(MAX_SECTION_BYTES, "field section")
        return
    start = cursor.position
    while length := cursor.varint("field name length"):
        if cursor.position - start + length > MAX_SECTION_BYTES:
            raise MalformedInput(f"field section: over {MAX_SECTION_BYTES} bytes")
        cursor.take(length, "field name")
        cursor.prefixed(MAX_SECTION_BYTES, "field value")


class Writer:
    """One message of indeterminate length: ``head``, then ``content`` as often as needed, then ``end``."""

    @staticmethod
    def head(message: Request | Response) -> bytes:
        """Control data and headers; the message's content and trailers are left out.

        Raises:
            MalformedInput: a part that a reader would refuse.
        """
        if isinstance(message, Request):
            bare = Request(message.method, message.scheme, message.authority, message.path, message.headers)
            return render_request(bare, indeterminate=True)[:-2]
        interim: tuple[Informational, ...] = message.informational
        return render_response(
            Response(message.status, message.headers, informational=interim), indeterminate=True
        )[:-2]

    @staticmethod
    def content(piece: bytes) -> bytes:
        """One piece of the content; nothing for an empty one."""
        return render_varint(len(piece)) + piece if piece else b""

    @staticmethod
    def end(*, padding: int = 0) -> bytes:
        """The end of the content and no trailers."""
        return b"\x00\x00" + bytes(padding)
