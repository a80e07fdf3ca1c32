"""Landlock: a process's own list of the files, ports and peers that it may still reach.

Direct system calls: the packages for it are young and few use them, and the whole interface is three calls.
What it does not restrict is left to the filter of system calls: metadata (``stat``, ``chmod``, extended
attributes), UDP and raw sockets, sockets that have a path.

Source: Linux ``include/uapi/linux/landlock.h``, ABI 1 to 7. Little-endian machines only, as the filter.

=================== ====== ==== =========================
structure           offset size field
=================== ====== ==== =========================
ruleset_attr        0      8    handled_access_fs
ruleset_attr        8      8    handled_access_net (ABI 4)
ruleset_attr        16     8    scoped (ABI 6)
path_beneath_attr   0      8    allowed_access
path_beneath_attr   8      4    parent_fd
=================== ====== ==== =========================
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator
from enum import IntFlag
from pathlib import Path

from cloister.serve.sandbox.kernel import system_call

_VERSION = 1
_PATH_BENEATH = 1
_SCOPE = 0b11
"""Abstract UNIX sockets and signals."""
_NET = 0b11
"""Binding and connecting TCP."""


class Access(IntFlag):
    """Rights over files; a directory's hold for all beneath it."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
RUN = READ | Access.EXECUTE
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV
WRITE = (
    READ
    | Access.WRITE_FILE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_FIFO
    | Access.MAKE_SYM
    | Access.REFER
    | Access.TRUNCATE
)
_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


def abi() -> int:
    """Version of the kernel's Landlock; 0 if it has none, or it is off."""
    try:
        return system_call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def handled(version: int) -> Access:
    """Every right over files that Landlock of this version can take away."""
    first = {1: Access.MAKE_SYM, 2: Access.REFER, 3: Access.TRUNCATE, 4: Access.TRUNCATE}
    return Access(((first.get(version, Access.IOCTL_DEV)) << 1) - 1)


def restrict(rules: Iterable[tuple[Path, Access]], version: int) -> None:
    """Take from this thread, and all that come of it, every right that ``rules`` do not name.

    The caller has a single thread and has set no_new_privs. A path that is not there is passed over.

    Raises:
        OSError: the kernel refused; nothing is restricted.
    """
    rights = handled(version)
    attributes = struct.pack("<QQQ", rights, _NET, _SCOPE)
    attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = system_call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for path, access in rules:
            for descriptor in _opened(path):
                directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                granted = access & rights & (rights if directory else _OF_FILES)
                rule = struct.pack("<Qi", granted, descriptor)
                system_call("landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0)
        system_call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
