"""A control group (v2) of its own for each worker: its memory, its processes, and an end to all of them.

Only below a group that was delegated: systemd marks it (``Delegate=yes``), in a container with a namespace
of control groups it is the root. A group with processes cannot hand controllers to groups below it, so this
process moves into one beside the workers'. Where any of that is not to be had, workers have the limits that a
process can set itself (``sandbox.limits``).

Source: Linux Documentation/admin-guide/cgroup-v2.rst, "Delegation", "No Internal Process Constraint".
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path

from cloister.errors import WorkerLost
from cloister.serve.log import log
from cloister.serve.memory_watch import CGROUPS, PROC

OWN = "cloister-server"
WORKER = "cloister-worker"
CONTROLLERS = "+memory +pids"
MAX_PROCESSES = 4096
_PLACE = re.compile(r"^0::(/.*)$", re.MULTILINE)
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_MARKS = ("user.delegate", "trusted.delegate")


class WorkerGroup:
    """The group of one worker."""

    def __init__(self, path: Path, left: list[Path]) -> None:
        self._path = path
        self._left = left

    def enter(self, pid: int) -> None:
        """Put a process into it, before that has started any of its own.

        Raises:
            WorkerLost: it cannot be put there.
        """
        try:
            (self._path / "cgroup.procs").write_text(f"{pid}", encoding="ascii")
        except OSError as error:
            raise WorkerLost(f"a worker cannot be put into its control group: {error.strerror}") from error

    def out_of_memory(self) -> bool:
        """Whether the kernel has ended a process of it for want of memory."""
        with contextlib.suppress(OSError):
            found = _KILLS.search((self._path / "memory.events").read_text(encoding="ascii"))
            return found is not None and int(found[1]) > 0
        return False

    def close(self) -> None:
        """End what is left in it, and remove it; later, if the kernel needs a moment for what has ended."""
        with contextlib.suppress(OSError):
            (self._path / "cgroup.kill").write_text("1", encoding="ascii")
        try:
            self._path.rmdir()
        except OSError:
            self._left.append(self._path)


class WorkerGroups:
    """Makes groups for workers. ``open`` says whether there can be any."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._numbers = itertools.count(1)
        self._left: list[Path] = []
        """Groups that were not empty yet when their worker had ended."""

    @classmethod
    def open(cls, proc: Path = PROC, root: Path = CGROUPS) -> WorkerGroups | None:
        """Take this process's own group for it; None where it is not delegated, or shared with others."""
        try:
            place = _PLACE.search((proc / "self" / "cgroup").read_text(encoding="utf-8"))
            parent = root / place[1].lstrip("/") if place else root
            if place is None or not _is_delegated(place[1], parent):
                return None
            there = set((parent / "cgroup.controllers").read_text(encoding="ascii").split())
            if not there >= {"memory", "pids"}:
                return None
            own = {str(os.getpid())}
            if set((parent / "cgroup.procs").read_text(encoding="ascii").split()) != own:
                return None
            _share_out(parent)
        except OSError:
            return None
        log.info("workers have control groups of their own", path=str(parent))
        return cls(parent)

    def make(self, *, memory_bytes: int) -> WorkerGroup:
        """An empty group. Nothing in it is ever swapped out, and it ends as a whole.

        Args:
            memory_bytes: most memory, files in memory included; 0 means any amount.
        Raises:
            WorkerLost: it cannot be made.
        """
        self._sweep()
        path = self._parent / f"{WORKER}-{os.getpid()}-{next(self._numbers)}"
        limits = {
            "memory.max": str(memory_bytes) if memory_bytes else "max",
            "memory.oom.group": "1",
            "pids.max": str(MAX_PROCESSES),
        }
        try:
            path.mkdir()
            for name, value in limits.items():
                (path / name).write_text(value, encoding="ascii")
            with contextlib.suppress(FileNotFoundError):  # not there on a machine without swap accounting
                (path / "memory.swap.max").write_text("0", encoding="ascii")
        except OSError as error:
            raise WorkerLost(f"a worker's control group cannot be made: {error.strerror}") from error
        return WorkerGroup(path, self._left)

    def close(self) -> None:
        """Put everything back as it was found, as far as that can be done."""
        self._sweep()
        with contextlib.suppress(OSError):
            (self._parent / "cgroup.subtree_control").write_text("-memory -pids", encoding="ascii")
            (self._parent / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
            (self._parent / OWN).rmdir()

    def _sweep(self) -> None:
        left, self._left[:] = list(self._left), []
        for path in left:
            try:
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                self._left.append(path)


def _is_delegated(place: str, folder: Path) -> bool:
    if place == "/" and not (folder / "cgroup.type").exists():
        return False  # the machine's own root, which has no type: nobody gave it to a server
    if place == "/":
        return os.access(folder / "cgroup.procs", os.W_OK)
    for mark in _MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, mark) == b"1":
                return True
    return False


def _share_out(parent: Path) -> None:
    """Move this process down, and hand the controllers to the groups below; undone where that fails."""
    own = parent / OWN
    own.mkdir(exist_ok=True)
    try:
        (own / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        (parent / "cgroup.subtree_control").write_text(CONTROLLERS, encoding="ascii")
    except OSError:
        with contextlib.suppress(OSError):
            (parent / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
            own.rmdir()
        raise
