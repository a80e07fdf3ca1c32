"""The firmware's event log, replayed to the PCRs of quotes."""

from __future__ import annotations

from cloister.attest.eventlog.log import parse_event_log
from cloister.attest.eventlog.replay import MeasuredEvent, measured_events
from cloister.attest.tpm.quote import PCRS, PcrBanks
from cloister.errors import MalformedInput

_NAMES = {index: f"pcr{index}" for index in range(256)}
_STRENGTH = ("sha1", "sha256", "sha384", "sha512")


def replay_to_pcrs(raw: bytes, pcrs: PcrBanks) -> tuple[MeasuredEvent, ...]:
    """Establish that a log replays to quoted PCRs, in every bank that both have; return its events.

    The events are of the strongest such bank, and of quoted PCRs only. A PCR that the log does not extend may
    have any value: what comes after the firmware need not log.

    Raises:
        MalformedInput: not a log, a PCR that TPMs do not have, or no bank in common.
        BindingMismatch: it replays to another value, or an event's data is not what was measured.
    """
    log = parse_event_log(raw)
    if any(event.index >= PCRS and event.digests for event in log.events if event.index != 0xFFFFFFFF):
        raise MalformedInput(f"event log extends a PCR above {PCRS - 1}")
    banks = [bank for bank in _STRENGTH if bank in log.banks and pcrs.get(bank)]
    if not banks:
        raise MalformedInput(
            f"event log has the banks {', '.join(log.banks)}, quoted are {', '.join(pcrs) or 'none'}"
        )
    events: tuple[MeasuredEvent, ...] = ()
    for bank in banks:
        events = measured_events(log, bank, pcrs[bank], _NAMES)
    return events
