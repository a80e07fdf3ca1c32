"""Chunked OHTTP: the draft's example byte for byte, and every way to cut, change or reorder a stream."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.hpke import Aead, Kdf, Kem, PrivateKey
from cloister.errors import BadCiphertext, CloisterError, MalformedInput
from cloister.ohttp.capsule import KeyConfig
from cloister.ohttp.chunked import (
    MAX_CHUNK_BYTES,
    MAX_SMALL_CHUNKS,
    PIECE_BYTES,
    SMALL_BYTES,
    RequestOpener,
    RequestSealer,
)
from cloister.ohttp.varint import render_varint
from tests.vectors import vector

X25519 = Kem.X25519_HKDF_SHA256
KEY = PrivateKey.derive(X25519, b"\x01" * 32)
SUITES = [(Kdf.HKDF_SHA256, aead) for aead in Aead]
CONFIG = KeyConfig(9, KEY.public, ((Kdf.HKDF_SHA256, Aead.AES_128_GCM),))


@pytest.fixture(scope="module")
def draft() -> dict[str, bytes]:
    """Appendix A of the draft; the lists of lines are its own layout of the same bytes."""
    raw = json.loads(vector("ohttp/dev/chunked_ohttp_draft_example.json").read_text())
    return {name: bytes.fromhex(value) for name, value in raw.items() if isinstance(value, str)}


def seal_stream(pieces: list[bytes], config: KeyConfig = CONFIG) -> tuple[bytes, RequestSealer]:
    """A whole request; the last piece is the final one."""
    sealer = RequestSealer(config)
    chunks = [sealer.seal(piece) for piece in pieces[:-1]] + [sealer.seal(pieces[-1], final=True)]
    return sealer.begin() + b"".join(chunks), sealer


def open_stream(raw: bytes, cuts: list[int] | None = None) -> tuple[bytes, RequestOpener]:
    """A whole request, given in parts cut at these places."""
    opener = RequestOpener()
    got: list[bytes] = []
    opened = False
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts or [])})
    for start, end in pairwise(places):
        got += opener.receive(raw[start:end])
        if opener.enc and not opened:
            opened = True
            got += opener.open_with(KEY)
    got.append(opener.finish())
    return b"".join(got), opener


def test_example_as_client(draft: dict[str, bytes]) -> None:
    """With the draft's ephemeral key the client writes the draft's request and reads its response."""
    config = KeyConfig.parse(draft["key_config"])
    sealer = RequestSealer(config, ephemeral=PrivateKey.from_bytes(X25519, draft["client_ephemeral_sk"]))
    message = draft["bhttp_request"]
    chunks = sealer.seal(message[:12]) + sealer.seal(message[12:]) + sealer.seal(b"", final=True)
    assert sealer.begin() + chunks == draft["encapsulated_request"]
    opener = sealer.response_opener()
    pieces = opener.receive(draft["encapsulated_response"])
    assert b"".join(pieces) + opener.finish() == draft["bhttp_response"]


def test_example_as_gateway(draft: dict[str, bytes]) -> None:
    """With the draft's key and nonce the gateway reads the draft's request and writes its response."""
    opener = RequestOpener()
    assert opener.receive(draft["encapsulated_request"]) == []
    pieces = opener.open_with(PrivateKey.from_bytes(X25519, draft["gateway_skX25519"]))
    assert b"".join(pieces) + opener.finish() == draft["bhttp_request"]
    sealer = opener.response_sealer(response_nonce=draft["encapsulated_response"][:16])
    message = draft["bhttp_response"]
    sealed = (
        sealer.begin() + sealer.seal(message[:1]) + sealer.seal(message[1:]) + sealer.seal(b"", final=True)
    )
    assert sealed == draft["encapsulated_response"]


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6),
    st.lists(st.integers(0, 10_000), max_size=10),
    st.sampled_from(SUITES),
)
def test_any_cut_of_the_bytes_gives_the_same(
    pieces: list[bytes], cuts: list[int], algorithms: tuple[Kdf, Aead]
) -> None:
    """How the network cuts a stream does not matter, for requests and for answers, with every suite."""
    raw, sealer = seal_stream(pieces, KeyConfig(9, KEY.public, (algorithms,)))
    whole, opener = open_stream(raw, cuts)
    assert whole == b"".join(pieces)
    answer = opener.response_sealer()
    sent = answer.begin() + b"".join(map(answer.seal, pieces)) + answer.seal(b"", final=True)
    reader = sealer.response_opener()
    got = [piece for byte in sent for piece in reader.receive(bytes([byte]))]
    assert b"".join(got) + reader.finish() == whole


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.data())
def test_a_cut_stream_is_an_error(pieces: list[bytes], data: st.DataObject) -> None:
    """A stream that ends anywhere before its end does not open as if it were whole."""
    raw, _ = seal_stream(pieces)
    end = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(CloisterError):
        open_stream(raw[:end])


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.data())
def test_a_changed_byte_is_an_error(pieces: list[bytes], data: st.DataObject) -> None:
    """No byte can be changed, the header's included."""
    raw = bytearray(seal_stream(pieces)[0])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    if raw[0] != 9:
        raw[1:3] = b"\xff\xff"  # the key's number is the gateway's to check
    with pytest.raises((BadCiphertext, MalformedInput)):
        open_stream(bytes(raw))


def test_chunks_keep_their_order_and_their_stream() -> None:
    """A chunk that was moved, repeated, dropped or made the last one does not open."""
    sealer = RequestSealer(CONFIG)
    begin, one, two, last = (
        sealer.begin(), sealer.seal(b"one"), sealer.seal(b"two"), sealer.seal(b"", final=True)
    )  # fmt: skip
    for wrong in (
        (two, one, last),
        (one, one, two, last),
        (two, last),
        (one, two, two[1:]),
        (one, b"\x00" + two[1:]),
    ):
        with pytest.raises((BadCiphertext, MalformedInput)):
            open_stream(begin + b"".join(wrong))
    other = RequestSealer(CONFIG)
    with pytest.raises(BadCiphertext):
        open_stream(begin + one + other.seal(b"two") + last)


def test_an_answer_belongs_to_its_request() -> None:
    """The answer to one request does not open with another's keys."""
    raw, _ = seal_stream([b"a"])
    _, stranger = seal_stream([b"a"])
    answer = open_stream(raw)[1].response_sealer()
    reader = stranger.response_opener()
    sent = answer.begin() + answer.seal(b"x") + answer.seal(b"", final=True)
    with pytest.raises(BadCiphertext):
        reader.receive(sent)


def test_memory_of_a_half_open_stream_is_bounded() -> None:
    """A chunk that says it is longer than the limit is refused at its length, not when it has come."""
    begin = RequestSealer(CONFIG).begin()
    with pytest.raises(MalformedInput, match="limit"):
        open_stream(begin + render_varint(MAX_CHUNK_BYTES + 1))
    with pytest.raises(MalformedInput, match="final chunk"):
        open_stream(begin + b"\x00" + bytes(MAX_CHUNK_BYTES + 1))
    with pytest.raises(MalformedInput, match="limit"):
        open_stream(begin + render_varint(15) + bytes(15))


@pytest.mark.parametrize("size", [1, 1000, PIECE_BYTES, MAX_CHUNK_BYTES - 16])
@pytest.mark.parametrize("part", [1, 17, 16_399, 1 << 16, 1 << 20])
def test_chunks_of_any_size_in_parts_of_any_size(size: int, part: int) -> None:
    """What a sender chooses as chunks and what the network makes of them are independent."""
    pieces = [bytes([number % 256]) * size for number in range(max(2, 60_000 // (size * 30)))]
    raw, _ = seal_stream(pieces)
    assert open_stream(raw, list(range(0, len(raw), part)))[0] == b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES - 1])
def test_very_many_small_chunks_are_refused(size: int) -> None:
    """A request cannot make the gateway open chunks without end that bring next to nothing."""
    sealer = RequestSealer(CONFIG)
    opener = RequestOpener()
    opener.receive(sealer.begin())
    opener.open_with(KEY)
    piece = bytes(size)
    for _ in range(4):
        opener.receive(b"".join([sealer.seal(piece) for _ in range(MAX_SMALL_CHUNKS // 4)]))
    opener.receive(sealer.seal(bytes(SMALL_BYTES)))
    with pytest.raises(MalformedInput, match="small chunks"):
        opener.receive(sealer.seal(piece))


def test_nothing_follows_an_error() -> None:
    """A stream that failed once stays failed."""
    raw, _ = seal_stream([b"a", b"b"])
    opener = RequestOpener()
    opener.receive(raw[:39])
    opener.open_with(KEY)
    with pytest.raises(BadCiphertext):
        opener.receive(render_varint(17) + bytes(17))
    with pytest.raises(BadCiphertext):
        opener.receive(raw[39:])
    with pytest.raises(BadCiphertext):
        opener.finish()


@given(st.binary(max_size=200))
def test_garbage_is_refused(raw: bytes) -> None:
    """Arbitrary bytes give declared errors only."""
    with pytest.raises((BadCiphertext, MalformedInput)):
        open_stream(raw)
