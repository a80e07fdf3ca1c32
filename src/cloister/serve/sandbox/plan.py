"""What a worker's sandbox is to be, and what it came to be."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from cloister.serve.memory_watch import total_bytes
from cloister.settings import ServeSettings

DEFAULT_PERCENT = 80
"""Of the memory that there is, for one worker where nobody chose: so that no model takes all of it."""
Level = Literal["required", "best-effort", "off"]


class SandboxPlan(msgspec.Struct, array_like=True, frozen=True):
    """What the frontend asks of a worker; part of its first message."""

    level: Level = "off"
    processes: bool = False
    """The handler may start processes and programs."""
    memory_bytes: int = 0
    """Most private memory; 0 means any amount."""
    memory_is_default: bool = False
    """Nobody chose it: it is left off where it could be in the way, with a GPU."""
    grouped: bool = False
    """The frontend has put the worker into a control group of its own."""
    scratch_bytes: int = 0
    """Most that it may write into its own folder; 0 means any amount."""
    open_files: int = 1024
    readable: tuple[str, ...] = ()
    """Paths that it may read besides its model, Python and the system's libraries."""


NO_SANDBOX = SandboxPlan()


class SandboxState(msgspec.Struct, array_like=True, frozen=True):
    """What was really applied, layer by layer; a layer that is not there is an empty string."""

    network: str = ""
    """Of ``namespace``, ``seccomp``, ``landlock``."""
    files: str = ""
    """Of ``mounts`` (only these files are there) and ``landlock:<ABI>``."""
    processes: str = ""
    """What it is kept from: of ``others`` (signals, memory, /proc) and ``new`` (fork, exec)."""
    syscalls: str = ""
    """``allow-list``."""
    memory: str = ""
    """``<n> MiB`` and by what: of ``data`` (``RLIMIT_DATA``) and ``cgroup``."""
    scratch: str = ""
    """``<n> MiB``, or ``<n> MiB a file`` where only single files can be limited."""

    def render(self) -> str:
        """The state as evidence carries it: the same text for the same state, ``none`` for no sandbox."""
        if not (self.network or self.files or self.processes or self.syscalls):
            return "none"
        return "; ".join(f"{name}={getattr(self, name) or 'none'}" for name in self.__struct_fields__)

    def missing(self) -> list[str]:
        """What ``required`` demands and this state does not have."""
        return [name for name in ("network", "files", "syscalls") if not getattr(self, name)]


class View(msgspec.Struct, frozen=True):
    """The files that a worker is to see."""

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    devices: tuple[Path, ...]


def plan_for(settings: ServeSettings) -> SandboxPlan:
    """What these settings ask of every worker on this machine."""
    by_default = settings.worker_memory_mb < 0
    level: Level
    if settings.sandbox == "auto":
        level = "required" if settings.mode == "protected" else "off"
    else:
        level = settings.sandbox
    return SandboxPlan(
        level=level,
        processes=settings.sandbox_processes,
        memory_bytes=total_bytes() * DEFAULT_PERCENT // 100
        if by_default
        else settings.worker_memory_mb << 20,
        memory_is_default=by_default,
        scratch_bytes=settings.worker_scratch_mb << 20,
        readable=settings.sandbox_paths,
    )
