"""Binary HTTP as a stream says the same as the parser of whole messages, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.ohttp.bhttp import (
    Request,
    Response,
    parse_request,
    parse_response,
    render_request,
    render_response,
)
from cloister.ohttp.bhttp_stream import MAX_HEAD_BYTES, Reader, Writer

NAMES = st.from_regex(rb"[a-z][a-z0-9-]{0,8}", fullmatch=True)
VALUES = st.from_regex(rb"[!-~]{0,12}", fullmatch=True)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=3).map(tuple)
REQUESTS = st.builds(
    Request,
    method=st.sampled_from([b"GET", b"POST"]),
    scheme=st.just(b"https"),
    authority=st.sampled_from([b"", b"a.example"]),
    path=st.sampled_from([b"/", b"/predictions/m?x=1"]),
    headers=FIELDS,
    content=st.binary(max_size=60),
    trailers=FIELDS,
)
RESPONSES = st.builds(
    Response, status=st.integers(200, 599), headers=FIELDS, content=st.binary(max_size=60), trailers=FIELDS
)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def parts(raw: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, cut at these places."""
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[a:b] for a, b in pairwise(places)]


def read_request(raw: bytes, cuts: list[int]) -> Request:
    """A whole request through the stream's reader."""
    reader = Reader(Request)
    content = b"".join(reader.receive(part) for part in parts(raw, cuts))
    reader.finish()
    head = reader.head
    assert head is not None
    return Request(
        head.method, head.scheme, head.authority, head.path, head.headers, content, reader.trailers
    )


@given(REQUESTS, st.booleans(), st.integers(0, 3), CUTS)
def test_requests(request: Request, indeterminate: bool, padding: int, cuts: list[int]) -> None:
    """Every request of either form is read the same in pieces as whole."""
    raw = render_request(request, indeterminate=indeterminate, padding=padding)
    assert read_request(raw, cuts) == parse_request(raw) == request


@given(RESPONSES, st.booleans(), CUTS)
def test_responses(response: Response, indeterminate: bool, cuts: list[int]) -> None:
    """Every response of either form is read the same in pieces as whole."""
    raw = render_response(response, indeterminate=indeterminate)
    reader = Reader(Response)
    content = b"".join(reader.receive(part) for part in parts(raw, cuts))
    reader.finish()
    head = reader.head
    assert head is not None
    assert Response(head.status, head.headers, content, reader.trailers) == parse_response(raw) == response


@given(RESPONSES, st.lists(st.binary(max_size=20), max_size=4), st.integers(0, 5))
def test_writer(response: Response, pieces: list[bytes], padding: int) -> None:
    """What is written piece by piece is a message like any other."""
    bare = Response(response.status, response.headers)
    raw = Writer.head(bare) + b"".join(map(Writer.content, pieces)) + Writer.end(padding=padding)
    assert parse_response(raw) == Response(response.status, response.headers, b"".join(pieces))


@given(REQUESTS, st.booleans(), st.data())
def test_a_cut_message_is_as_the_whole_parser_says(
    request: Request, indeterminate: bool, data: st.DataObject
) -> None:
    """A message may end early only where RFC 9292, section 3.8 lets it."""
    raw = render_request(request, indeterminate=indeterminate)
    cut = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        expected = parse_request(cut)
    except MalformedInput:
        with pytest.raises(MalformedInput):
            read_request(cut, [])
    else:
        assert read_request(cut, [1, 2, 3]) == expected


@given(st.binary(max_size=120), CUTS)
def test_garbage(raw: bytes, cuts: list[int]) -> None:
    """Arbitrary bytes: the same verdict as of the whole parser, and no other error."""
    try:
        expected = parse_request(raw)
    except MalformedInput:
        with pytest.raises(MalformedInput):
            read_request(raw, cuts)
    else:
        assert read_request(raw, cuts) == expected


def test_a_head_without_end_is_refused() -> None:
    """A sender that never finishes its headers is stopped at the limit."""
    reader = Reader(Request)
    field = b"\x01a\x01b"
    with pytest.raises(MalformedInput):
        reader.receive(b"\x02\x03GET\x05https\x00\x01/" + field * MAX_HEAD_BYTES)


def test_content_comes_before_the_end() -> None:
    """Content is handed on as it arrives."""
    reader = Reader(Response)
    assert reader.receive(Writer.head(Response(200)) + Writer.content(b"first")) == b"first"
    assert reader.head is not None
    assert reader.receive(Writer.content(b"second")) == b"second"
    with pytest.raises(MalformedInput):
        Reader(Response).finish()


def test_very_many_pieces() -> None:
    """A request has a limit of pieces; an answer may be a stream without end."""
    piece = Writer.content(b"x") * 1000
    answer, asked = Reader(Response), Reader(Request)
    answer.receive(Writer.head(Response(200)))
    asked.receive(Writer.head(Request(b"POST", b"https", b"h", b"/")))
    for _ in range(70):
        assert answer.receive(piece) == b"x" * 1000
    for _ in range(65):
        asked.receive(piece)
    with pytest.raises(MalformedInput, match="more than 65536"):
        asked.receive(piece)


def test_endless_interim_answers() -> None:
    """Interim answers without end are refused before they fill memory."""
    reader = Reader(Response)
    reader.receive(b"\x03" + b"\x40\x67\x00" * 16)
    with pytest.raises(MalformedInput, match="interim"):
        reader.receive(b"\x40\x67\x00")
