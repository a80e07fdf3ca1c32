"""Limits on what a worker may use: files, sizes, memory."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from cloister.serve.sandbox.kernel import dumpable
from cloister.serve.sandbox.plan import SandboxPlan

_FIRST_TO_GO = 500
_THREADS = 4096


def apply_limits(plan: SandboxPlan) -> None:
    """Lower this process's limits of dumps, open files and sizes, for ever.

    Where memory runs out, the kernel ends this process before the server.
    """
    with dumpable(), suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(f"{_FIRST_TO_GO}", encoding="ascii")
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, plan.open_files)
    _lower(resource.RLIMIT_MSGQUEUE, 0)
    if plan.scratch_bytes:
        _lower(resource.RLIMIT_FSIZE, plan.scratch_bytes)


def limit_threads() -> None:
    """Lower the limit of threads and processes, for ever.

    Only in a user namespace of its own is it this worker that is counted, not all that its user runs. The
    kernel does not hold root to it.
    """
    _lower(resource.RLIMIT_NPROC, _THREADS)


def limit_memory(plan: SandboxPlan) -> str:
    """Lower this process's limit of memory; returns it in words, empty if there is none.

    What is limited is private and writable (``RLIMIT_DATA``). The address space is no measure of it: PyTorch
    reserves many times what it uses.
    """
    if not plan.memory_bytes:
        return ""
    _lower(resource.RLIMIT_DATA, plan.memory_bytes)
    return f"{plan.memory_bytes >> 20} MiB"


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(kind, (value, value))
