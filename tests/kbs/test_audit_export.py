"""Checkpoints and exports: what an auditor keeps elsewhere finds what the database alone does not."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, ConfigError, MalformedInput, VerificationError
from cloister.kbs import audit as audit_module
from cloister.kbs.audit import AuditBroken, AuditEvent, append, begin_log, verify_audit
from cloister.kbs.audit_export import export_audit, export_audit_log
from cloister.kbs.audit_file import read_checkpoints, verify_export, verify_export_file
from cloister.kbs.checkpoints import Checkpoint
from cloister.kbs.database import Database
from cloister.settings import KeysSettings

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()


def write(path: Path, count: int, key: Ed25519PrivateKey = KEY) -> None:
    """Add entries to a log, begun if need be."""
    database = Database(f"sqlite:///{path}")
    for number in range(count):
        kind: Any = "refusal" if number % 3 == 2 else "release"
        with database.write() as session:
            begin_log(session, key)
            append(session, AuditEvent(kind=kind, time=NOW, resource=f"a/b/{number}", claims={"ä": "é"}), key)
    database.close()


def exported(path: Path, after: int = 0) -> list[str]:
    """The lines of an export."""
    database = Database(f"sqlite:///{path}")
    try:
        with database.snapshot() as connection:
            return list(export_audit(connection, KEY, NOW, after=after))
    finally:
        database.close()


def verified(path: Path, *checkpoints: Checkpoint) -> Any:
    """The database held against checkpoints."""
    database = Database(f"sqlite:///{path}")
    try:
        return verify_audit(database.engine, key=PUBLIC, checkpoints=checkpoints)
    finally:
        database.close()


def last_checkpoint(lines: list[str]) -> Checkpoint:
    """What an export ends with."""
    return Checkpoint.from_mapping(json.loads(lines[-1])["checkpoint"])


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of nine entries, with a checkpoint after each fourth."""
    monkeypatch.setattr(audit_module, "EVERY_ENTRIES", 4)
    write(tmp_path / "kbs.sqlite", 9)
    return tmp_path / "kbs.sqlite"


def test_checkpoints_are_written_as_the_log_grows(log: Path) -> None:
    """One after each so many entries, signed, and the log is held against them."""
    summary = verified(log)
    assert (summary.entries, summary.checkpoints) == (9, 2)


def test_an_export_verifies_without_the_database(log: Path) -> None:
    """Header, entries, checkpoints in their places, and one more at the end."""
    lines = exported(log)
    assert [next(iter(json.loads(line))) for line in lines].count("entry") == 9
    summary = verify_export(lines, PUBLIC)
    assert (summary.entries, summary.releases, summary.refusals, summary.checkpoints) == (9, 6, 3, 3)
    assert summary.head == verified(log).head


def test_exports_follow_one_another(log: Path) -> None:
    """The second export begins where the first ended, and is held against its checkpoint."""
    first = exported(log)
    write(log, 3)
    second = exported(log, after=9)
    assert verify_export(second, PUBLIC, checkpoints=[last_checkpoint(first)]).entries == 3
    with pytest.raises(ConfigError, match="no entry 99"):
        exported(log, after=99)


def test_an_older_copy_put_back_is_found_with_a_kept_checkpoint(log: Path) -> None:
    """The head is genuine and the database verifies; only the checkpoint tells that entries are gone."""
    older = log.with_name("older")
    shutil.copy(log, older)
    write(log, 3)
    kept = last_checkpoint(exported(log))
    shutil.copy(older, log)
    assert verified(log).entries == 9
    with pytest.raises(AuditBroken, match="cut short"):
        verified(log, kept)


def test_another_history_is_found_with_a_kept_checkpoint(log: Path) -> None:
    """As many entries as before, but others, by whoever has the audit key."""
    kept = last_checkpoint(exported(log))
    log.unlink()
    write(log, 1)
    write(log, 12)
    with pytest.raises(AuditBroken, match="entry 9 is not the one"):
        verified(log, kept)


def test_a_forged_checkpoint_is_refused(log: Path) -> None:
    """One that was edited, or that another key signed, proves nothing."""
    kept = last_checkpoint(exported(log))
    other = Checkpoint.sign(9, kept.hash, NOW, Ed25519PrivateKey.generate())
    for forged in (replace(kept, sequence=8), replace(kept, time="now"), replace(kept, signature="%"), other):
        with pytest.raises(VerificationError):
            verified(log, forged)


CHECKPOINT_EDITS = {
    "hash": "UPDATE audit_checkpoints SET hash = (SELECT hash FROM audit_entries WHERE sequence = 1)",
    "moved": "UPDATE audit_checkpoints SET sequence = 5 WHERE sequence = 4",
    "signature": "UPDATE audit_checkpoints SET signature = 'AAAA'",
    "entries removed with the head, checkpoint left": (
        "DELETE FROM audit_entries WHERE sequence > 6; UPDATE audit_head SET sequence = 6,"
        " hash = (SELECT hash FROM audit_entries WHERE sequence = 6)"
    ),
}


@pytest.mark.parametrize("name", CHECKPOINT_EDITS)
def test_tampering_with_checkpoints_in_the_database_is_found(log: Path, name: str) -> None:
    """The log's own checkpoints are held against it."""
    with sqlite3.connect(log) as connection:
        connection.executescript(CHECKPOINT_EDITS[name])
    connection.close()
    with pytest.raises(VerificationError):
        verified(log)


def _edited(line: str, change: Callable[[dict[str, Any]], Any]) -> str:
    document = json.loads(line)
    change(document)
    return json.dumps(document)


EXPORT_EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "entry edited": lambda s: [s[0], _edited(s[1], lambda d: d["entry"].update(reason="x")), *s[2:]],
    "entry removed": lambda s: [*s[:2], *s[3:]],
    "entries swapped": lambda s: [s[0], s[2], s[1], *s[3:]],
    "entry twice": lambda s: [*s[:2], s[1], *s[2:]],
    "first entry removed": lambda s: [s[0], *s[2:]],
    "header moved on": lambda s: [
        _edited(s[0], lambda d: d.update(after=1, hash=json.loads(s[1])["hash"])),
        *s[3:],
    ],
    "cut short": lambda s: s[:-1],
    "cut to a checkpoint, checkpoint moved": lambda s: [*s[:3], s[-1]],
    "checkpoint edited": lambda s: [*s[:-1], _edited(s[-1], lambda d: d["checkpoint"].update(time="x"))],
    "no entries": lambda s: s[:1],
    "another beginning": lambda s: [_edited(s[0], lambda d: d.update(hash="1" * 64)), *s[1:]],
    "extra member": lambda s: [s[0], _edited(s[1], lambda d: d.update(x=1)), *s[2:]],
    "other format": lambda s: [_edited(s[0], lambda d: d.update(format="x")), *s[1:]],
    "empty": lambda _s: [],
    "not JSON": lambda s: [*s[:1], "{", *s[1:]],
}


@pytest.mark.parametrize("name", EXPORT_EDITS)
def test_tampering_with_an_export_is_found(log: Path, name: str) -> None:
    """Each way of changing the file is found without the database."""
    with pytest.raises((VerificationError, MalformedInput)):
        verify_export(EXPORT_EDITS[name](exported(log)), PUBLIC)


def test_an_export_cut_to_an_earlier_checkpoint_is_found_with_a_later_one(log: Path) -> None:
    """A file that ends with a genuine checkpoint is whole as far as it goes; a kept one tells of the rest."""
    lines = exported(log)
    middle = next(n for n, line in enumerate(lines) if '"checkpoint"' in line)
    assert verify_export(lines[: middle + 1], PUBLIC).entries == 4
    with pytest.raises(AuditBroken, match="cut short"):
        verify_export(lines[: middle + 1], PUBLIC, checkpoints=[last_checkpoint(lines)])


@given(st.lists(st.one_of(st.text(max_size=60), st.from_regex(r'\{"(entry|checkpoint|format)".*\}'))))
def test_hostile_files(lines: list[str]) -> None:
    """Whatever a file holds, only our errors come out."""
    with pytest.raises(CloisterError):
        verify_export(lines, PUBLIC)


def test_files(tmp_path: Path) -> None:
    """A broker's log goes to a file and is checked from there; a file is never written over."""
    from cloister.kbs.state import open_state

    settings = KeysSettings(folder=str(tmp_path / "keys"))
    state = open_state(settings, NOW)
    with state.database.write() as session:
        append(session, AuditEvent(kind="stored", time=NOW), state.audit_key)
    state.close()
    target = tmp_path / "audit.jsonl"
    assert export_audit_log(settings, target, NOW) == 1
    assert verify_export_file(target, state.audit_key.public_key()).entries == 1
    assert [kept.sequence for kept in read_checkpoints(target)] == [1]
    with pytest.raises(ConfigError, match="cannot write"):
        export_audit_log(settings, target, NOW)
    with pytest.raises(ConfigError, match="cannot read"):
        verify_export_file(tmp_path / "absent", PUBLIC)
    (tmp_path / "none").write_text("\n")
    with pytest.raises(MalformedInput, match="no checkpoint"):
        read_checkpoints(tmp_path / "none")


def test_another_brokers_database_is_refused_at_start(tmp_path: Path) -> None:
    """A broker whose audit key did not sign the log of its database does not start."""
    write(tmp_path / "kbs.sqlite", 1)
    with pytest.raises(VerificationError):
        write(tmp_path / "kbs.sqlite", 1, Ed25519PrivateKey.generate())
