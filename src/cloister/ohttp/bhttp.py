"""Binary HTTP (RFC 9292, ``message/bhttp``): messages as bytes, of known or indeterminate length.

==================== ==========================================================================
part                 form; every integer is a variable-length one (``cloister.ohttp.varint``)
==================== ==========================================================================
framing              0 request, 1 response of known length; 2, 3 the same of indeterminate length
control data         request: method, scheme, authority, path, each with its length;
                     response: any number of (status 100..199, header section), then status 200..599
header section       known: length, field lines; indeterminate: field lines, 0
content              known: length, bytes; indeterminate: (length > 0, bytes)..., 0
trailer section      as the header section
padding              any number of zero bytes
==================== ==========================================================================

A message may end before the header section, the content or the trailers: what is missing is empty
(section 3.8). Stricter than the RFC: any pseudo-field is refused, because none is defined for this use, and
the limits below hold. Field names come out in lower case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloister.errors import MalformedInput
from cloister.ohttp.varint import Cursor, render_varint

MEDIA_TYPE = "message/bhttp"

MAX_CONTROL_BYTES = 16_384
"""Each of method, scheme, authority and path."""
MAX_FIELDS = 256
"""Field lines of one section."""
MAX_SECTION_BYTES = 65_536
MAX_INFORMATIONAL = 16
MAX_CHUNKS = 65_536
"""Content chunks of one message of indeterminate length: bounds the work that 1-byte chunks can cause."""

Fields = tuple[tuple[bytes, bytes], ...]

_REQUEST, _RESPONSE = 0, 1
_INDETERMINATE = 2

# RFC 9110, section 5.6.2 (token) and RFC 9113, section 8.2.1 (field values).
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"(?:[^\x00\r\n \t](?:[^\x00\r\n]*[^\x00\r\n \t])?)?")
# RFC 3986, sections 3.1 and 3.2; the path only has to be visible ASCII without a fragment.
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*")
_AUTHORITY = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
_PATH = re.compile(rb"(?:/[!\"$-~]*|\*)")


@dataclass(frozen=True, slots=True)
class Request:
    """A request. Its repr leaves out what it carries."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    headers: Fields = ()
    content: bytes = b""
    trailers: Fields = ()

    def __repr__(self) -> str:
        return f"Request({len(self.headers)} headers, {len(self.content)} bytes of content)"

    def header(self, name: bytes) -> bytes | None:
        """Value of the first header of this lower-case name."""
        return _find(self.headers, name)


@dataclass(frozen=True, slots=True)
class Informational:
    """An interim response (1xx)."""

    status: int
    headers: Fields = ()


@dataclass(frozen=True, slots=True)
class Response:
    """A final response, with the interim ones that came before it. Its repr leaves out what it carries."""

    status: int
    headers: Fields = ()
    content: bytes = b""
    trailers: Fields = ()
    informational: tuple[Informational, ...] = ()

    def __repr__(self) -> str:
        return f"Response({self.status}, {len(self.headers)} headers, {len(self.content)} bytes of content)"

    def header(self, name: bytes) -> bytes | None:
        """Value of the first header of this lower-case name."""
        return _find(self.headers, name)


def parse_request(raw: bytes) -> Request:
    """Read a request.

    Raises:
        MalformedInput: anything that RFC 9292 calls invalid, or over a limit.
    """
    cursor = Cursor(raw)
    indeterminate = _parse_framing(cursor, _REQUEST, "request")
    method = cursor.prefixed(MAX_CONTROL_BYTES, "method")
    scheme = cursor.prefixed(MAX_CONTROL_BYTES, "scheme")
    authority = cursor.prefixed(MAX_CONTROL_BYTES, "authority")
    path = cursor.prefixed(MAX_CONTROL_BYTES, "path")
    _check_control(method, scheme, authority, path)
    headers, content, trailers = _parse_body(cursor, indeterminate)
    return Request(method, scheme, authority, path, headers, content, trailers)


def parse_response(raw: bytes) -> Response:
    """Read a response with its interim responses.

    Raises:
        MalformedInput: anything that RFC 9292 calls invalid, or over a limit.
    """
    cursor = Cursor(raw)
    indeterminate = _parse_framing(cursor, _RESPONSE, "response")
    interim: list[Informational] = []
    while 100 <= (status := cursor.varint("status")) <= 199:
        if len(interim) == MAX_INFORMATIONAL:
            raise MalformedInput(f"more than {MAX_INFORMATIONAL} interim responses")
        interim.append(Informational(status, _parse_section(cursor, indeterminate)))
    _check_status(status)
    headers, content, trailers = _parse_body(cursor, indeterminate)
    return Response(status, headers, content, trailers, tuple(interim))


def parse_section(raw: bytes, *, indeterminate: bool) -> Fields:
    """Read one section of field lines, the whole of ``raw``.

    Raises:
        MalformedInput: anything that RFC 9292 calls invalid, or over a limit.
    """
    return _parse_section(Cursor(raw), indeterminate)


def render_request(request: Request, *, indeterminate: bool = False, padding: int = 0) -> bytes:
    """Write a request, by default of known length.

    Args:
        padding: zero bytes to append.
    Raises:
        MalformedInput: a part that ``parse_request`` would refuse, such as a line break in a field.
    """
    parts = (request.method, request.scheme, request.authority, request.path)
    _check_control(*parts)
    out = [render_varint(_REQUEST + _INDETERMINATE * indeterminate)]
    for part in parts:
        if len(part) > MAX_CONTROL_BYTES:
            raise MalformedInput(f"control data: at most {MAX_CONTROL_BYTES} bytes, found {len(part)}")
        out += (render_varint(len(part)), part)
    _render_body(out, request, indeterminate, padding)
    return b"".join(out)


def render_response(response: Response, *, indeterminate: bool = False, padding: int = 0) -> bytes:
    """Write a response, by default of known length.

    Raises:
        MalformedInput: a part that ``parse_response`` would refuse.
    """
    out = [render_varint(_RESPONSE + _INDETERMINATE * indeterminate)]
    if len(response.informational) > MAX_INFORMATIONAL:
        raise MalformedInput(f"more than {MAX_INFORMATIONAL} interim responses")
    for interim in response.informational:
        if not 100 <= interim.status <= 199:
            raise MalformedInput(f"interim status: expected 100..199, found {interim.status}")
        out.append(render_varint(interim.status))
        _render_section(out, interim.headers, indeterminate)
    _check_status(response.status)
    out.append(render_varint(response.status))
    _render_body(out, response, indeterminate, padding)
    return b"".join(out)


def _parse_framing(cursor: Cursor, kind: int, name: str) -> bool:
    framing = cursor.varint("framing indicator")
    if framing not in (kind, kind + _INDETERMINATE):
        raise MalformedInput(f"framing indicator of a {name}: expected {kind} or {kind + 2}, found {framing}")
    return framing != kind


def _parse_body(cursor: Cursor, indeterminate: bool) -> tuple[Fields, bytes, Fields]:
    headers = _parse_section(cursor, indeterminate)
    content = _parse_chunks(cursor) if indeterminate else _parse_content(cursor)
    trailers = _parse_section(cursor, indeterminate)
    if not cursor.at_end():
        cursor.expect_zeros()
    return headers, content, trailers


def _parse_content(cursor: Cursor) -> bytes:
    return b"" if cursor.at_end() else cursor.prefixed(None, "content")


def _parse_chunks(cursor: Cursor) -> bytes:
    if cursor.at_end():
        return b""
    chunks: list[bytes] = []
    while length := cursor.varint("chunk length"):
        if len(chunks) == MAX_CHUNKS:
            raise MalformedInput(f"more than {MAX_CHUNKS} content chunks")
        chunks.append(cursor.take(length, "content chunk"))
    return b"".join(chunks)


def _parse_section(cursor: Cursor, indeterminate: bool) -> Fields:
    if cursor.at_end():
        return ()
    fields: list[tuple[bytes, bytes]] = []
    if indeterminate:
        start = cursor.position
        while length := cursor.varint("field name length"):
            _keep_line(cursor.take(length, "field name"), cursor, fields)
            if cursor.position - start > MAX_SECTION_BYTES:
                raise MalformedInput(f"field section: over {MAX_SECTION_BYTES} bytes")
    else:
        content = cursor.prefixed(MAX_SECTION_BYTES, "field section")
        section, size = Cursor(content), len(content)
        while section.position < size:
            _keep_line(section.prefixed(None, "field name"), section, fields)
    return tuple(fields)


def _keep_line(name: bytes, cursor: Cursor, fields: list[tuple[bytes, bytes]]) -> None:
    if len(fields) == MAX_FIELDS:
        raise MalformedInput(f"more than {MAX_FIELDS} field lines")
    value = cursor.prefixed(MAX_SECTION_BYTES, "field value")
    _check_field(name, value)
    fields.append((name.lower(), value))


def _render_body(out: list[bytes], message: Request | Response, indeterminate: bool, padding: int) -> None:
    _render_section(out, message.headers, indeterminate)
    out.append(render_varint(len(message.content)))
    if message.content:
        out.append(message.content)
        if indeterminate:
            out.append(b"\x00")
    _render_section(out, message.trailers, indeterminate)
    if padding:
        out.append(bytes(padding))


def _render_section(out: list[bytes], fields: Fields, indeterminate: bool) -> None:
    if len(fields) > MAX_FIELDS:
        raise MalformedInput(f"more than {MAX_FIELDS} field lines")
    lines: list[bytes] = []
    for name, value in fields:
        _check_field(name, value)
        lines += (render_varint(len(name)), name.lower(), render_varint(len(value)), value)
    section = b"".join(lines)
    if len(section) > MAX_SECTION_BYTES:
        raise MalformedInput(f"field section: at most {MAX_SECTION_BYTES} bytes, found {len(section)}")
    out += (section, b"\x00") if indeterminate else (render_varint(len(section)), section)


def _check_field(name: bytes, value: bytes) -> None:
    # Neither name nor value is quoted: both may be the caller's secret.
    if not _TOKEN.fullmatch(name):
        raise MalformedInput("field name: not a token")
    if not _VALUE.fullmatch(value):
        raise MalformedInput("field value: line break, NUL, or white space at an end")


def _check_control(method: bytes, scheme: bytes, authority: bytes, path: bytes) -> None:
    """RFC 9113, section 8.3.1."""
    if not _TOKEN.fullmatch(method):
        raise MalformedInput("method: not a token")
    if not _AUTHORITY.fullmatch(authority):
        raise MalformedInput("authority: character not allowed")
    if method == b"CONNECT":
        if scheme or path or not authority:
            raise MalformedInput("CONNECT: expected an authority, no scheme and no path")
        return
    if not _SCHEME.fullmatch(scheme):
        raise MalformedInput("scheme: not a URI scheme")
    if not _PATH.fullmatch(path):
        raise MalformedInput("path: must begin with '/' and hold visible ASCII only")


def _check_status(status: int) -> None:
    if not 200 <= status <= 599:
        raise MalformedInput(f"status: expected 200..599, found {status}")


def _find(fields: Fields, name: bytes) -> bytes | None:
    for key, value in fields:
        if key == name:
            return value
    return None
