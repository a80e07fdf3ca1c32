"""The assembled filter decides as its rules say: it is run here by an interpreter, on every number."""

from __future__ import annotations

import errno
import struct

import pytest

from cloister.serve.sandbox.bpf import Action, Allow, Answer, Check, assemble
from cloister.serve.sandbox.numbers import MACHINES, UNKNOWN_FROM, numbers_of
from cloister.serve.sandbox.syscalls import compile_filter, worker_rules

X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003
AUDIT = {"x86_64": X86, "aarch64": ARM}


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), *, machine: int = X86) -> int | None:
    """The error number that the filter gives, None if it lets the call through."""
    data = struct.pack("<IIQ6Q", number, machine, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = list(struct.iter_unpack("<HBBI", program))
    place = accumulator = 0
    for _ in range(len(code)):
        operation, true, false, value = code[place]
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            place += value
        elif operation == 0x15:
            place += true if accumulator == value else false
        elif operation == 0x35:
            place += true if accumulator >= value else false
        elif operation == 0x06:
            return None if value == 0x7FFF0000 else value & 0xFFFF
        else:
            raise AssertionError(f"unknown instruction {operation:#x}")
    raise AssertionError("the filter does not end")


RULES: dict[int, Action] = {
    0: Allow(),
    1: Allow(),
    5: Answer(0),
    7: Allow((Check(0, (3, 9)),)),
    8: Allow((Check(1, (3, 9), negated=True),), otherwise=errno.ENOTTY),
    9: Allow((Check(0, (1,)), Check(1, (1,), mask=0xF))),
    449: Allow(),
}


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (0, (), None), (1, (), None), (2, (), errno.EPERM), (5, (), 0), (6, (), errno.EPERM), (449, (), None),
        (450, (), errno.ENOSYS), (10_000, (), errno.ENOSYS), (0x40000000, (), errno.ENOSYS),
        (0xFFFFFFFF, (), errno.ENOSYS),
        (7, (3,), None), (7, (9,), None), (7, (4,), errno.EPERM), (7, (3 + (1 << 32),), None),
        (8, (0, 4), None), (8, (0, 3), errno.ENOTTY), (8, (0, 9), errno.ENOTTY),
        (9, (1, 1), None), (9, (1, 0x80001), None), (9, (2, 1), errno.EPERM), (9, (1, 2), errno.EPERM),
    ],
)  # fmt: skip
def test_decisions(number: int, arguments: tuple[int, ...], expected: int | None) -> None:
    """Plain rules, checks of one and of two arguments, masks, what has no rule, what is unknown."""
    program = assemble(RULES, Answer(errno.EPERM), machine="x86_64", unknown_from=450)
    assert run(program, number, arguments) == expected


def test_other_machines_are_refused() -> None:
    """A call by another machine's table is never taken for one of this machine's."""
    program = assemble(RULES, Answer(errno.EPERM), machine="x86_64", unknown_from=450)
    for machine in (I386, ARM):
        assert run(program, 0, machine=machine) == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("processes", [False, True])
def test_every_number(machine: str, processes: bool) -> None:
    """For each number of the whole table, the filter answers what the rule of its name says."""
    rules = worker_rules(pid=42, processes=processes)
    program = compile_filter(rules, machine)
    names = {number: name for name, number in numbers_of(machine).items()}
    for number in range(UNKNOWN_FROM + 100):
        rule = rules.get(names.get(number, ""))
        found = run(program, number, machine=AUDIT[machine])
        if number >= UNKNOWN_FROM:
            assert found == errno.ENOSYS
        elif isinstance(rule, Answer):
            assert found == rule.number, names[number]
        elif isinstance(rule, Allow) and not rule.checks:
            assert found is None, names[number]
        elif rule is None:
            assert found == errno.EPERM, number


@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("kill", (42, 9), True),
        ("kill", (1, 9), False),
        ("kill", (0xFFFFFFFF, 9), False),
        ("kill", (0, 9), False),
        ("tgkill", (42, 43, 6), True),
        ("tgkill", (41, 41, 6), False),
        ("clone", (0x3D0F00,), True),  # what a thread is made with
        ("clone", (17,), False),  # fork
        ("clone", (0x10000 | 0x40000000,), False),  # a thread in a new network namespace
        ("prctl", (15,), True),
        ("prctl", (1,), False),
        ("prctl", (4,), False),
        ("fcntl", (3, 1030), True),
        ("fcntl", (3, 8), False),
        ("fcntl", (3, 10), False),
        ("ioctl", (0, 0x5412), False),
        ("socketpair", (1, 1 | 0o2000000), True),
        ("socketpair", (1, 2), False),
        ("socketpair", (30, 1), False),
        ("prlimit64", (0,), True),
        ("prlimit64", (7,), False),
    ],
)
def test_arguments_of_worker(name: str, arguments: tuple[int, ...], allowed: bool) -> None:
    """What a worker may ask of these calls, on each machine."""
    for machine in MACHINES:
        program = compile_filter(worker_rules(pid=42), machine)
        found = run(program, numbers_of(machine)[name], arguments, machine=AUDIT[machine])
        assert (found is None) is allowed, machine


def test_processes_stay_in_their_namespaces() -> None:
    """Where processes are allowed, they are not a way to new namespaces."""
    program = compile_filter(worker_rules(pid=42, processes=True), "x86_64")
    clone = numbers_of("x86_64")["clone"]
    assert run(program, clone, (17,)) is None
    for flag in (0x00020000, 0x10000000, 0x20000000, 0x40000000, 0x80):
        assert run(program, clone, (17 | flag,)) == errno.EPERM


def test_gpu_rules_keep_the_dangerous_out() -> None:
    """A GPU's driver may use its own ``ioctl``; not the terminal's, and not those that send signals."""
    program = compile_filter(worker_rules(pid=42, devices=True), "x86_64")
    numbers = numbers_of("x86_64")
    assert run(program, numbers["ioctl"], (3, 0xC020462A)) is None
    for command in (0x5412, 0x541C, 0x8901, 0x8902, 0x5452):
        assert run(program, numbers["ioctl"], (3, command)) == errno.EPERM
    assert run(program, numbers["socket"], (1, 1)) is None
    assert run(program, numbers["socket"], (1, 2)) == errno.EPERM
    assert run(program, numbers["socket"], (2, 1)) == errno.EPERM
    for name in ("connect", "bind", "listen"):
        assert name not in worker_rules(pid=42, devices=True)
