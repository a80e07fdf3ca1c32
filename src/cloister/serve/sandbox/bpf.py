"""Assembles a seccomp filter: which action for which system call, with checks of arguments.

The numbers are searched by halves, so that no call costs more than some ten comparisons; the kernel keeps
the answer for calls that are allowed whatever their arguments. Calls of another machine (32-bit, x32) get
ENOSYS.

Source: Linux ``include/uapi/linux/{seccomp,filter,audit}.h``. An instruction is u16 code, u8 jump if true,
u8 jump if false, u32 constant; the data it reads is

====== ==== =============================
offset size field of ``struct seccomp_data``
====== ==== =============================
0      4    number of the call
4      4    machine
16     8*6  arguments, little-endian
====== ==== =============================
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_INSTRUCTION = struct.Struct("<HBBI")
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP, _JUMP_EQUAL, _JUMP_FROM = 0x05, 0x15, 0x35
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_AUDIT_MACHINE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_FROM = 0x40000000
MAX_INSTRUCTIONS = 4096

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """Do not make the call; give this error number. 0 says that it was made."""

    number: int


@dataclass(frozen=True, slots=True)
class Check:
    """The low half of an argument, under a mask, is one of the values; or, negated, is none of them.

    The calls that are checked take these arguments as 32-bit integers, so the high half means nothing.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Allow:
    """Make the call if all checks hold, else give the error number."""

    checks: tuple[Check, ...] = ()
    otherwise: int = errno.EPERM


Action = Answer | Allow


def assemble(rules: Mapping[int, Action], default: Action, *, machine: str, unknown_from: int) -> bytes:
    """The filter's instructions.

    Args:
        rules: action by number of the call.
        default: action of numbers without a rule.
        unknown_from: numbers from here on get ENOSYS, so that a library takes its older way.
    """
    starts: dict[int, Action] = {0: default}
    for number in sorted(rules):
        starts[number] = rules[number]
        starts.setdefault(number + 1, default)
        if number + 1 not in rules:
            starts[number + 1] = default
    starts = {n: action for n, action in starts.items() if n < unknown_from}
    starts[unknown_from] = Answer(errno.ENOSYS)
    segments: list[tuple[int, Action]] = []
    for number in sorted(starts):
        if not segments or segments[-1][1] != starts[number]:
            segments.append((number, starts[number]))
    foreign = _action(Answer(errno.ENOSYS))
    program: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, len(foreign), 0, _AUDIT_MACHINE[machine]),
        *foreign,
        (_LOAD, 0, 0, 0),
        (_JUMP_FROM, 0, len(foreign), _X32_FROM),
        *foreign,
        *_search(segments),
    ]
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"filter of {len(program)} instructions")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _search(segments: Sequence[tuple[int, Action]]) -> list[Instruction]:
    if len(segments) == 1:
        return _action(segments[0][1])
    middle = len(segments) // 2
    low, high = _search(segments[:middle]), _search(segments[middle:])
    # A conditional jump reaches 255 instructions, an unconditional one any number.
    return [(_JUMP_FROM, 0, 1, segments[middle][0]), (_JUMP, 0, 0, len(low)), *low, *high]


def _action(action: Action) -> list[Instruction]:
    if isinstance(action, Answer):
        return [(_RETURN, 0, 0, _RET_ERRNO | action.number)]
    block: list[Instruction] = []
    for check in action.checks:
        block.append((_LOAD, 0, 0, 16 + 8 * check.argument))
        if check.mask != 0xFFFFFFFF:
            block.append((_AND, 0, 0, check.mask))
        for left, value in zip(range(len(check.values) - 1, -1, -1), check.values, strict=True):
            if not check.negated:
                block.append((_JUMP_EQUAL, left + 1, 0, value))
            else:
                block.append((_JUMP_EQUAL, left, 0 if left else 1, value))
        block.append((_RETURN, 0, 0, _RET_ERRNO | action.otherwise))
    return [*block, (_RETURN, 0, 0, _RET_ALLOW)]
