"""The table of system calls is the kernel's."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from cloister.serve.sandbox.numbers import MACHINES, UNKNOWN_FROM, numbers_of
from cloister.serve.sandbox.syscalls import worker_rules

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_the_headers(machine: str) -> None:
    """Each number is the one in the kernel's headers of this machine, where they are installed."""
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]}")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    # The generic header names some calls by their 64-bit form.
    for plain, other in (("newfstatat", "fstatat"), ("fadvise64", "fadvise64")):
        found.setdefault(plain, found.get(other, ""))
    wrong = {
        name: (number, found.get(name))
        for name, number in numbers_of(machine).items()
        if found.get(name) != str(number)
    }
    assert wrong == {}


def test_every_rule_has_a_number() -> None:
    """A rule for a name that no machine has would silently be no rule."""
    names = {name for machine in MACHINES for name in numbers_of(machine)}
    assert set(worker_rules(pid=1, processes=True, devices=True, memory_limit=True)) <= names


def test_unknown_machines_have_no_table() -> None:
    """The numbers of a machine that is not in the table are not guessed."""
    assert numbers_of("riscv64") == {}
    assert max(max(numbers_of(machine).values()) for machine in MACHINES) < UNKNOWN_FROM
    assert platform.machine()
