"""Request bodies as handlers see them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve.forms import decode_value, parse_fields


def parse(body: bytes, content_type: str = "", query: bytes = b"") -> dict[str, Any]:
    return parse_fields(memoryview(body), content_type=content_type, query=query)


@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b"\x00\xff", "application/octet-stream", bytearray(b"\x00\xff")),
        (b"\x00\xff", "", bytearray(b"\x00\xff")),
        (b'{"a": [1, 2.5]}', "application/json; charset=utf-8", {"a": [1, 2.5]}),
        (b"\x89PNG", "application/json", bytearray(b"\x89PNG")),
        ("grüße".encode(), "text/plain", "grüße"),
        (b"\xff", "text/plain", bytearray(b"\xff")),
    ],
)
def test_raw_body(body: bytes, content_type: str, value: Any) -> None:
    """A body that is no form comes as ``body``, decoded by its type where that works."""
    fields = parse(body, content_type)
    assert fields == {"body": value}
    assert type(fields["body"]) is type(value)


def test_query_and_urlencoded() -> None:
    """Query and form fields come by their names."""
    fields = parse(b"data=a%20b", "application/x-www-form-urlencoded", query=b"k=5")
    assert fields == {"k": bytearray(b"5"), "data": bytearray(b"a b")}


def test_multipart() -> None:
    """Fields come by their names: files typed by their own headers, all others as bytes."""
    body = (
        b'--B\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n\r\n--b\r\n\x00\r\n--B\r\n"
        b'content-disposition: form-data; name="meta"; filename="m.json"\r\n'
        b'Content-Type: application/json\r\n\r\n{"k":1}\r\n--B\r\n'
        b'content-disposition: form-data; name="plain"\r\nContent-Type: application/json\r\n\r\n'
        b'{"k":1}\r\n--B--\r\n'
    )
    fields = parse(body, 'multipart/form-data; boundary="B"')
    assert fields == {
        "data": bytearray(b"\r\n--b\r\n\x00"),
        "meta": {"k": 1},
        "plain": bytearray(b'{"k":1}'),
    }


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data; boundary=B"),
        (b"--B\r\n\r\nx\r\n--B--", "multipart/form-data"),
        (b"--B\r\n\r\nx\r\n--B--", "multipart/form-data; boundary=B"),
        (b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nx', "multipart/form-data; boundary=B"),
        (b"--B\r\nno colon\r\n\r\nx\r\n--B--", "multipart/form-data; boundary=B"),
        (b"%ff=1", "application/x-www-form-urlencoded"),
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (b"&".join([b"a=1"] * 1001), "application/x-www-form-urlencoded"),
    ],
)
def test_broken_forms(body: bytes, content_type: str) -> None:
    """A form that breaks its format is malformed."""
    with pytest.raises(MalformedInput):
        parse(body, content_type)


KINDS = ("multipart/form-data; boundary=B", "application/x-www-form-urlencoded", "application/json", "text/x")


@given(st.binary(max_size=200), st.sampled_from(KINDS), st.binary(max_size=50))
def test_only_malformed_input_escapes(body: bytes, content_type: str, query: bytes) -> None:
    """Whatever a caller sends, fields or MalformedInput come out."""
    for content in (body, b"--B\r\n" + body + b"\r\n--B--"):
        with contextlib.suppress(MalformedInput):
            parse(content, content_type, query)


@pytest.mark.parametrize("body", [b"{", b' {"a": }', b"[1,", b'{"a": "\xff"}', b"[" * 100_000])
def test_broken_json_is_refused(body: bytes) -> None:
    """What is declared as JSON and begins like it, but is none, is malformed; the message has none of it."""
    with pytest.raises(MalformedInput, match="JSON") as refusal:
        decode_value(memoryview(body), "application/json")
    assert "\xff" not in refusal.value.message
