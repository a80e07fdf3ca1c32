"""Cobblestone-256: interoperates with the library both ways, gives out nothing that is not genuine."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import sources
from cloister.crypto.cobblestone import (
    CHUNK_BYTES,
    HEADER_BYTES,
    MAX_CHUNKS,
    TAG_BYTES,
    CobblestoneReader,
    CobblestoneWriter,
    ciphertext_bytes,
    plaintext_bytes,
)
from cloister.crypto.prefault import SMALLEST_BYTES
from cloister.errors import BadCiphertext, MalformedInput

KEY, CONTEXT = bytes(range(32)), b"context"
STEP = CHUNK_BYTES + TAG_BYTES
LETTERS = np.random.default_rng(0).bytes(6 * CHUNK_BYTES)
"""Incompressible and without repetition, so that a misplaced chunk shows."""

sizes = st.builds(
    lambda chunks, delta: max(0, chunks * CHUNK_BYTES + delta), st.integers(0, 5), st.integers(-3, 3)
) | st.integers(0, 6 * CHUNK_BYTES)


def encrypt(plaintext: bytes) -> bytes:
    """The library's own encryption."""
    encryptor = Cobblestone256Encryptor(KEY, CONTEXT)
    return encryptor.update(plaintext) + encryptor.finalize()


def read(message: bytes, *, key: bytes = KEY, context: bytes = CONTEXT) -> bytes:
    """Everything through our reader."""
    return CobblestoneReader(message, key=key, context=context).readall()


@settings(max_examples=60, deadline=None)
@given(size=sizes)
def test_reads_what_the_library_encrypts(size: int) -> None:
    """Every size gives back its plaintext, and the length formulas agree with the library."""
    message = encrypt(LETTERS[:size])
    assert len(message) == ciphertext_bytes(size)
    assert plaintext_bytes(len(message)) == size
    assert read(message) == LETTERS[:size]


@settings(max_examples=60, deadline=None)
@given(size=sizes, cuts=st.lists(st.integers(0, 6 * CHUNK_BYTES), max_size=4))
def test_library_reads_what_we_write(size: int, cuts: list[int]) -> None:
    """However the plaintext is cut into writes, the library decrypts the message."""
    target = io.BytesIO()
    with CobblestoneWriter(target, key=KEY, context=CONTEXT) as writer:
        edges = [0, *sorted(min(cut, size) for cut in cuts), size]
        for begin, end in itertools.pairwise(edges):
            assert writer.write(LETTERS[begin:end]) == end - begin
    decryptor = Cobblestone256Decryptor(KEY, CONTEXT)
    assert decryptor.update(target.getvalue()) + decryptor.finalize() == LETTERS[:size]


@settings(max_examples=60, deadline=None)
@given(
    size=sizes,
    moves=st.lists(st.tuples(st.integers(0, 6 * CHUNK_BYTES), st.integers(0, 3 * CHUNK_BYTES)), max_size=6),
)
def test_random_access_equals_slicing(size: int, moves: list[tuple[int, int]]) -> None:
    """Any seek and read gives the same bytes as a slice of the plaintext, in any order."""
    reader = CobblestoneReader(encrypt(LETTERS[:size]), key=KEY, context=CONTEXT)
    for start, length in moves:
        reader.seek(start)
        assert reader.read(length) == LETTERS[:size][start : start + length]


def test_behaves_as_a_file() -> None:
    """Positions, ends and modes are those of a read-only binary file."""
    reader = CobblestoneReader(encrypt(LETTERS[:40_000]), key=KEY, context=CONTEXT)
    assert reader.readable()
    assert reader.seekable()
    assert not reader.writable()
    assert reader.seek(-10, io.SEEK_END) == 39_990
    assert reader.seek(4, io.SEEK_CUR) == reader.tell() == 39_994
    assert reader.read(100) == LETTERS[39_994:40_000]
    assert reader.read(1) == b""
    assert io.BufferedReader(reader).read(0) == b""
    with pytest.raises(ValueError):
        reader.seek(-1)


def test_closed_reader_reads_nothing() -> None:
    """After close every operation fails and the chunk that was held is gone."""
    reader = CobblestoneReader(encrypt(b"secret"), key=KEY, context=CONTEXT)
    assert reader.read() == b"secret"
    reader.close()
    assert not any(reader._cached)
    with pytest.raises(ValueError):
        reader.read()


def test_sequential_reads_continue_in_order() -> None:
    """Reading in chunk-sized steps, then elsewhere, then on, gives the same as one read."""
    reader = CobblestoneReader(encrypt(LETTERS), key=KEY, context=CONTEXT)
    first = reader.read(2 * CHUNK_BYTES)
    reader.seek(5 * CHUNK_BYTES)
    last = reader.read()
    reader.seek(2 * CHUNK_BYTES)
    assert first + reader.read(3 * CHUNK_BYTES) + last == LETTERS


def test_fills_any_contiguous_buffer() -> None:
    """A numpy array of another type is filled in place; an empty one is nothing to do."""
    array = np.zeros((4, 1000), np.float32)
    reader = CobblestoneReader(encrypt(LETTERS), key=KEY, context=CONTEXT)
    assert reader.readinto(array.data) == 16_000
    assert array.tobytes() == LETTERS[:16_000]
    assert reader.readinto(bytearray()) == 0


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_truncation_is_refused_when_opened(size: int) -> None:
    """A message cut anywhere, at a chunk's boundary as well, does not open."""
    message = encrypt(LETTERS[:size])
    cuts = {0, 1, 23, 24, 55, 56, 57, 71, 72, HEADER_BYTES + STEP, len(message) - 16, len(message) - 1}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(message)):
        with pytest.raises(BadCiphertext):
            read(message[:cut])


@pytest.mark.parametrize("extra", [1, 15, 16, 17, CHUNK_BYTES, STEP, STEP + 16])
def test_extension_is_refused_when_opened(extra: int) -> None:
    """Bytes after the final chunk make the message false, whatever their number."""
    with pytest.raises(BadCiphertext):
        read(encrypt(LETTERS[:20_000]) + bytes(extra))


def test_swapped_chunks_are_refused_and_wiped() -> None:
    """Chunks in another order open, for the end is genuine, but no read gives their plaintext."""
    message = encrypt(LETTERS[: 3 * CHUNK_BYTES])
    first, second = message[56 : 56 + STEP], message[56 + STEP : 56 + 2 * STEP]
    reader = CobblestoneReader(
        message[:56] + second + first + message[56 + 2 * STEP :], key=KEY, context=CONTEXT
    )
    buffer = bytearray(b"x" * reader.size)
    with pytest.raises(BadCiphertext, match="reordered"):
        reader.readinto(buffer)
    assert buffer == bytes(len(buffer))
    assert reader.tell() == 0


@pytest.mark.parametrize("start", [0, CHUNK_BYTES, CHUNK_BYTES + 5])
def test_late_failure_leaves_no_plaintext(start: int) -> None:
    """When the last chunk of a read fails, the genuine ones before it are wiped from the buffer too."""
    message = bytearray(encrypt(LETTERS))
    message[56 + 4 * STEP + 100] ^= 1
    reader = CobblestoneReader(message, key=KEY, context=CONTEXT)
    reader.seek(start)
    buffer = bytearray(b"x" * (len(LETTERS) - start + 10))
    with pytest.raises(BadCiphertext):
        reader.readinto(buffer)
    assert buffer == bytes(len(LETTERS) - start) + b"x" * 10
    reader.seek(0)
    assert reader.read(CHUNK_BYTES) == LETTERS[:CHUNK_BYTES]


@settings(max_examples=150, deadline=None)
@given(offset=st.integers(0, ciphertext_bytes(40_000) - 1), bit=st.integers(0, 7))
def test_every_bit_matters(offset: int, bit: int) -> None:
    """A message with any one bit changed never reads to its end."""
    message = bytearray(_FORTY_THOUSAND)
    message[offset] ^= 1 << bit
    with pytest.raises(BadCiphertext):
        read(bytes(message))


_FORTY_THOUSAND = encrypt(LETTERS[:40_000])


def test_another_key_or_context_is_refused_by_the_commitment() -> None:
    """The commitment tells before a chunk is touched."""
    message = encrypt(b"text")
    for key, context in ((bytes(32), CONTEXT), (KEY, b"other"), (KEY, b"")):
        with pytest.raises(BadCiphertext, match="key or the context"):
            read(message, key=key, context=context)
    with pytest.raises(MalformedInput, match="32 bytes"):
        read(message, key=b"short")


def test_impossible_lengths() -> None:
    """Lengths that no message has are malformed, in both directions."""
    for length in (-1, 0, 55, 56, 71, HEADER_BYTES + STEP, HEADER_BYTES + STEP + 15):
        with pytest.raises(MalformedInput):
            plaintext_bytes(length)
    for length in (-1, MAX_CHUNKS * CHUNK_BYTES):
        with pytest.raises(MalformedInput):
            ciphertext_bytes(length)
    assert plaintext_bytes(ciphertext_bytes(MAX_CHUNKS * CHUNK_BYTES - 1)) == MAX_CHUNKS * CHUNK_BYTES - 1


class _Unnamed(io.BytesIO):
    """A stream that gives less than it is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 1000))


@pytest.mark.parametrize("lease", [True, False])
def test_reads_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lease: bool) -> None:
    """A file gives the same with a mapped window as without, at an offset, and keeps its own position."""
    path = tmp_path / "message"
    path.write_bytes(b"before" + encrypt(LETTERS) + b"after")
    monkeypatch.setattr(sources, "MAP_FROM_BYTES", 1)
    monkeypatch.setattr(sources, "_WINDOW_BYTES", 2 * STEP)
    if not lease:
        monkeypatch.setattr(sources.FileSource, "_take_lease", lambda self: False)
    with path.open("rb") as file:
        length = ciphertext_bytes(len(LETTERS))
        reader = CobblestoneReader(file, key=KEY, context=CONTEXT, offset=6, length=length)
        assert reader.readall() == LETTERS
        assert file.tell() == 0


def test_reads_from_streams() -> None:
    """A file object without a descriptor works, also one that gives short reads."""
    reader = CobblestoneReader(_Unnamed(encrypt(LETTERS)), key=KEY, context=CONTEXT)
    assert reader.readall() == LETTERS


def test_lease_holds_back_writers(tmp_path: Path) -> None:
    """While a window is mapped nobody can open the file for writing; afterwards everybody can."""
    path = tmp_path / "message"
    path.write_bytes(bytes(sources.MAP_FROM_BYTES))
    with path.open("rb") as file:
        pieces = sources.FileSource(file.fileno()).pieces(0, sources.MAP_FROM_BYTES, 1)
        piece = next(pieces)
        if len(piece) < sources.MAP_FROM_BYTES:
            pytest.skip("this file system grants no leases")
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        assert piece.tobytes() == bytes(sources.MAP_FROM_BYTES)
        assert list(pieces) == []
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    """A file truncated after it was opened gives an error, not a crash and not plaintext."""
    path = tmp_path / "message"
    path.write_bytes(encrypt(LETTERS))
    with path.open("rb") as file:
        reader = CobblestoneReader(file, key=KEY, context=CONTEXT)
        os.truncate(path, 30_000)
        with pytest.raises(BadCiphertext):
            reader.readall()


def test_large_fresh_buffer_is_filled() -> None:
    """Pages that the kernel provides in the background do not disturb what is decrypted."""
    plaintext = LETTERS * (SMALLEST_BYTES // len(LETTERS) + 2)
    buffer = np.empty(len(plaintext), np.uint8)
    assert CobblestoneReader(encrypt(plaintext), key=KEY, context=CONTEXT).readinto(buffer.data) == len(
        buffer
    )
    assert buffer.tobytes() == plaintext


def test_failed_writer_leaves_no_message() -> None:
    """An error inside the block leaves a truncated message that no reader accepts."""
    target = io.BytesIO()
    with contextlib.suppress(RuntimeError), CobblestoneWriter(target, key=KEY, context=CONTEXT) as writer:
        writer.write(LETTERS)
        raise RuntimeError
    assert len(target.getvalue()) >= len(LETTERS)
    with pytest.raises(BadCiphertext):
        read(target.getvalue())
