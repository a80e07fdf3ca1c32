"""The audit log: what was written stays, in its order, whoever edits the database."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.errors import VerificationError
from cloister.kbs.audit import AuditBroken, AuditEvent, append, begin_log, read_entries, verify_audit
from cloister.kbs.database import Database

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
Edit = Callable[[sqlite3.Connection], Any]


def open_log(path: Path) -> Database:
    """A database with an empty log."""
    database = Database(f"sqlite:///{path}")
    with database.write() as session:
        begin_log(session, KEY)
    return database


def write(database: Database, number: int) -> None:
    """One entry; every third is a refusal."""
    event = AuditEvent(
        kind="refusal" if number % 3 == 2 else "release",
        time=NOW,
        subject="tee:tdx",
        resource=f"models/key/{number}?version=1",
        evidence_digest="00" * 32,
        claims={"mr_td": "aa", "debug": False},
        policy_ids=("p",),
        reason="permitted by p",
    )
    with database.write() as session:
        append(session, event, KEY)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A database file with six entries."""
    path = tmp_path / "kbs.sqlite"
    database = open_log(path)
    for number in range(6):
        write(database, number)
    database.close()
    return path


def verified(path: Path, key: Any = None) -> Any:
    """The summary of a database file."""
    database = Database(f"sqlite:///{path}")
    try:
        return verify_audit(database.engine, key=key or KEY.public_key())
    finally:
        database.close()


def edit(path: Path, change: Edit) -> None:
    """Change the file behind the broker's back."""
    with sqlite3.connect(path) as connection:
        change(connection)
    connection.close()


def test_an_honest_log_verifies(log: Path) -> None:
    """Entries, releases and refusals are counted; the head is signed."""
    summary = verified(log)
    assert (summary.entries, summary.releases, summary.refusals, summary.signed) == (6, 4, 2, True)


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    """A broker that has released nothing has a valid log of no entries."""
    open_log(tmp_path / "kbs.sqlite").close()
    assert verified(tmp_path / "kbs.sqlite").entries == 0


def test_entries_hold_what_an_auditor_asks(log: Path) -> None:
    """Who, what, when, on what evidence, by which policy, and why."""
    database = Database(f"sqlite:///{log}")
    entry = next(iter(read_entries(database.engine)))
    database.close()
    assert entry.resource == "models/key/0?version=1"
    assert entry.time == "2026-11-20T12:00:00.000000+00:00"
    assert (entry.policy_ids, entry.reason, entry.claims["mr_td"]) == (["p"], "permitted by p", "aa")


def _rehash(connection: sqlite3.Connection) -> None:
    """Edit entry 3 and give it a fitting hash of its own, as a careful forger would."""
    (body,) = connection.execute("SELECT body FROM audit_entries WHERE sequence=3").fetchone()
    forged = rfc8785.dumps({**json.loads(body), "reason": "nothing happened"})
    digest = hashlib.sha256(forged).hexdigest()
    connection.execute("UPDATE audit_entries SET body=?, hash=? WHERE sequence=3", (forged.decode(), digest))


EDITS: dict[str, Edit] = {
    "body": lambda c: c.execute("UPDATE audit_entries SET body=replace(body, 'tdx', 'snp') WHERE sequence=2"),
    "hash": lambda c: c.execute("UPDATE audit_entries SET hash=? WHERE sequence=2", ("0" * 64,)),
    "not an entry": lambda c: c.execute("UPDATE audit_entries SET body='[]' WHERE sequence=2"),
    "rehashed": _rehash,
    "deleted in the middle": lambda c: c.execute("DELETE FROM audit_entries WHERE sequence=3"),
    "deleted at the start": lambda c: c.execute("DELETE FROM audit_entries WHERE sequence=1"),
    "truncated": lambda c: c.execute("DELETE FROM audit_entries WHERE sequence=6"),
    "emptied": lambda c: c.execute("DELETE FROM audit_entries"),
    "renumbered": lambda c: c.executescript(
        "DELETE FROM audit_entries WHERE sequence=3;"
        "UPDATE audit_entries SET sequence=sequence-1 WHERE sequence>3;"
    ),
    "reordered": lambda c: c.executescript(
        "UPDATE audit_entries SET sequence=99 WHERE sequence=2;"
        "UPDATE audit_entries SET sequence=2 WHERE sequence=4;"
        "UPDATE audit_entries SET sequence=4 WHERE sequence=99;"
    ),
    "appended": lambda c: c.execute(
        "INSERT INTO audit_entries SELECT 7, body, hash FROM audit_entries LIMIT 1"
    ),
    "head deleted": lambda c: c.execute("DELETE FROM audit_head"),
    "signature": lambda c: c.execute("UPDATE audit_head SET signature='AAAA'"),
    "signature is no text": lambda c: c.execute("UPDATE audit_head SET signature='%%%'"),
    "truncated with its head": lambda c: c.executescript(
        "DELETE FROM audit_entries WHERE sequence>4;"
        "UPDATE audit_head SET sequence=4, hash=(SELECT hash FROM audit_entries WHERE sequence=4);"
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_tampering_is_found(log: Path, name: str) -> None:
    """Each way of editing, deleting, moving, adding or cutting entries is found."""
    edit(log, EDITS[name])
    with pytest.raises(VerificationError):
        verified(log)


def test_message_names_the_first_bad_entry(log: Path) -> None:
    """An auditor is told where to look."""
    edit(log, EDITS["deleted in the middle"])
    with pytest.raises(AuditBroken, match="entry 3 is missing"):
        verified(log)


def test_another_brokers_key_is_refused(log: Path) -> None:
    """A log signed by another key is not this broker's."""
    with pytest.raises(VerificationError):
        verified(log, Ed25519PrivateKey.generate().public_key())


def test_nothing_is_appended_to_a_log_without_a_head(log: Path) -> None:
    """A broker whose log was beheaded stops releasing rather than beginning a new chain."""
    edit(log, EDITS["head deleted"])
    database = Database(f"sqlite:///{log}")
    with pytest.raises(AuditBroken):
        write(database, 1)
    with pytest.raises(AuditBroken), database.write() as session:
        begin_log(session, KEY)
    database.close()


def test_many_threads_make_one_chain(tmp_path: Path) -> None:
    """Entries of eight threads and two connections pools get one order without gaps."""
    path = tmp_path / "kbs.sqlite"
    databases = [open_log(path), Database(f"sqlite:///{path}")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write(databases[number % 2], number), range(60)))
    for database in databases:
        database.close()
    assert verified(path).entries == 60


def test_a_failed_transaction_leaves_no_entry(log: Path) -> None:
    """An entry is there exactly if what it tells of was committed."""
    database = Database(f"sqlite:///{log}")
    with contextlib.suppress(RuntimeError), database.write() as session:
        append(session, AuditEvent(kind="stored", time=NOW), KEY)
        raise RuntimeError("disk on fire")
    database.close()
    assert verified(log).entries == 6
