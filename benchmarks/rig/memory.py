"""Peak memory of a family of processes, with the shared memory that none of them maps.

=========== =================================================================================================
part        what it is
=========== =================================================================================================
private     anonymous pages: proportional share (`Pss_Anon`) of the process and all its descendants
files       mapped pages of files, shared ones by share (`Pss_File`)
shared      growth of the machine's shared memory (`Shmem`): tmpfs and memfd, mapped or not
=========== =================================================================================================

The last one belongs to the whole machine: measure while nothing else fills a tmpfs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rig.servers import family_of


@dataclass(frozen=True)
class Usage:
    """Bytes."""

    private: int = 0
    files: int = 0
    shared: int = 0

    @property
    def total(self) -> int:
        return self.private + self.files + self.shared


def read_shared() -> int:
    """The machine's shared memory in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/meminfo has no Shmem")


def read_usage(pid: int, shared_before: int) -> Usage:
    """What a process and all its descendants use now."""
    private = files = 0
    for member in family_of(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()[1:]
            fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
            private += int(fields["Pss_Anon"].split()[0]) * 1024
            files += int(fields["Pss_File"].split()[0]) * 1024
    return Usage(private, files, max(0, read_shared() - shared_before))


class PeakWatch:
    """Looks again and again until it is stopped, and keeps the largest total."""

    def __init__(self, pid: int, shared_before: int, *, every_s: float = 0.1) -> None:
        self.peak = self.last = Usage()
        self._pid, self._before, self._every_s = pid, shared_before, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            began = time.monotonic()
            self.last = read_usage(self._pid, self._before)
            if self.last.total > self.peak.total:
                self.peak = self.last
            # Reading the maps of gigabytes takes a while: never more than a tenth of the time.
            self._done.wait(max(self._every_s, 9 * (time.monotonic() - began)))
