"""What a worker sees of the file system: Python, the system's libraries, its model, its own folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import cloister
from cloister.serve.sandbox.plan import SandboxPlan, View

_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
_CONFIGURATION = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/alternatives",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/OpenCL/vendors",
    "/etc/os-release",
)
_KERNEL = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/max_map_count",
    "/proc/sys/kernel/cap_last_cap",
    "/proc/sys/kernel/ngroups_max",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/threads-max",
    "/sys/devices/system",
    "/sys/kernel/mm/transparent_hugepage",
)
_OWN_FILES = (
    "auxv", "cgroup", "cmdline", "comm", "environ", "fd", "io", "limits", "maps", "mountinfo", "mounts",
    "numa_maps", "oom_score", "pagemap", "smaps", "smaps_rollup", "stat", "statm", "status",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_GPU_READABLE = ("/sys", "/proc/driver/nvidia", "/proc/devices", "/proc/modules")
_WIDE = ("dev", "dev/shm", "etc", "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "var")
_TOO_WIDE = frozenset((Path("/"), Path("/var/tmp"), *(Path("/", name) for name in _WIDE)))  # noqa: S108
"""Never opened as a whole, wherever a search path points."""


def worker_view(plan: SandboxPlan, *, model: Path, scratch: Path, gpu: bool = False) -> View:
    """The files of one worker.

    Args:
        model: the unpacked archive, read only unless it is ``scratch``.
        scratch: what the worker may write.
        gpu: the worker drives an NVIDIA GPU: its device files, and what its driver reads of the machine.
    """
    own = f"/proc/{os.getpid()}"
    wanted = [*_python_paths(), *_SYSTEM, *_CONFIGURATION, *_KERNEL, own, str(model), *plan.readable]
    devices = list(_DEVICES)
    if gpu:
        wanted += _GPU_READABLE
        devices += [str(path) for path in Path("/dev").glob("nvidia*")]
    return View(
        readable=_existing(wanted, refused=_TOO_WIDE if not gpu else _TOO_WIDE - {Path("/sys")}),
        writable=_existing([str(scratch)], refused=_TOO_WIDE),
        devices=_existing(devices, refused=_TOO_WIDE),
    )


def without_network_tables(view: View) -> View:
    """The view with single files of the process instead of its folder, which tells of connections too."""
    own = Path(f"/proc/{os.getpid()}")
    files = tuple(own / name for name in _OWN_FILES if (own / name).exists())
    return View((*(path for path in view.readable if path != own), *files), view.writable, view.devices)


def _python_paths() -> list[str]:
    """The interpreter's own folders, and those it imports from: an editable install is somewhere else."""
    package = Path(cloister.__file__).resolve().parent
    prefixes = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    return [*prefixes, str(package), *(path for path in sys.path if path)]


def _existing(paths: Iterable[str], *, refused: frozenset[Path]) -> tuple[Path, ...]:
    found: dict[Path, None] = {}
    for text in paths:
        path = Path(text)
        if path.is_absolute() and path.exists() and path not in refused and path.resolve() not in refused:
            found[path] = None
    return tuple(found)
