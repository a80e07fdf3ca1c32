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


def limits_data(plan: SandboxPlan, *, gpu: bool) -> bool:
    """Whether ``limit_memory`` lowers this process's own limit."""
    # What a GPU's driver maps is private and writable, and no memory.
    return plan.memory_bytes > 0 and not (gpu and plan.memory_is_default)


def limit_memory(plan: SandboxPlan, *, gpu: bool = False) -> str:
    """Lower this process's limit of memory; returns what limits it in words, empty if nothing does.

    What is limited is private and writable (``RLIMIT_DATA``). The address space is no measure of it: PyTorch
    reserves many times what it uses.
    """
    by = []
    if limits_data(plan, gpu=gpu):
        _lower(resource.RLIMIT_DATA, plan.memory_bytes)
        by.append("data")
    if plan.memory_bytes and plan.grouped:
        by.append("cgroup")
    return f"{plan.memory_bytes >> 20} MiB ({'+'.join(by)})" if by else ""


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(kind, (value, value))
