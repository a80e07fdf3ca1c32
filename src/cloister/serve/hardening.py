"""What a process does to itself so that others on the machine cannot look into it or outlive it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

from cloister.errors import ConfigError

_PR_SET_PDEATHSIG = 1

UNMEASURED_INPUTS = (
    "LD_PRELOAD",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "PYTHONSTARTUP",
    "PYTHONINSPECT",
    "PYTHONHOME",
)
"""Variables that change which code runs without changing any measurement."""

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_OWN = "CLOISTER_"
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def refuse_unmeasured_inputs(environ: Mapping[str, str]) -> None:
    """Raise ``ConfigError`` if the environment injects code that no measurement covers."""
    found = [name for name in UNMEASURED_INPUTS if environ.get(name)]
    if found:
        raise ConfigError(
            f"protected mode refuses to start with {', '.join(found)} set: unmeasured code could run",
            hint="unset it, or run with mode = open",
        )


def swap_areas(swaps: str) -> list[str]:
    """Where memory may be written out, from the text of ``/proc/swaps``; compressed memory does not count."""
    names = [line.split()[0] for line in swaps.splitlines()[1:] if line.strip()]
    return [name for name in names if not name.startswith("/dev/zram")]


def die_with_parent(parent: int) -> None:
    """Be killed when the process ``parent`` ends; ends at once if it has already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def worker_environment(
    environ: Mapping[str, str], *, home: Path, threads: int, passed: str = ""
) -> dict[str, str]:
    """The whole environment of a worker: a list of what may pass, never what is left of the parent's.

    Args:
        home: its own folder. It is ``HOME`` too, unless the parent's is passed on.
        threads: for numerical libraries; what is passed on goes before it. 0 says nothing of it.
        passed: regular expression of names that pass besides. The server's own settings never do.
    """
    clean = {name: environ[name] for name in _PASSED_ON if name in environ}
    for name, value in environ.items() if passed else ():
        if re.fullmatch(passed, name) and not name.startswith(_OWN):
            clean[name] = value
    clean.setdefault("HOME", str(home))
    clean.update(TMPDIR=str(home), PYTHONDONTWRITEBYTECODE="1")
    for name in _THREAD_LIMITS if threads > 0 else ():
        clean.setdefault(name, str(threads))
    return clean


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise ConfigError(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")
