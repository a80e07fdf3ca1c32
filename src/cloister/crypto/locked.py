"""Secrets in memory that is never written to disk: neither to swap nor into a core dump.

Each secret has pages of its own, outside Python's heap: locked (``mlock``), left out of dumps
(``MADV_DONTDUMP``), zero in a forked child (``MADV_WIPEONFORK``), and overwritten when it is dropped. What is
done with a secret while it is lent out is the borrower's business: an API that needs ``bytes`` makes a copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import threading
from collections.abc import Iterator

from cloister.errors import ConfigError, MalformedInput

_MADV_WIPEONFORK = 18
_PR_SET_DUMPABLE = 4


class LockedSecret:
    """One secret of fixed length. Write it once through ``fill``, read it through ``lend``.

    Safe to use from many threads. ``drop`` takes it away from new borrowers at once, and overwrites it when
    the last one has given it back.

    Args:
        length: bytes, at least one.
        required: whether memory that cannot be locked is an error; otherwise it is used unlocked.
    Raises:
        ConfigError: the memory cannot be locked, and is required to be.
    """

    def __init__(self, length: int, *, required: bool = True) -> None:
        if length < 1:
            raise MalformedInput("a secret has at least one byte")
        self._length = length
        self._pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._guard = threading.Lock()
        self._borrowers = 0
        self._dropped = False
        try:
            self.locked = _lock(self._pages, required=required)
        except BaseException:
            self._pages.close()
            raise

    @classmethod
    def of(cls, secret: bytes | bytearray | memoryview, *, required: bool = True) -> LockedSecret:
        """A locked copy of bytes that are somewhere already."""
        made = cls(len(secret), required=required)
        with made.fill() as pages:
            pages[:] = secret
        return made

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"LockedSecret({self._length} bytes, redacted)"

    @contextlib.contextmanager
    def fill(self) -> Iterator[memoryview]:
        """The writable bytes, for whoever makes the secret."""
        with self._borrowed() as pages:
            yield pages

    @contextlib.contextmanager
    def lend(self) -> Iterator[memoryview]:
        """The bytes, read-only, for as long as the block runs.

        Raises:
            LookupError: the secret was dropped.
        """
        with self._borrowed() as pages, pages.toreadonly() as view:
            yield view

    def drop(self) -> None:
        """Lend no more, and overwrite the bytes as soon as nobody has them."""
        with self._guard:
            self._dropped = True
            if not self._borrowers:
                self._wipe()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[memoryview]:
        with self._guard:
            if self._dropped:
                raise LookupError("the secret was dropped")
            self._borrowers += 1
        view = memoryview(self._pages)
        try:
            with view[: self._length] as pages:
                yield pages
        finally:
            view.release()
            self._give_back()

    def _give_back(self) -> None:
        with self._guard:
            self._borrowers -= 1
            if self._dropped and not self._borrowers:
                self._wipe()

    def _wipe(self) -> None:
        if not self._pages.closed:
            self._pages[:] = bytes(len(self._pages))
            self._pages.close()  # unmapping also unlocks

    def __del__(self) -> None:
        # A view that is still out keeps the pages; they are then freed with it.
        with contextlib.suppress(AttributeError, BufferError):
            self._wipe()


def forbid_dumps() -> None:
    """No core dump, and no ptrace or /proc/<pid>/mem by another process of this user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0) != 0:
        raise ConfigError(f"prctl({_PR_SET_DUMPABLE}) failed: {os.strerror(ctypes.get_errno())}")


def _lock(pages: mmap.mmap, *, required: bool) -> bool:
    """Lock the pages and keep them out of dumps and children; whether they could be locked."""
    pages.madvise(mmap.MADV_DONTDUMP)
    pages.madvise(_MADV_WIPEONFORK)
    library = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    if library.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(pages))) == 0:
        return True
    reason = os.strerror(ctypes.get_errno())
    if not required:
        return False
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    raise ConfigError(
        f"cannot lock memory for a secret: {reason}; this process may lock {limit} bytes",
        hint="raise the limit (ulimit -l, or LimitMEMLOCK= of systemd)",
    )
