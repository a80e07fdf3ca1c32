"""Private folders in memory for archives that must be unpacked, and the proof that they are in memory.

A folder is made owner-only and kept under an advisory lock for as long as its process lives. The lock, not a
process number, says whether a folder found at start was left behind: it is right across PID namespaces and
cannot be fooled by a number that was given out again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path

from cloister.errors import ConfigError

PREFIX = "cloister-serve-"
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
MOUNTINFO = Path("/proc/self/mountinfo")


def filesystem_type(path: Path, mountinfo: str) -> str:
    """Type of the file system that holds ``path``, from the text of ``/proc/self/mountinfo``.

    Source: proc(5): field 5 is the mount point with octal escapes, the first field after ``-`` the type. The
    last matching line wins, because a later mount hides an earlier one.
    """
    wanted = path.resolve()
    depth, found = -1, ""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        columns = fields.split(" ")
        if len(columns) < 5 or not rest:
            continue
        mount = Path(columns[4].encode().decode("unicode_escape"))
        if (wanted == mount or mount in wanted.parents) and len(mount.parts) >= depth:
            depth, found = len(mount.parts), rest.split(" ", 1)[0]
    return found


def require_memory(path: Path) -> None:
    """Refuse a folder that is not on a file system in memory.

    Raises:
        ConfigError: it is on another file system, or does not exist.
    """
    if not path.is_dir():
        raise ConfigError(f"serve.tmpfs: {path} is not a folder")
    found = filesystem_type(path, MOUNTINFO.read_text(encoding="utf-8"))
    if found not in IN_MEMORY:
        raise ConfigError(
            f"serve.tmpfs: {path} is on {found or 'an unknown file system'}, expected tmpfs",
            hint="set serve.tmpfs to a tmpfs such as /dev/shm",
        )


class PrivateFolder:
    """A folder that only this user can enter, gone when it is closed; a context manager."""

    def __init__(self, parent: Path) -> None:
        self.path, self._lock = _make_locked(parent)

    def make(self, name: str) -> Path:
        """A new, empty, owner-only folder inside."""
        path = self.path / f"{name}-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        return path

    def close(self) -> None:
        """Remove the folder with all that is in it. May be called twice."""
        if self._lock < 0:
            return
        remove_folder(self.path)
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, read-only folders too; what cannot be removed is left."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def remove_stale(parent: Path) -> int:
    """Remove this user's folders whose process is gone; returns how many there were."""
    removed = 0
    for path in parent.glob(f"{PREFIX}*"):
        try:
            if path.is_symlink() or path.lstat().st_uid != os.geteuid():
                continue
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its process is alive
        else:
            remove_folder(path)
            removed += 1
        finally:
            os.close(folder)
    return removed


def _make_locked(parent: Path) -> tuple[Path, int]:
    while True:
        path = parent / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            path.mkdir(mode=0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not parent.is_dir():
                raise ConfigError(f"serve.tmpfs: {parent} is not a folder") from None
            continue
        except OSError as error:
            raise ConfigError(f"serve.tmpfs: cannot make a folder in {parent}: {error.strerror}") from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another server's remove_stale may have come between mkdir and flock.
        if path.is_dir() and path.stat().st_ino == os.fstat(lock).st_ino:
            return path, lock
        os.close(lock)
