"""Anonymous files: filled exactly, and unchangeable afterwards."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from cloister.errors import BadCiphertext, MalformedInput
from cloister.serve.memfd import fill_memfd


class Slow(io.RawIOBase):
    """Gives at most 7 bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._inner = io.BytesIO(content)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._inner.readinto(memoryview(buffer)[:7])


@pytest.mark.parametrize("size", [0, 1, 7, 5000])
def test_filled_and_sealed(size: int) -> None:
    """The bytes arrive whatever the source's reads are like, and nobody can write, grow or shrink it."""
    content = os.urandom(size)
    descriptor = fill_memfd("test", Slow(content), size)
    try:
        assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == content
        for change in (lambda: os.pwrite(descriptor, b"x", 0), lambda: os.ftruncate(descriptor, size + 1)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(descriptor)


def test_short_source() -> None:
    """A source that ends early is malformed, and leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MalformedInput):
        fill_memfd("test", Slow(b"abc"), 4)
    assert len(os.listdir("/proc/self/fd")) == before


class Failing(io.RawIOBase):
    """Fails while it holds a slice of the buffer, as a reader in the middle of a chunk does."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = buffer[:1]
        raise BadCiphertext(f"chunk of {len(part)} bytes")


def test_error_of_the_source() -> None:
    """A source's own error comes out as it is."""
    with pytest.raises(BadCiphertext):
        fill_memfd("test", Failing(), 4)
