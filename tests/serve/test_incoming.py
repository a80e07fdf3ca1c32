"""Requests out of a frame, ready for a handler."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve.frames import HeadEncoder, Predict, RequestItem
from cloister.serve.incoming import Incoming, Intake

JSON = [(b"content-type", b"application/json")]


def take(*bodies: bytes, head: list[tuple[bytes, bytes]] = JSON, query: bytes = b"") -> list[Incoming]:
    items = [RequestItem(number, str(number), 0, query, len(body)) for number, body in enumerate(bodies)]
    return Intake().take(Predict([HeadEncoder()(head)], items), memoryview(b"".join(bodies)))


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_bodies_of_a_frame(bodies: list[bytes]) -> None:
    """Each request gets its own body and the headers of its head, however long the frame is."""
    taken = take(*bodies, head=[(b"a", b"b")])
    assert [bytes(item.body) for item in taken] == bodies
    assert all(item.head is taken[0].head for item in taken)


@given(st.binary(max_size=40), st.sampled_from([b"application/json", b"text/plain", b"multipart/form-data"]))
def test_only_malformed_input_escapes(body: bytes, content_type: bytes) -> None:
    """Whatever bytes a caller sends, they are fields for the handler or MalformedInput."""
    (item,) = take(body, head=[(b"content-type", content_type)])
    with contextlib.suppress(MalformedInput):
        item.prepare()
        assert "body" in item.fields or content_type.startswith(b"multipart")


def test_json_is_decoded_once_ready() -> None:
    """JSON arrives decoded, with the query's fields beside it."""
    (item,) = take(b'{"x": [1]}', query=b"k=5")
    item.prepare()
    assert item.fields == {"body": {"x": [1]}, "k": bytearray(b"5")}


@pytest.mark.parametrize(
    "item",
    [RequestItem(1, "", 0, b"", 6), RequestItem(1, "", 0, b"", 4), RequestItem(1, "", 1, b"", 5)],
)
def test_frames_that_do_not_fit(item: RequestItem) -> None:
    """A length or a head that is not the frame's is refused."""
    with pytest.raises(MalformedInput):
        Intake().take(Predict([HeadEncoder()(JSON)], [item]), memoryview(b"12345"))


def test_headers_are_text_once() -> None:
    """Equal heads of later frames give the same headers, decoded as Latin-1."""
    intake, head = Intake(size=2), HeadEncoder()([(b"x-a", b"\xe9")])
    frame = Predict([head], [RequestItem(1, "", 0, b"", 0)])
    first, second = intake.take(frame, memoryview(b"")), intake.take(frame, memoryview(b""))
    assert first[0].head is second[0].head
    assert first[0].head.headers == {"x-a": "é"}
