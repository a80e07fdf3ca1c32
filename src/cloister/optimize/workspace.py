"""The folder that a search works in: private, in memory where that is possible, and gone at the end.

What is in it are the weights of somebody's model. It is removed when the search ends, also by Ctrl-C or
SIGTERM; one whose process was killed is removed by the next search of the same user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from cloister.errors import ConfigError

PREFIX = "cloister-optimize-"
_LOCK = "lock"
_MEMORY = Path("/dev/shm")  # noqa: S108 (a folder of our own is made in it, for this user alone)


class Workspace:
    """A folder of mode 0700, held by a lock as long as its process lives."""

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or default_parent()
        sweep(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            raise ConfigError(f"cannot make a folder in {parent}: {error.strerror}") from error
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Runs at the end of the interpreter too, so that an optimizer nobody closes leaves nothing behind.
        self._finalizer = weakref.finalize(self, _remove, self.path, self._lock)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, name: str) -> Path:
        """A folder of this name within; made if it is not there."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def close(self) -> None:
        """Remove everything. May be called twice."""
        self._finalizer()


def default_parent() -> Path:
    """Memory, where there is a file system in it that can be written to."""
    if "TMPDIR" not in os.environ and _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        return _MEMORY
    return Path(tempfile.gettempdir())


def sweep(parent: Path) -> int:
    """Remove the folders of this user whose processes are gone; returns how many there were."""
    removed = 0
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            _remove(path, lock)
            removed += 1
    return removed


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
