"""The event log of a trust domain (CCEL), replayed to the RTMRs of its quote.

Register 0 of a CCEL stands for MRTD, which the TDX module fills and no log extends; registers 1 to 4 stand
for RTMR0 to RTMR3. All measure with SHA-384.

Source: UEFI 2.10, section 38.4.1 (mapping for Intel TDX); Intel TDX Virtual Firmware Design Guide, 8.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from cloister.attest.eventlog.log import EventLog, parse_event_log
from cloister.attest.eventlog.replay import MeasuredEvent, measured_events
from cloister.attest.eventlog.replay import replay as replay_bank
from cloister.errors import BindingMismatch, MalformedInput

BANK = "sha384"
REGISTER_BYTES = 48
RTMRS = 4
_NAMES = {index + 1: f"rtmr{index}" for index in range(RTMRS)}


class HasRtmrs(Protocol):
    """Verified claims with RTMR0 to RTMR3: ``TdxClaims``, ``AzureTdxClaims``."""

    @property
    def rtmrs(self) -> tuple[bytes, ...]:
        """The four registers, 48 bytes each."""
        ...


@dataclass(frozen=True, slots=True)
class RtmrEvents:
    """The events that made a trust domain's RTMRs what they are."""

    registers: tuple[str, ...]
    """The registers that the log accounts for completely."""
    events: tuple[MeasuredEvent, ...]


def replay(ccel: bytes) -> dict[str, bytes]:
    """What a CCEL replays to: ``rtmr0`` to ``rtmr3``, those that it extends.

    Raises:
        MalformedInput: not a crypto-agile log with SHA-384, or a register that a TD does not have.
    """
    return {_NAMES[index]: value for index, value in _replay(parse_event_log(ccel)).items()}


def attach_event_log(
    claims: HasRtmrs, ccel: bytes, *, registers: Collection[int] = range(RTMRS)
) -> RtmrEvents:
    """Establish that ``ccel`` is the log of this trust domain, and return its events.

    Args:
        claims: verified claims of a TDX quote.
        registers: numbers of the RTMRs that the log must account for completely. Leave one out that is
            extended without being logged: RTMR2 under IMA, RTMR3 by the workload. Its events are then left
            out too.
    Raises:
        BindingMismatch: an RTMR has another value than the log replays to (zero, if it has no event), or an
            event's data is not what was measured.
        MalformedInput: as ``replay``.
    """
    log = parse_event_log(ccel)
    replayed = _replay(log)
    attested = {index + 1: claims.rtmrs[index] for index in sorted(set(registers))}
    for index, value in attested.items():
        if index not in replayed and value != bytes(REGISTER_BYTES):
            raise BindingMismatch(
                f"event log has no event in {_NAMES[index]}, attested is {value.hex()}",
                hint="the register is extended by something that keeps no log, or the log is cut",
            )
    events = measured_events(log, BANK, attested, _NAMES)
    return RtmrEvents(tuple(_NAMES[index] for index in attested), events)


def _replay(log: EventLog) -> dict[int, bytes]:
    values = replay_bank(log, BANK)
    values.pop(0, None)
    if set(values) - set(_NAMES):
        raise MalformedInput(f"event log extends register {max(values)}, a trust domain has {RTMRS}")
    return values
