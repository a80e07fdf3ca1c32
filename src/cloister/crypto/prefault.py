"""Have the kernel provide the pages of a large buffer on a second core while the first one fills it.

Decryption writes 3 to 4 GB/s into memory that is there already, but a fresh buffer costs one page fault per
4 KiB, which in a virtual machine is several times the price of the decryption itself. ``madvise`` with
``MADV_POPULATE_WRITE`` (Linux 5.14) provides pages without changing their content and without Python's lock.
It is advice: where it fails, nothing is lost but time.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator

SMALLEST_BYTES = 32 << 20
"""Below this size a thread costs more than it saves."""

_STEP_BYTES = 8 << 20
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
_SAMPLES = 16


@contextlib.contextmanager
def prefaulted(buffer: memoryview) -> Iterator[None]:
    """Populate the whole pages of a writable buffer in the background, for as long as the block runs.

    Does nothing for a small buffer, for one whose pages are there, and outside Linux. The buffer is left
    alone once the block has ended.
    """
    start, length = _whole_pages(buffer)
    if length < SMALLEST_BYTES or not sys.platform.startswith("linux") or _resident(start, length):
        yield
        return
    stop = threading.Event()
    helper = threading.Thread(target=_populate, args=(start, length, stop), name="cloister-prefault")
    helper.start()
    try:
        yield
    finally:
        stop.set()
        helper.join()


def _whole_pages(buffer: memoryview) -> tuple[int, int]:
    """Address and length of the pages that lie entirely inside the buffer."""
    if buffer.nbytes < SMALLEST_BYTES:
        return 0, 0
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + buffer.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return start, end - start


def _resident(start: int, length: int) -> bool:
    """Whether each of a few pages, spread evenly, is in memory."""
    libc = ctypes.CDLL(None)
    answer = ctypes.c_ubyte()
    for sample in range(_SAMPLES):
        page = start + length * sample // _SAMPLES // mmap.PAGESIZE * mmap.PAGESIZE
        failed = libc.mincore(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(answer))
        if failed or not answer.value & 1:
            return False
    return True


def _populate(start: int, length: int, stop: threading.Event) -> None:
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    for offset in range(0, length, _STEP_BYTES):
        step = min(_STEP_BYTES, length - offset)
        if stop.is_set() or libc.madvise(
            ctypes.c_void_p(start + offset), ctypes.c_size_t(step), _MADV_POPULATE_WRITE
        ):
            return
