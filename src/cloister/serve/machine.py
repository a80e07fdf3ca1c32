"""Values of this machine for the metrics: processors, memory, disk. Read when asked for, from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
GIB = 1 << 30


class MachineValue(NamedTuple):
    """One value under TorchServe's name."""

    name: str
    unit: str
    value: float


class Machine:
    """Reads the machine; processor time is that since the last reading."""

    def __init__(self, proc: Path = Path("/proc"), disk: str = "/") -> None:
        self._proc = proc
        self._disk = disk
        self._busy, self._total = self._processor_times()

    def read(self) -> list[MachineValue]:
        """TorchServe's system metrics; the ones that cannot be read are left out."""
        values: list[MachineValue] = []
        try:
            values += self._processor()
            values += self._memory()
            values += self._storage()
        except (OSError, ValueError, KeyError, IndexError):
            pass  # a container may hide any of them
        return values

    def _processor(self) -> list[MachineValue]:
        busy, total = self._processor_times()
        spent, passed = busy - self._busy, total - self._total
        self._busy, self._total = busy, total
        return [
            MachineValue("CPUUtilization", "Percent", round(100.0 * spent / passed, 1) if passed else 0.0)
        ]

    def _processor_times(self) -> tuple[int, int]:
        try:
            line = (self._proc / "stat").read_text(encoding="ascii").splitlines()[0]
            times = [int(word) for word in line.split()[1:9]]
        except (OSError, ValueError, IndexError):
            return 0, 0
        idle = times[3] + times[4]
        return sum(times) - idle, sum(times)

    def _memory(self) -> list[MachineValue]:
        facts: dict[str, int] = {}
        for line in (self._proc / "meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            facts[name] = int(rest.split()[0]) * 1024
        total, available = facts["MemTotal"], facts["MemAvailable"]
        used = total - available
        return [
            MachineValue("MemoryUsed", "Megabytes", used / MIB),
            MachineValue("MemoryAvailable", "Megabytes", available / MIB),
            MachineValue("MemoryUtilization", "Percent", round(100.0 * used / total, 1)),
        ]

    def _storage(self) -> list[MachineValue]:
        facts = os.statvfs(self._disk)
        total, free = facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        share = round(100.0 * used / (used + free), 1) if used + free else 0.0
        return [
            MachineValue("DiskUsage", "Gigabytes", used / GIB),
            MachineValue("DiskUtilization", "Percent", share if total else 0.0),
            MachineValue("DiskAvailable", "Gigabytes", free / GIB),
        ]
