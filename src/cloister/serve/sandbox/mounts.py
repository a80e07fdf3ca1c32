"""A root file system of a worker's own, in its own mount namespace: what is not in it cannot be named.

An empty tmpfs; the files of the view mounted on it, read only but for the scratch folder; ``pivot_root``.
The scratch folder is a tmpfs of its own where its size is to be limited: it ends with the worker.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from cloister.serve.sandbox.kernel import mount, system_call, unmount
from cloister.serve.sandbox.plan import View

_NO_SUID, _NO_DEVICES, _NO_EXEC = 0x2, 0x4, 0x8
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_ATTR_READ_ONLY = 0x1
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_DETACH = 2
_MAX_LINKS = 40
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a new one)
"""Empty and the worker's alone. Without one there are no semaphores, and scikit-learn uses one thread."""
SHARED_MEMORY_BYTES = 64 << 20
_MAX_FILES = 1 << 16
"""In the scratch folder: an empty file costs memory too."""
_WRITABLE_ELSEWHERE = ("/tmp", "/var/tmp")  # noqa: S108  (these become links into the scratch folder)


def enter_own_root(view: View, *, scratch: Path, scratch_bytes: int) -> None:
    """Make and enter the new root, and go to ``scratch``.

    The caller is alone in its mount namespace and has a single thread.

    Args:
        scratch: one of the writable folders. It must be empty if its size is to be limited.
        scratch_bytes: 0 mounts the folder itself, whatever is in it.
    Raises:
        OSError: the kernel refused. Mounts may have been made in this namespace, but the root is the old one.
    """
    mount("none", "/", None, _RECURSIVE | _PRIVATE)
    layout = _Layout(view, scratch)
    root = str(scratch)  # any folder will do: in the new root, nobody sees what is mounted over it here
    try:
        mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,mode=755")
        try:
            layout.build(Path(root), scratch_bytes)
            os.chdir(root)
            # The new root is put over the old one at the same place, where it is then taken away.
            system_call("pivot_root", b".\0", b".\0")
        except OSError:
            unmount(root, _DETACH)
            raise
    finally:
        layout.close()
    unmount(".", _DETACH)
    os.chdir("/")
    _set_read_only("/", recursive=False)
    os.chdir(scratch)


class _Layout:
    """Which files and symbolic links the new root has, with the files held open."""

    def __init__(self, view: View, scratch: Path) -> None:
        self._scratch = scratch
        self._links: dict[Path, str] = {}
        own = f"/proc/{os.getpid()}"
        self._links.update(
            {Path("/proc/self"): own, Path("/proc/thread-self"): f"{own}/task/{os.getpid()}"}
            | {Path(path): str(scratch) for path in _WRITABLE_ELSEWHERE if Path(path) not in scratch.parents}
        )
        self._devices = {self._follow(path) for path in view.devices}
        writable = {self._follow(path) for path in view.writable}
        readable = {self._follow(path) for path in view.readable}
        # What lies below another one comes with it.
        self._readable = {path for path in readable if not readable & set(path.parents)} - writable
        self._writable = writable
        self._held = {
            path: os.open(path, os.O_PATH | os.O_CLOEXEC)
            for path in self._readable | self._writable | self._devices
        }

    def build(self, root: Path, scratch_bytes: int) -> None:
        _mount_memory(_beneath(root, SHARED_MEMORY), SHARED_MEMORY_BYTES)
        for path in _outer_first(self._readable):
            target = self._mount(root, path)
            _set_read_only(target)
        for path in _outer_first(self._devices):
            self._mount(root, path)
        for path in _outer_first(self._writable):
            if path == self._follow(self._scratch) and scratch_bytes:
                _mount_memory(_beneath(root, path), scratch_bytes)
            else:
                self._mount(root, path)
        for link, target in self._links.items():
            place = _beneath(root, link)
            if not os.path.lexists(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(target)

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def _mount(self, root: Path, path: Path) -> str:
        descriptor = self._held[path]
        target = _beneath(root, path)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                target.mkdir()
            else:
                target.touch()
        mount(f"/proc/self/fd/{descriptor}", str(target), None, _BIND | _RECURSIVE)
        return str(target)

    def _follow(self, path: Path) -> Path:
        """Where ``path`` really is. The symbolic links on the way are to be in the new root as well."""
        done, rest = Path("/"), list(path.parts[1:])
        for _ in range(_MAX_LINKS):
            while rest and not (done / rest[0]).is_symlink():
                name = rest.pop(0)
                done = done.parent if name == ".." else done / name
            if not rest:
                return done
            link = done / rest.pop(0)
            target = str(link.readlink())
            self._links.setdefault(link, target)
            whole = Path(os.path.normpath(done / target))
            done, rest = Path("/"), [*whole.parts[1:], *rest]
        raise OSError(f"{path}: too many symbolic links")


def _mount_memory(place: Path, size: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    flags = _NO_SUID | _NO_DEVICES | _NO_EXEC
    mount("tmpfs", str(place), "tmpfs", flags, f"size={size},nr_inodes={_MAX_FILES},mode=700")


def _outer_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: len(path.parts))


def _beneath(root: Path, path: Path) -> Path:
    return root.joinpath(*path.parts[1:])


def _set_read_only(target: str, *, recursive: bool = True) -> None:
    attributes = struct.pack("=QQQQ", _ATTR_READ_ONLY | _NO_SUID | _NO_DEVICES, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    system_call("mount_setattr", _AT_FDCWD, target.encode(), flags, attributes, len(attributes))
