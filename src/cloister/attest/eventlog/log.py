"""The bytes of a TCG event log: crypto-agile (TCG2, CCEL) and the older one that has SHA-1 only.

Integers are little-endian. The first event always has the old form:

====== ==== =================== ============================================================
offset size field               meaning
====== ==== =================== ============================================================
0      4    index               PCR; in a CCEL 0 MRTD, 1 to 4 RTMR0 to RTMR3
4      4    event_type          see ``cloister.attest.eventlog.kinds``
8      20   digest              SHA-1
28     4    size                of the data
32     size data
====== ==== =================== ============================================================

If it is EV_NO_ACTION and its data begins with ``Spec ID Event03`` and a zero byte, it declares the algorithms
(u32 number at 24, then u16 algorithm and u16 digest size for each) and all others have the crypto-agile form:
index, event_type, u32 number of digests, for each u16 algorithm and the digest, u32 size, data. Otherwise all
events have the old form.

The log ends with its bytes; the rest of a table that the firmware allotted is all 0xFF, or all zero.

Source: TCG PC Client Platform Firmware Profile Specification, version 1.06, section 10; UEFI 2.10, 38.3 (CC).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cloister.attest.eventlog.kinds import EV_NO_ACTION, event_type_name
from cloister.errors import MalformedInput

MAX_LOG_BYTES = 1024 * 1024
MAX_EVENTS = 8192
MAX_ALGORITHMS = 16
SPEC_ID_SIGNATURE = b"Spec ID Event03\x00"
ALGORITHMS = MappingProxyType(
    {0x4: ("sha1", 20), 0xB: ("sha256", 32), 0xC: ("sha384", 48), 0xD: ("sha512", 64)}
)
_OLD = struct.Struct("<II20sI")
_AGILE = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a log; nothing in it has been verified."""

    index: int
    event_type: int
    digests: Mapping[str, bytes]
    """By algorithm (``sha1``, ``sha256``, ``sha384``, ``sha512``); others are left out."""
    data: bytes

    @property
    def type_name(self) -> str:
        """The specification's name of ``event_type``."""
        return event_type_name(self.event_type)


@dataclass(frozen=True, slots=True)
class EventLog:
    """A log, cut into its events; the one that declares the algorithms is not among them."""

    banks: tuple[str, ...]
    events: tuple[Event, ...]


def parse_event_log(raw: bytes) -> EventLog:
    """Cut a log into its events.

    Raises:
        MalformedInput: an event that does not fit, an algorithm that was not declared, or too many bytes.
    """
    if len(raw) > MAX_LOG_BYTES:
        raise MalformedInput(f"event log has {len(raw)} bytes, at most {MAX_LOG_BYTES} are read")
    content = min(len(raw.rstrip(b"\xff")), len(raw.rstrip(b"\x00")))
    first, offset = _old_event(raw, 0)
    if first.event_type != EV_NO_ACTION or not first.data.startswith(SPEC_ID_SIGNATURE):
        return EventLog(("sha1",), _old_events(raw, content))
    sizes = _declared_algorithms(first.data)
    events: list[Event] = []
    while offset < content:
        _count(events)
        event, offset = _agile_event(raw, offset, sizes)
        events.append(event)
    banks = tuple(ALGORITHMS[number][0] for number in sizes if number in ALGORITHMS)
    return EventLog(banks, tuple(events))


def _old_events(raw: bytes, content: int) -> tuple[Event, ...]:
    events: list[Event] = []
    offset = 0
    while offset < content:
        _count(events)
        event, offset = _old_event(raw, offset)
        events.append(event)
    return tuple(events)


def _old_event(raw: bytes, begin: int) -> tuple[Event, int]:
    header = _take(raw, begin, _OLD.size, begin)
    index, kind, digest, size = _OLD.unpack(header)
    offset = begin + _OLD.size
    data = _take(raw, offset, size, begin)
    return Event(index, kind, {"sha1": digest}, data), offset + size


def _agile_event(raw: bytes, begin: int, sizes: Mapping[int, int]) -> tuple[Event, int]:
    index, kind, count = _AGILE.unpack(_take(raw, begin, _AGILE.size, begin))
    if count > len(sizes):
        raise MalformedInput(f"event at {begin} has {count} digests, {len(sizes)} algorithms are declared")
    offset = begin + _AGILE.size
    found: dict[int, bytes] = {}
    for _ in range(count):
        number = int.from_bytes(_take(raw, offset, 2, begin), "little")
        if number not in sizes or number in found:
            raise MalformedInput(f"event at {begin}: algorithm {number:#x} is not declared, or occurs twice")
        found[number] = _take(raw, offset + 2, sizes[number], begin)
        offset += 2 + sizes[number]
    size = int.from_bytes(_take(raw, offset, 4, begin), "little")
    data = _take(raw, offset + 4, size, begin)
    digests = {ALGORITHMS[number][0]: digest for number, digest in found.items() if number in ALGORITHMS}
    return Event(index, kind, digests, data), offset + 4 + size


def _take(raw: bytes, offset: int, count: int, begin: int) -> bytes:
    if count > len(raw) - offset:
        raise MalformedInput(f"event at {begin} needs {count} bytes at {offset}, the log has {len(raw)}")
    return raw[offset : offset + count]


def _declared_algorithms(data: bytes) -> dict[int, int]:
    count = int.from_bytes(data[24:28], "little")
    if len(data) < 28 or not 0 < count <= MAX_ALGORITHMS or len(data) < 28 + 4 * count:
        raise MalformedInput("event log: the declaration of its algorithms is not complete")
    sizes: dict[int, int] = {}
    for position in range(28, 28 + 4 * count, 4):
        number, size = struct.unpack_from("<HH", data, position)
        known = ALGORITHMS.get(number)
        if number in sizes or not 0 < size <= 64 or (known is not None and known[1] != size):
            raise MalformedInput(f"event log declares {size} bytes for algorithm {number:#x}, or twice")
        sizes[number] = size
    return sizes


def _count(events: list[Event]) -> None:
    if len(events) >= MAX_EVENTS:
        raise MalformedInput(f"event log has more than {MAX_EVENTS} events")
