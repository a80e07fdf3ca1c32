"""The log of decisions: a chain that the broker's verifier checks, and that says nothing of content."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.errors import BadSignature
from cloister.kbs.audit_file import verify_export
from cloister.kbs.chain import AuditBroken
from cloister.policy.cedar import Decision
from cloister.policy.requests import ANONYMOUS, Caller
from cloister.serve.access.audit import DecisionLog

KEY = ed25519.Ed25519PrivateKey.generate()
YES, NO = Decision(True, ("team",), "permitted by team"), Decision(False, (), "no policy permits")
ALICE = Caller(kind="jwt", subject="alice", issuer="https://id.example")


def entries(path: Path) -> list[dict[str, object]]:
    """What the file says, checked."""
    lines = path.read_text().splitlines()
    verify_export(lines, KEY.public_key())
    return [document["entry"] for line in lines if "entry" in (document := json.loads(line))]


def test_decisions(tmp_path: Path) -> None:
    """Each decision is an entry; one that repeats is counted."""
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, KEY)
    for _ in range(1000):
        log.record(ALICE, "predict", "scans", "2.0", YES)
    log.record(ANONYMOUS, "predict", "scans", "2.0", NO)
    log.close()
    found = entries(path)
    permitted = [entry for entry in found if entry["kind"] == "permitted"]
    assert sum(entry["claims"]["count"] for entry in permitted) == 1000  # type: ignore[index]
    refused = next(entry for entry in found if entry["kind"] == "refused")
    assert (refused["subject"], refused["resource"], refused["reason"]) == (
        "anonymous:",
        "scans/2.0",
        "no policy permits",
    )


def test_goes_on_after_a_restart(tmp_path: Path) -> None:
    """A second run continues the chain of the first."""
    path = tmp_path / "decisions.jsonl"
    for _ in range(2):
        log = DecisionLog(path, KEY)
        log.record(ALICE, "predict", "scans", "", YES)
        log.close()
    assert [entry["sequence"] for entry in entries(path)] == [1, 2]


@pytest.mark.parametrize("attack", ["edit", "remove", "swap", "cut"])
def test_tampering(tmp_path: Path, attack: str) -> None:
    """An edited, removed, moved or cut-off line is found."""
    path = tmp_path / "decisions.jsonl"
    now = [datetime(2026, 6, 1, tzinfo=UTC)]
    log = DecisionLog(path, KEY, clock=lambda: now[0])
    for number in range(4):
        log.record(ALICE, "predict", f"m{number}", "", NO)
        now[0] += timedelta(seconds=1)
    log.close()
    lines = path.read_text().splitlines()
    if attack == "edit":
        lines[2] = lines[2].replace("refused", "permitted")
    elif attack == "remove":
        del lines[2]
    elif attack == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines = lines[:-2]
    with pytest.raises(AuditBroken):
        verify_export(lines, KEY.public_key())


def test_another_key(tmp_path: Path) -> None:
    """A log is not continued under another key, nor one that was changed."""
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, KEY)
    log.record(ALICE, "predict", "m", "", YES)
    log.close()
    with pytest.raises(BadSignature):
        DecisionLog(path, ed25519.Ed25519PrivateKey.generate())
    path.write_text(path.read_text().replace("alice", "mallory"))
    with pytest.raises(AuditBroken):
        DecisionLog(path, KEY)
