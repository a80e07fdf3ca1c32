"""A digest names the container that was read, whatever becomes of the file meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from cloister.crypto.cobblestone import CHUNK_BYTES, HEADER_BYTES, SEALED_CHUNK_BYTES, ciphertext_bytes
from cloister.errors import BadCiphertext
from cloister.seal import container_digest, open_sealed
from cloister.seal.digest import ChunkTags
from tests.seal.conftest import KEY, TRUSTED

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 64 * CHUNK_BYTES, 5_000_000]
PLAINTEXT_BYTES = 200_000
CHUNKS_BYTES = ciphertext_bytes(PLAINTEXT_BYTES) - HEADER_BYTES
CHANGES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "another seal of the same model": lambda raw, other: other,
    "a byte of the header": lambda raw, other: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:],
    "another salt": lambda raw, other: other[:-CHUNKS_BYTES] + raw[-CHUNKS_BYTES:],
    "a chunk of another seal": lambda raw, other: raw[:-SEALED_CHUNK_BYTES] + other[-SEALED_CHUNK_BYTES:],
    "shorter": lambda raw, other: raw[:-20],
    "longer": lambda raw, other: raw + b"more",
    "empty": lambda raw, other: b"",
}


@pytest.mark.parametrize("size", SIZES)
def test_digest_of_what_was_read(seal: Any, size: int) -> None:
    """Whatever the length, all of it is hashed, and the tags of all that was read are found again."""
    sealed = seal(os.urandom(size))
    with open_sealed(sealed.path, key=KEY, trusted=TRUSTED) as file:
        file.start_digest()
        assert file.read() == sealed.plaintext
        assert file.digest == container_digest(sealed.path)


@pytest.mark.parametrize("change", CHANGES)
def test_file_that_changes_after_it_was_read(seal: Any, change: str) -> None:
    """A file that was rewritten between reading and hashing gets no digest at all."""
    sealed = seal(os.urandom(PLAINTEXT_BYTES))
    other = seal(sealed.plaintext)
    with open_sealed(sealed.path, key=KEY, trusted=TRUSTED) as file:
        assert file.read() == sealed.plaintext
        raw, rewritten = sealed.path.read_bytes(), other.path.read_bytes()
        assert len(raw) == len(rewritten)
        sealed.path.write_bytes(CHANGES[change](raw, rewritten))
        with pytest.raises(BadCiphertext, match="changed while it was read"):
            _ = file.digest


def test_tags_are_compared_where_they_were_noted() -> None:
    """Chunks that nobody read are not asked for; one noted tag that differs is enough."""
    chunks = os.urandom(3 * SEALED_CHUNK_BYTES + 100)
    every, some, false = (ChunkTags(3 * CHUNK_BYTES + 84) for _ in range(3))
    every.note(0, memoryview(chunks))
    some.note(1, memoryview(chunks)[SEALED_CHUNK_BYTES : 2 * SEALED_CHUNK_BYTES])
    false.note(2, memoryview(chunks)[SEALED_CHUNK_BYTES : 2 * SEALED_CHUNK_BYTES])
    assert some.within(every)
    assert not every.within(some)
    assert not false.within(every)
