"""Fuzz TCG event logs: only declared errors may escape.

Run: ``python fuzz/fuzz_eventlog.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from cloister.attest.eventlog import attach_event_log, parse_event_log, replay
from cloister.attest.eventlog.replay import measured_events
from cloister.attest.eventlog.replay import replay as replay_bank
from cloister.errors import MalformedInput, VerificationError


@dataclass(frozen=True)
class _Registers:
    rtmrs: tuple[bytes, ...]


def one_input(data: bytes) -> None:
    """Replay the input in each of its banks, and attach it to the registers that it replays to."""
    with contextlib.suppress(MalformedInput, VerificationError):
        log = parse_event_log(data)
        for bank in log.banks:
            with contextlib.suppress(MalformedInput, VerificationError):
                registers = replay_bank(log, bank)
                names = {index: str(index) for index in registers}
                for event in measured_events(log, bank, registers, names):
                    event.to_mapping()
        replayed = replay(data)
        attach_event_log(_Registers(tuple(replayed.get(f"rtmr{i}", bytes(48)) for i in range(4))), data)


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
