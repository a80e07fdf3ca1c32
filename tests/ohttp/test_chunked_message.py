"""Messages in chunks: whole or piece by piece the same, in chunks that every receiver takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.hpke import PrivateKey
from cloister.errors import MalformedInput
from cloister.ohttp.bhttp import Request, parse_request
from cloister.ohttp.capsule import KeyConfig
from cloister.ohttp.chunked import PIECE_BYTES, RequestOpener, RequestSealer
from cloister.ohttp.chunked_message import MessageSealer
from cloister.ohttp.gateway import GatewayKey
from cloister.ohttp.padding import padded_bytes

KEY = GatewayKey(1, PrivateKey.generate())
HEAD = Request(b"POST", b"https", b"host", b"/predictions/m", ((b"a", b"b"),))
SIZES = st.sampled_from([0, 1, 63, 64, 1000, PIECE_BYTES - 60, PIECE_BYTES, PIECE_BYTES + 1, 100_000])


def make_sealer(head: Request = HEAD, *, pad: bool = False) -> MessageSealer:
    """For a new request to KEY."""
    return MessageSealer(RequestSealer(KeyConfig.parse(KEY.config.render())), head, pad=pad)


def open_pieces(raw: bytes) -> list[bytes]:
    """What each chunk holds."""
    opener = RequestOpener()
    opener.receive(raw)
    return [*opener.open_with(KEY.private), opener.finish()]


@given(SIZES, st.booleans())
def test_whole(size: int, pad: bool) -> None:
    """A whole message opens to what went in; no chunk is over the size that every receiver takes."""
    content = bytes(size)
    pieces = open_pieces(make_sealer(pad=pad).whole(content))
    assert max(map(len, pieces)) <= PIECE_BYTES
    message = b"".join(pieces)
    assert parse_request(message) == Request(
        HEAD.method, HEAD.scheme, HEAD.authority, HEAD.path, HEAD.headers, content
    )
    assert not pad or len(message) == padded_bytes(len(message))
    assert len(pieces) <= 2 + len(message) // PIECE_BYTES


@given(st.lists(SIZES, max_size=5), st.booleans())
def test_in_parts(sizes: list[int], pad: bool) -> None:
    """Content that comes in parts opens to the same bytes, in chunks as large as the parts allow."""
    sealer = make_sealer(pad=pad)
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    raw = b"".join((sealer.begin(), *map(sealer.content, parts), sealer.end()))
    pieces = open_pieces(raw)
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert parse_request(b"".join(pieces)).content == b"".join(parts)


def test_a_small_message_is_one_chunk() -> None:
    """Head, content and end of a small message share the final chunk."""
    assert len(open_pieces(make_sealer().whole(b"x" * 1000))) == 1


def test_a_head_larger_than_a_chunk() -> None:
    """Headers of more than one chunk go into several."""
    fields = tuple((b"x-%d" % number, b"v" * 1000) for number in range(40))
    head = Request(HEAD.method, HEAD.scheme, HEAD.authority, HEAD.path, fields)
    pieces = open_pieces(make_sealer(head).whole(b"content"))
    assert [len(piece) for piece in pieces[:2]] == [PIECE_BYTES, PIECE_BYTES]
    assert parse_request(b"".join(pieces)).headers == fields


def test_a_header_with_a_line_break_is_refused() -> None:
    """Nothing is sealed that a reader would refuse."""
    with pytest.raises(MalformedInput):
        make_sealer(Request(b"GET", b"https", b"h", b"/", ((b"a", b"b\r\nc: d"),)))
