"""System calls that Python has no function for, and the attributes of processes that go with them."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_CAPABILITY_VERSION_3 = 0x20080522
_NUMBERS = {
    # Name: (x86-64, aarch64).
    "capset": (126, 91),
    "pivot_root": (155, 41),
    "seccomp": (317, 277),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_library = ctypes.CDLL(None, use_errno=True)


def machine() -> str:
    """This process's machine as the tables name it; a 32-bit process is none of them."""
    return platform.machine() if struct.calcsize("P") == 8 else ""


def system_call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The call's result.

    Raises:
        OSError: the kernel refused it, or this machine is not in the table.
    """
    column = {"x86_64": 0, "aarch64": 1}.get(machine())
    if column is None:
        raise OSError(38, f"{name}: unknown machine {platform.machine()}")
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_library.syscall(ctypes.c_long(_NUMBERS[name][column]), *converted))
    return checked(name, result)


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    """``prctl`` with up to two arguments; raises ``OSError``."""
    result = _library.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), 0, 0)
    return checked(f"prctl {option}", int(result))


@contextmanager
def dumpable() -> Iterator[None]:
    """Own this process's files below /proc, which belong to root while it may not be dumped."""
    prctl(PR_SET_DUMPABLE, 1)
    try:
        yield
    finally:
        prctl(PR_SET_DUMPABLE, 0)


def unshare(flags: int) -> None:
    """Leave the namespaces that ``flags`` name; raises ``OSError``."""
    checked("unshare", int(_library.unshare(ctypes.c_int(flags))))


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """``mount``; raises ``OSError``."""
    result = _library.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    checked(f"mount on {target}", int(result))


def unmount(target: str, flags: int) -> None:
    """``umount2``; raises ``OSError``."""
    checked(f"unmount {target}", int(_library.umount2(target.encode(), ctypes.c_int(flags))))


def drop_capabilities() -> None:
    """Give up every capability, for ever: bounding, ambient, inheritable, permitted and effective set."""
    for number in range(64):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:
            break  # past the last one, or not allowed to: no new privileges come by exec either way
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    system_call("capset", header, bytes(24))


def checked(what: str, result: int) -> int:
    """``result`` unless it is -1, which becomes an ``OSError`` with the C library's error number."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
