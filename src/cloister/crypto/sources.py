"""Random access to ciphertext, wherever it lies: in a buffer, in a file, behind any seekable object.

A file is normally read with ``pread`` into private memory. Large reads map it instead, which saves copying
all of it once, but only under a **read lease** (``fcntl(2)``, F_SETLEASE): the kernel then holds back
everybody who wants to write to the file or truncate it. Without that, bytes could change between the moment
when a cipher authenticates them and the moment when it decrypts them, and a truncation would kill the
process. Where no lease is granted (another owner, some network file systems, the file is open for writing),
``pread`` it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from cloister.errors import BadCiphertext

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAP_FROM_BYTES = 4 << 20
"""Reads at least this long are mapped where a lease allows it."""

_WINDOW_BYTES = 64 << 20
_SLAB_BYTES = 128 << 10
"""Small enough to stay in a core's own cache until it is decrypted."""

_F_SETSIG = 10


class Source(Protocol):
    """Bytes at offsets. Both methods raise BadCiphertext where the source ends early."""

    length: int

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Exactly ``length`` bytes."""
        ...

    def pieces(self, offset: int, length: int, unit: int) -> Iterator[memoryview]:
        """The same range in order; each piece is a multiple of ``unit``, and valid until the next one."""
        ...


def open_source(source: ReadableBuffer | BinaryIO) -> Source:
    """The fitting Source: of a file with a descriptor, of another seekable binary file, or of a buffer."""
    if isinstance(source, mmap.mmap) or not hasattr(source, "read"):
        return BufferSource(source)
    stream = cast(BinaryIO, source)
    try:
        return FileSource(stream.fileno())
    except (AttributeError, OSError):  # not backed by a descriptor
        return StreamSource(stream)


class BufferSource:
    """Memory that the caller keeps unchanged while it is read."""

    def __init__(self, buffer: ReadableBuffer) -> None:
        self._view = memoryview(buffer).cast("B")
        self.length = self._view.nbytes

    def read(self, offset: int, length: int) -> memoryview:
        """See Source."""
        if offset + length > self.length:
            raise _ended(offset, length)
        return self._view[offset : offset + length]

    def pieces(self, offset: int, length: int, unit: int) -> Iterator[memoryview]:
        """See Source: one piece, no copy."""
        yield self.read(offset, length)


class StreamSource:
    """Any seekable binary file object, through its own ``seek`` and ``read``."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.length = stream.seek(0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """See Source."""
        self._stream.seek(offset)
        parts = []
        wanted = length
        while wanted:
            part = self._stream.read(wanted)
            if not part:
                raise _ended(offset, length)
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    def pieces(self, offset: int, length: int, unit: int) -> Iterator[memoryview]:
        """See Source."""
        step = max(unit, _SLAB_BYTES // unit * unit)
        for start in range(offset, offset + length, step):
            yield memoryview(self.read(start, min(step, offset + length - start)))


class FileSource:
    """An open file, read at offsets without moving its position. The caller keeps the descriptor open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.length = os.fstat(descriptor).st_size

    def read(self, offset: int, length: int) -> memoryview:
        """See Source."""
        buffer = memoryview(bytearray(length))
        self._read_into(offset, buffer)
        return buffer

    def pieces(self, offset: int, length: int, unit: int) -> Iterator[memoryview]:
        """See Source: mapped windows where a lease is granted and pays, else one small slab used again."""
        end = offset + length
        if length >= MAP_FROM_BYTES and self._take_lease():
            try:
                step = max(unit, _WINDOW_BYTES // unit * unit)
                while offset < end and self._lease_holds():
                    size = min(step, end - offset)
                    yield self._map(offset, size)
                    offset += size
            finally:
                with contextlib.suppress(OSError):  # the kernel has taken it back after lease-break-time
                    fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        slab = memoryview(bytearray(max(unit, _SLAB_BYTES // unit * unit)))
        while offset < end:
            piece = slab[: end - offset]
            self._read_into(offset, piece)
            yield piece
            offset += len(piece)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if not count:
                raise _ended(offset, len(buffer))
            done += count

    def _map(self, offset: int, length: int) -> memoryview:
        """A window on the file. It is unmapped when the last view of it is gone."""
        skip = offset % mmap.ALLOCATIONGRANULARITY
        try:
            window = mmap.mmap(
                self._descriptor,
                skip + length,
                mmap.MAP_SHARED | mmap.MAP_POPULATE,
                mmap.PROT_READ,
                offset=offset - skip,
            )
        except ValueError as error:  # the file had been truncated before the lease
            raise _ended(offset, length) from error
        return memoryview(window)[skip:]

    def _take_lease(self) -> bool:
        if not sys.platform.startswith("linux"):
            return False
        try:
            # The kernel announces a waiting writer with a signal; SIGURG is one that is ignored by default.
            fcntl.fcntl(self._descriptor, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            return False
        return True

    def _lease_holds(self) -> bool:
        """False once a writer waits; the kernel lets it wait for /proc/sys/fs/lease-break-time seconds."""
        return fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def _ended(offset: int, length: int) -> BadCiphertext:
    return BadCiphertext(f"truncated: no {length} bytes at offset {offset}")
