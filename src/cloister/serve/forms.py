"""A request's body and query as the named values that TorchServe's handlers are given.

Runs in the worker: neither the event loop nor the measured frontend decodes what callers send.

Source: pytorch/serve 0.12, HTTP inference: fields of a form by their names, any other body as ``body``;
values of JSON type arrive decoded, of text type as ``str``, all others as ``bytearray``. What does not even
begin like JSON is passed on as bytes: TorchServe's own clients send pictures under ``application/json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from cloister.errors import MalformedInput

MAX_FIELDS = 1000
_FORM = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_PARAMETER = re.compile(r';\s*([A-Za-z0-9_*-]+)=("(?:[^"\\]|\\.)*"|[^;\s]*)')
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")


def parse_fields(body: memoryview, *, content_type: str, query: bytes, decode: bool = True) -> dict[str, Any]:
    """The values of one request by field name.

    Args:
        decode: JSON and text are decoded; else every value is as it was sent.
    Raises:
        MalformedInput: a form or a query that breaks its format.
    """
    fields: dict[str, Any] = {}
    if query:
        for name, value in _parse_pairs(query):
            fields[name] = bytearray(value)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        fields.update(_parse_multipart(bytes(body), content_type, decode=decode))
    elif kind == _FORM:
        for name, value in _parse_pairs(bytes(body)):
            fields[name] = bytearray(value)
    else:
        fields["body"] = decode_value(body, content_type) if decode else bytearray(body)
    return fields


def decode_value(value: memoryview, content_type: str) -> Any:
    """One value by its content type: JSON decoded, text as ``str``, all else as ``bytearray``."""
    if content_type.startswith("application/json"):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _decode_lenient(value)
    if content_type.startswith("text"):
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            return bytearray(value)
    return bytearray(value)


def _decode_lenient(value: memoryview) -> Any:
    """Python's own decoder takes NaN and Infinity, which some clients send.

    Raises:
        MalformedInput: it begins like JSON, so its sender meant it to be.
    """
    raw = bytes(value)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        if raw[:64].lstrip()[:1] not in (b"{", b"["):
            return bytearray(value)
        reason = "nested too deeply" if isinstance(error, RecursionError) else "not UTF-8"
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at character {error.pos}"
        raise MalformedInput(f"body is declared as JSON and is none: {reason}") from None


def _parse_pairs(raw: bytes) -> list[tuple[str, bytes]]:
    """Names as text, values as the very bytes that were encoded: a form may carry any."""
    try:
        pairs = parse_qsl(
            raw.decode("latin-1"), keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_FIELDS
        )
        return [(name.encode("latin-1").decode(), value.encode("latin-1")) for name, value in pairs]
    except ValueError as error:
        raise MalformedInput("form fields are not URL-encoded, or too many") from error


def _parse_multipart(body: bytes, content_type: str, *, decode: bool) -> Iterator[tuple[str, Any]]:
    """RFC 7578 form data; RFC 2046 section 5.1.1 for the delimiters, which must be well placed."""
    boundary = _parameters(content_type).get("boundary", "").encode()
    if not _BOUNDARY.fullmatch(boundary):
        raise MalformedInput("multipart body without a valid boundary")
    delimiter = b"\r\n--" + boundary
    sections = (b"\r\n" + body).split(delimiter, MAX_FIELDS + 1)
    if len(sections) < 2 or not sections[-1].startswith(b"--"):
        raise MalformedInput("multipart body does not end with its closing delimiter, or has too many fields")
    for section in sections[1:-1]:
        padding, line_end, rest = section.partition(b"\r\n")
        head, blank, value = rest.partition(b"\r\n\r\n")
        if padding.strip(b" \t") or not line_end or not blank:
            raise MalformedInput("multipart field without headers")
        headers = _part_headers(head)
        placed = _parameters(headers.get("content-disposition", ""))
        if "name" not in placed:
            raise MalformedInput("multipart field without a name")
        # TorchServe takes the type of a file, and a field without a file name as bytes whatever it says.
        typed = decode and placed.keys() & {"filename", "filename*"}
        kind = headers.get("content-type", "") if typed else ""
        yield placed["name"], decode_value(memoryview(value), kind)


def _part_headers(head: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon:
            raise MalformedInput("multipart field with a header that has no colon")
        headers[name.decode("latin-1").strip().lower()] = value.decode("utf-8", "replace").strip()
    return headers


def _parameters(value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in _PARAMETER.findall(value):
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        found.setdefault(name.lower(), text)
    return found
