"""How much memory there is for this process, and whether the system ended one for want of it."""

from __future__ import annotations

import re
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_V2 = re.compile(r"^0::(/.*)$", re.MULTILINE)
_V1 = re.compile(r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(/.*)$", re.MULTILINE)
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_TOTAL = re.compile(r"^MemTotal:\s+(\d+) kB$", re.MULTILINE)
_NO_LIMIT = 1 << 60
"""What version 1 says where there is none is larger."""


def count_oom_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """How many processes of this one's control group the system has ended for memory; None if unknown.

    The whole machine's count stands in where the group's cannot be read. Both only ever grow.
    """
    for path in _event_files(proc, cgroups):
        found = _COUNT.search(_read(path))
        if found:
            return int(found[1])
    found = _COUNT.search(_read(proc / "vmstat"))
    return int(found[1]) if found else None


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Memory that can still be had: the machine's, or what is left of the control group's limit."""
    found = _AVAILABLE.search(_read(proc / "meminfo"))
    available = int(found[1]) * 1024 if found else 0
    for folder in _groups(_V2, proc, cgroups):
        limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            available = min(available, max(0, int(limit) - int(used)))
    return available


def total_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Memory that this process can have at most: the machine's, or a control group's limit."""
    found = _TOTAL.search(_read(proc / "meminfo"))
    limits = [int(found[1]) * 1024] if found else []
    files = [folder / "memory.max" for folder in _groups(_V2, proc, cgroups)]
    files += [folder / "memory.limit_in_bytes" for folder in _groups(_V1, proc, cgroups / "memory")]
    for text in (_read(file).strip() for file in files):
        if text.isdigit() and 0 < int(text) < _NO_LIMIT:
            limits.append(int(text))
    return min(limits, default=0)


def _event_files(proc: Path, cgroups: Path) -> list[Path]:
    return [
        *(folder / "memory.events" for folder in _groups(_V2, proc, cgroups)),
        *(folder / "memory.oom_control" for folder in _groups(_V1, proc, cgroups / "memory")),
    ]


def _groups(pattern: re.Pattern[str], proc: Path, root: Path) -> list[Path]:
    """This process's control group, those above it, and the root as a container sees it."""
    found = pattern.search(_read(proc / "self" / "cgroup"))
    own = Path(found[1].lstrip("/")) if found else Path()
    return [root / folder for folder in (own, *own.parents)] if found and own != Path() else [root]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
