"""Anonymous files in memory: plaintext that has a file descriptor and never a name on a disk."""

from __future__ import annotations

import fcntl
import io
import mmap
import os

from cloister.errors import MalformedInput

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def fill_memfd(name: str, source: io.RawIOBase, size: int) -> int:
    """A memfd with exactly ``size`` bytes read from ``source``, sealed against any change.

    The bytes are read straight into the memfd's pages, so that no second copy of the plaintext exists.

    Args:
        name: shown in /proc only; must say nothing secret.
    Raises:
        MalformedInput: ``source`` ends before ``size`` bytes.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        if size:
            _fill(descriptor, source, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _fill(descriptor: int, source: io.RawIOBase, size: int) -> None:
    # Nothing is released in a finally clause: the traceback of an error in the source still refers to slices
    # of the pages, which go with it, and closing them before would raise in the error's place.
    pages = mmap.mmap(descriptor, size)
    view = memoryview(pages)
    filled = 0
    while filled < size:
        part = view[filled:]
        count = source.readinto(part)
        part.release()
        if not count:
            raise MalformedInput(f"source ended after {filled} of {size} bytes")
        filled += count
    view.release()
    pages.close()
