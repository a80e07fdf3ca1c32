"""Peak memory of a family of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from rig.memory import PeakWatch, read_shared, read_usage
from rig.servers import family_of

MIB = 2**20
GROW = (
    "import time; held = bytearray(64 << 20); held[::4096] = b'1' * len(held[::4096]); print(1, flush=True); "
)


def test_children_count() -> None:
    """What a child allocates is in the sum, and it is gone with the child."""
    before = read_usage(os.getpid(), read_shared()).private
    with subprocess.Popen([sys.executable, "-c", GROW + "input()"], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in family_of(os.getpid())
        grown = read_usage(os.getpid(), read_shared()).private - before
        child.communicate("\n")
    assert 60 * MIB < grown < 120 * MIB


def test_a_peak_outlives_its_cause() -> None:
    """The largest sum is kept after the memory was given back."""
    code = GROW + "input(); del held; print(2, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with PeakWatch(child.pid, read_shared(), every_s=0.01) as watch:
            child.stdout.readline()
            assert _soon(lambda: watch.peak.private > 60 * MIB)
            child.stdin.write("\n")
            child.stdout.readline()
            assert _soon(lambda: watch.last.private < 32 * MIB)
        child.communicate("\n")
    assert watch.peak.private > 60 * MIB


def _soon(happened: Callable[[], bool]) -> bool:
    """Whether it happens in time, on a machine that may be busy."""
    until = time.monotonic() + 30
    while not happened() and time.monotonic() < until:
        time.sleep(0.01)
    return happened()


def test_shared_memory_that_nobody_maps_is_seen() -> None:
    """A memfd with content is part of the machine's shared memory."""
    before = read_shared()
    descriptor = os.memfd_create("bench")
    try:
        os.write(descriptor, bytes(64 * MIB))
        grown = read_usage(os.getpid(), before).shared
    finally:
        os.close(descriptor)
    assert grown > 32 * MIB
