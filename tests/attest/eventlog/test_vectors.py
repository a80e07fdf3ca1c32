"""Event logs of real machines, and a real trust domain with its log."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from cloister.attest.dcap.quote import parse_quote
from cloister.attest.eventlog import attach_event_log, parse_event_log, replay
from cloister.attest.eventlog.replay import replay as replay_bank
from cloister.errors import BindingMismatch, CloisterError
from tests.attest.eventlog.test_replay import Registers
from tests.vectors import vector, vectors_folder


def entries(*kinds: str) -> list[dict[str, Any]]:
    """The manifest's entries of some kinds; none where the folder is absent."""
    path = vectors_folder() / "MANIFEST.json"
    if not path.exists():
        return []
    manifest = json.loads(path.read_text())
    listed = next(value for value in manifest.values() if isinstance(value, list))
    return [entry for entry in listed if entry["kind"] in kinds]


LOGS = [entry for entry in entries("tpm-eventlog", "ccel") if "events" in entry["expected"]]
judged: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def count() -> Any:
    """Says at the end how many entries of each kind were judged."""
    yield
    print(f"event logs judged as expected: {dict(judged)}")


@pytest.mark.parametrize("entry", LOGS, ids=lambda entry: entry["file"])
def test_log_replays_as_expected(entry: dict[str, Any]) -> None:
    """Each real log has the number of events, the banks and the registers that the manifest states."""
    raw, expected = vector(entry["file"]).read_bytes(), entry["expected"]
    log = parse_event_log(raw)
    assert len(log.events) == expected["events"]
    if entry["kind"] == "ccel":
        assert {name: value.hex() for name, value in replay(raw).items()} == expected["replayed"]
    else:
        assert list(log.banks) == expected["banks"]
        for bank, registers in expected["replayed_pcrs"].items():
            found = {str(index): value.hex() for index, value in replay_bank(log, bank).items()}
            assert found == registers
    judged[entry["kind"]] += 1


@pytest.mark.parametrize(
    "entry", [entry for entry in LOGS if "quote_sha256" in entry["expected"]], ids=lambda e: e["file"]
)
def test_log_belongs_to_its_quote(entry: dict[str, Any]) -> None:
    """A real log is attached to the registers of its own quote, and with any changed event to none."""
    raw = vector(entry["file"]).read_bytes()
    quotes = [other for other in entries("tdx") if other["sha256"] == entry["expected"]["quote_sha256"]]
    body = parse_quote(vector(quotes[0]["file"]).read_bytes()).body
    claims = Registers(tuple(body[offset : offset + 48] for offset in range(328, 520, 48)))
    attached = attach_event_log(claims, raw)
    texts = [event.to_mapping().get("text", "") for event in attached.events]
    assert any("vmlinuz" in text for text in texts)
    log = parse_event_log(raw)
    for event in log.events[::5]:
        changed = raw.replace(event.digests["sha384"], bytes(48))
        with pytest.raises(BindingMismatch):
            attach_event_log(claims, changed)


def test_every_byte_of_a_log_matters_or_says_nothing() -> None:
    """A changed byte of a real log is refused, or changes nothing that is passed on but labels."""
    found = [entry for entry in LOGS if "quote_sha256" in entry["expected"]]
    if not found:
        pytest.skip("no test vectors")
    raw = vector(found[0]["file"]).read_bytes()
    claims = Registers(tuple(replay(raw).get(f"rtmr{index}", bytes(48)) for index in range(4)))
    before = [(event.register, event.digest) for event in attach_event_log(claims, raw).events]
    for offset in range(0, len(raw) - 4096, 97):
        changed = bytearray(raw)
        changed[offset] ^= 0x40
        try:
            after = attach_event_log(claims, bytes(changed)).events
        except CloisterError:
            continue
        assert [(event.register, event.digest) for event in after] == before


def test_trustees_reading_agrees() -> None:
    """Registers, types, digests and what was measured agree with another reader's output."""
    names = ("trustee_CCEL_data_ovmf", "trustee_CCEL_AAEL_alibabacloud")
    for name in names:
        path = vector(f"ccel/dev/{name}_out.json")
        if not path.exists():
            pytest.skip("no test vectors")
        theirs = json.loads(path.read_text())["uefi_event_logs"]
        ours = parse_event_log(vector(f"ccel/dev/{name}.bin").read_bytes()).events
        assert [(e["index"], e["type_name"], e["digests"][0]["digest"]) for e in theirs] == [
            (event.index, event.type_name, event.digests["sha384"].hex()) for event in ours
        ]
