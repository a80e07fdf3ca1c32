"""New namespaces for a worker: a network without any interface, IPC, host name and mounts of its own.

Root leaves its namespaces directly; everybody else by way of a new user namespace, in which the worker keeps
its own user and group numbers. Where neither is allowed, the other layers stand alone.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from cloister.serve.sandbox.kernel import dumpable, unshare

_NEW_MOUNTS = 0x00020000
_NEW_HOST_NAME = 0x04000000
_NEW_IPC = 0x08000000
_NEW_USER = 0x10000000
_NEW_NETWORK = 0x40000000

_ALWAYS = _NEW_NETWORK | _NEW_IPC | _NEW_HOST_NAME | _NEW_MOUNTS


class Entered(Enum):
    """How far it came."""

    NONE = 0
    DIRECTLY = 1
    BY_USER_NAMESPACE = 2


def enter_namespaces() -> Entered:
    """Put this process, which has one thread, into namespaces of its own, as far as that is allowed."""
    try:
        unshare(_ALWAYS)
    except OSError:
        # Tried out first: a user namespace without numbers for its user cannot be left again.
        if not _succeeds_in_child():
            return Entered.NONE
        _enter_by_user_namespace()
        return Entered.BY_USER_NAMESPACE
    return Entered.DIRECTLY


def _enter_by_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    unshare(_NEW_USER | _ALWAYS)
    with dumpable():
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def _succeeds_in_child() -> bool:
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        try:
            _enter_by_user_namespace()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
