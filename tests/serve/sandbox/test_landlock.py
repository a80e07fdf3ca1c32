"""Landlock's structures and rights follow the kernel's interface, version by version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloister.serve.sandbox import landlock
from cloister.serve.sandbox.landlock import Access

HEADER = Path("/usr/include/linux/landlock.h")


@pytest.mark.parametrize(
    ("version", "newest"),
    [(1, "MAKE_SYM"), (2, "REFER"), (3, "TRUNCATE"), (4, "TRUNCATE"), (5, "IOCTL_DEV"), (7, "IOCTL_DEV")],
)
def test_rights_of_each_version(version: int, newest: str) -> None:
    """A version takes away every right that it knows, and none that it does not."""
    rights = landlock.handled(version)
    assert rights & Access[newest]
    assert not rights & (Access[newest] << 1)
    assert rights & Access.EXECUTE


def test_rights_are_the_headers() -> None:
    """Each right has the bit that the kernel's header gives it, as far as this machine's header knows it."""
    if not HEADER.exists():
        pytest.skip(f"no {HEADER}")
    bits = dict(re.findall(r"LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", HEADER.read_text()))
    assert bits
    assert {name: 1 << int(bit) for name, bit in bits.items()} == {name: Access[name].value for name in bits}


def test_what_is_granted_never_makes_devices_or_sockets() -> None:
    """No rule grants making device files or sockets, or running what was written."""
    granted = landlock.READ | landlock.RUN | landlock.WRITE | landlock.DEVICE
    for right in (Access.MAKE_CHAR, Access.MAKE_BLOCK, Access.MAKE_SOCK):
        assert not granted & right
    assert not landlock.WRITE & (Access.EXECUTE | Access.IOCTL_DEV)
