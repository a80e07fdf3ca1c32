"""``confine``: from an ordinary process to one that can only compute and answer.

Several layers keep each promise, so that a machine that lacks one still has the others:

========================= ========== ========== ======== ==================
promise                   namespaces Landlock   seccomp  limits
========================= ========== ========== ======== ==================
no network                net        TCP        sockets
no file but its own       mounts     files      metadata
no other process          IPC        signals    calls
no new process                       exec       calls    processes
bounded                   tmpfs size                     memory, files
========================= ========== ========== ======== ==================
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cloister.errors import ConfigError
from cloister.serve.sandbox import landlock
from cloister.serve.sandbox.kernel import PR_SET_NO_NEW_PRIVS, drop_capabilities, prctl
from cloister.serve.sandbox.limits import apply_limits, limit_memory, limit_threads, limits_data
from cloister.serve.sandbox.mounts import SHARED_MEMORY, enter_own_root
from cloister.serve.sandbox.namespaces import Entered, enter_namespaces
from cloister.serve.sandbox.plan import SandboxPlan, SandboxState, View
from cloister.serve.sandbox.syscalls import install_filter, worker_rules
from cloister.serve.sandbox.view import without_network_tables, worker_view

TCP_FROM_ABI = 4
SIGNALS_FROM_ABI = 6
NEWEST_ABI = 7
"""What later versions add is left out: a right that is not in our tables cannot be taken away."""


def confine(
    plan: SandboxPlan, *, model: Path, scratch: Path, keep: Sequence[int], gpu: bool = False
) -> SandboxState:
    """Give up, for ever, what inference does not need; returns what was really given up.

    Called before any of the model's code is loaded, while the process has a single thread.

    Args:
        model: folder that the worker may read.
        scratch: folder that it may write, and goes to. If it is not ``model`` it must be empty.
        keep: file descriptors to keep besides the standard ones.
        gpu: leave what an NVIDIA GPU needs.
    Raises:
        ConfigError: the plan requires more than this machine allows. The process must end.
    """
    if plan.level == "off":
        return SandboxState(memory=limit_memory(plan, gpu=gpu))
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise ConfigError("the sandbox must be entered before threads are started")
    limit_scratch = plan.scratch_bytes if model != scratch else 0
    view = worker_view(plan, model=model, scratch=scratch, gpu=gpu)
    apply_limits(plan)
    entered = enter_namespaces()
    if entered is Entered.BY_USER_NAMESPACE:
        limit_threads()
    namespaces = entered is not Entered.NONE
    own_root = namespaces and _try_own_root(view, scratch, limit_scratch)
    memory = limit_memory(plan, gpu=gpu)
    _close_all_but(keep)
    drop_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    os.chdir(scratch)
    if own_root:
        view = View(view.readable, (*view.writable, SHARED_MEMORY), view.devices)
    abi = _try_landlock(plan, view if namespaces else without_network_tables(view))
    filtered = _try_filter(plan, abi, gpu=gpu)
    state = describe(
        plan, namespaces=namespaces, own_root=own_root, abi=abi, filtered=filtered, memory=memory
    )
    if plan.level == "required" and state.missing():
        # One line, because that is what passes from a worker to whoever starts the server.
        raise ConfigError(
            f"the worker cannot be isolated here: no {' and no '.join(state.missing())} isolation"
            " (serve.sandbox = best-effort serves without it, and the evidence says so)"
        )
    return state


def describe(
    plan: SandboxPlan, *, namespaces: bool, own_root: bool, abi: int, filtered: bool, memory: str
) -> SandboxState:
    """The state that these layers add up to."""
    network = [("namespace", namespaces), ("seccomp", filtered), ("landlock", abi >= TCP_FROM_ABI)]
    files = [("mounts", own_root), (f"landlock:{abi}", abi > 0)]
    processes = [("others", filtered), ("new", filtered and not plan.processes)]
    size = f"{plan.scratch_bytes >> 20} MiB" + ("" if own_root else " a file")
    return SandboxState(
        network=_join(network),
        files=_join(files),
        processes=_join(processes),
        syscalls="allow-list" if filtered else "",
        memory=memory,
        scratch=size if plan.scratch_bytes else "",
    )


def _join(layers: Iterable[tuple[str, bool]]) -> str:
    return "+".join(name for name, there in layers if there)


def _try_own_root(view: View, scratch: Path, scratch_bytes: int) -> bool:
    try:
        enter_own_root(view, scratch=scratch, scratch_bytes=scratch_bytes)
    except OSError:
        return False
    return True


def _try_landlock(plan: SandboxPlan, view: View) -> int:
    """Version of Landlock that now holds; 0 for none."""
    version = min(landlock.abi(), NEWEST_ABI)
    if not version:
        return 0
    readable = landlock.RUN if plan.processes else landlock.READ
    rules = [
        *((path, readable) for path in view.readable),
        *((path, landlock.DEVICE) for path in view.devices),
        *((path, landlock.WRITE) for path in view.writable),
    ]
    try:
        landlock.restrict(rules, version)
    except OSError:
        return 0
    return version


def _try_filter(plan: SandboxPlan, abi: int, *, gpu: bool) -> bool:
    # Without Landlock's scope for signals, a worker that may signal its own processes may signal others' too.
    rules = worker_rules(
        pid=os.getpid(),
        processes=plan.processes,
        signals=plan.processes and abi >= SIGNALS_FROM_ABI,
        devices=gpu,
        memory_limit=limits_data(plan, gpu=gpu) and not plan.grouped,
    )
    try:
        install_filter(rules)
    except OSError:
        return False
    return True


def _close_all_but(keep: Iterable[int]) -> None:
    start = 3
    for descriptor in sorted(keep):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
