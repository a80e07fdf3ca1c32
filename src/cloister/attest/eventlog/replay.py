"""Replay of an event log: what its events, extended one after the other, leave in the registers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cloister.attest.eventlog.kinds import EV_EFI_HCRTM_EVENT, EV_NO_ACTION
from cloister.attest.eventlog.log import ALGORITHMS, Event, EventLog
from cloister.attest.eventlog.measured import measured_part
from cloister.errors import BindingMismatch, MalformedInput

BANK_BYTES = MappingProxyType(dict(ALGORITHMS.values()))
_STARTUP_LOCALITY = b"StartupLocality\x00"
_HCRTM_LOCALITY = 4


@dataclass(frozen=True, slots=True)
class MeasuredEvent:
    """An event whose register has the value that the log replays to."""

    register: str
    event_type: int
    type_name: str
    bank: str
    """Algorithm of ``digest``: a SHA-1 bank proves little."""
    digest: bytes
    measured: bytes | None
    """The part of its data that the digest is of. The rest of the data says nothing and is left out."""

    def to_mapping(self) -> dict[str, Any]:
        """JSON form, for claims and policies; ``text`` is there where the measured part is printable."""
        mapping: dict[str, Any] = {
            "register": self.register,
            "type": self.type_name,
            "bank": self.bank,
            "digest": self.digest.hex(),
            "measured": None if self.measured is None else self.measured.hex(),
        }
        text = _printable(self.measured)
        if text is not None:
            mapping["text"] = text
        return mapping


def replay(log: EventLog, bank: str) -> dict[int, bytes]:
    """The registers that ``log`` extends, by index, in ``bank`` (``sha256`` and so on).

    A register starts at zero; PCR 0 starts at the locality from which the platform was started.

    Raises:
        MalformedInput: the log does not have this bank, or an event lacks a digest in it.
    """
    if bank not in log.banks:
        raise MalformedInput(f"event log has the banks {', '.join(log.banks)}, not {bank}")
    registers: dict[int, bytes] = {}
    for event in log.events:
        if event.event_type == EV_NO_ACTION:
            if event.index == 0 and event.data.startswith(_STARTUP_LOCALITY) and 0 not in registers:
                registers[0] = event.data[16:17].rjust(BANK_BYTES[bank], b"\x00")
            continue
        digest = event.digests.get(bank)
        if digest is None:
            raise MalformedInput(f"event log: {event.type_name} has no {bank} digest")
        value = registers.get(event.index)
        if value is None:
            locality = _HCRTM_LOCALITY if event.event_type == EV_EFI_HCRTM_EVENT else 0
            value = locality.to_bytes(BANK_BYTES[bank], "big")
        registers[event.index] = hashlib.new(bank, value + digest, usedforsecurity=False).digest()
    return registers


def measured_events(
    log: EventLog, bank: str, registers: Mapping[int, bytes], names: Mapping[int, str]
) -> tuple[MeasuredEvent, ...]:
    """The events of ``registers``, after establishing that the log replays to their values.

    Args:
        registers: attested values, by index. Events of others are left out: nothing vouches for them.
        names: what to call the registers.
    Raises:
        BindingMismatch: the log replays to another value, or an event's data is not what was measured.
        MalformedInput: as ``replay``.
    """
    replayed = replay(log, bank)
    for index, found in replayed.items():
        expected = registers.get(index)
        if expected is not None and found != expected:
            raise BindingMismatch(
                f"event log replays to {found.hex()} in {names[index]}, attested is {expected.hex()}"
            )
    return tuple(_measured(log.events, bank, registers, names))


def _measured(
    events: Iterable[Event], bank: str, registers: Mapping[int, bytes], names: Mapping[int, str]
) -> Iterator[MeasuredEvent]:
    for event in events:
        if event.event_type != EV_NO_ACTION and event.index in registers:
            yield MeasuredEvent(
                names[event.index],
                event.event_type,
                event.type_name,
                bank,
                event.digests[bank],
                measured_part(event, bank),
            )


def _printable(part: bytes | None) -> str | None:
    if not part:
        return None
    try:
        text = part.rstrip(b"\x00").decode("utf-8")
    except UnicodeDecodeError:
        return None
    printable = all(mark.isprintable() or mark in "\n\t" for mark in text)
    return text if text and printable else None
