"""The audit log: who got which key, when, on what evidence, and who did not.

The entries form a chain (``cloister.kbs.chain``). The head row holds the last sequence number and hash,
signed with the broker's Ed25519 audit key in the same transaction, so entries cannot be cut off at the end
either. What remains is putting back a whole older copy of the database, head included: a checkpoint that was
kept elsewhere finds that (``cloister.kbs.checkpoints``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cloister.errors import BadSignature, ConfigError
from cloister.kbs.chain import (
    GENESIS,
    AuditBroken,
    AuditEntry,
    AuditEvent,
    AuditSummary,
    Chain,
    Head,
    Kind,
    entry_after,
    parse_entry,
)
from cloister.kbs.checkpoints import EVERY_ENTRIES, Checkpoint
from cloister.kbs.database import open_existing
from cloister.kbs.migrations import one_at_a_time
from cloister.kbs.queries import Query
from cloister.kbs.records import AuditCheckpointRow, AuditHeadRow, AuditRow
from cloister.settings import KeysSettings

__all__ = [
    "GENESIS",
    "AuditBroken",
    "AuditEntry",
    "AuditEvent",
    "AuditSummary",
    "Head",
    "Kind",
    "append",
    "begin_log",
    "extend",
    "lock_head",
    "read_audit_key",
    "read_audit_log",
    "read_entries",
    "read_head",
    "verify_audit",
    "verify_audit_log",
]

_HEAD_CONTEXT = b"cloister-audit-head\0"
_BATCH = 1000


def begin_log(session: Session, key: ed25519.Ed25519PrivateKey) -> None:
    """Write the head of an empty log, once in the life of a database.

    Raises:
        AuditBroken: there are entries but no head.
        BadSignature: the log was written under another audit key.
    """
    one_at_a_time(session.connection())
    if session.get(AuditHeadRow, 1) is not None:
        lock_head(session.connection(), key.public_key())
        return
    if session.scalars(select(AuditRow.sequence).limit(1)).first() is not None:
        raise AuditBroken("the audit log has entries but no head")
    session.add(AuditHeadRow(id=1, sequence=0, hash=GENESIS, signature=_sign(key, 0, GENESIS)))
    session.flush()


def append(session: Session, event: AuditEvent, key: ed25519.Ed25519PrivateKey) -> AuditEntry:
    """Add one entry within the caller's transaction, and move the signed head to it.

    The transaction must be a writing one: the head row is locked until it ends, so entries of several threads
    and brokers get one order.

    Raises:
        AuditBroken, BadSignature: as ``lock_head``.
    """
    connection = session.connection()
    return extend(connection, lock_head(connection, key.public_key()), [event], key)[0]


def lock_head(connection: Connection, key: ed25519.Ed25519PublicKey) -> Head:
    """The end of the chain, which nobody else can move until the transaction ends.

    A chain goes on only from a head that this log's key has signed: or a log that was cut short in the
    database would be made good by its next entry.

    Raises:
        AuditBroken: there is no head.
        BadSignature: somebody else wrote it.
    """
    return _head(_LOCKED_HEAD.rows(connection), key)


def read_head(connection: Connection, key: ed25519.Ed25519PublicKey) -> Head:
    """As ``lock_head``, but only to look at it."""
    return _head(_HEAD.rows(connection), key)


def _head(rows: Sequence[Any], key: ed25519.Ed25519PublicKey) -> Head:
    if not rows:
        raise AuditBroken("the audit log has no head")
    sequence, digest, signature = rows[0]
    _check_signature(key, signature, sequence, digest)
    return Head(sequence, digest)


def extend(
    connection: Connection,
    head: Head,
    events: Sequence[AuditEvent],
    key: ed25519.Ed25519PrivateKey,
    *,
    checkpoint: bool = False,
) -> list[AuditEntry]:
    """Add entries after ``head``, which this transaction has locked, and sign the new one once for all.

    Args:
        checkpoint: write a checkpoint too, whether one is due or not.
    """
    entries: list[AuditEntry] = []
    rows: list[dict[str, Any]] = []
    sequence, digest = head.sequence, head.hash
    for event in events:
        entry = entry_after(Head(sequence, digest), event)
        body = entry.canonical()
        sequence, digest = entry.sequence, hashlib.sha256(body).hexdigest()
        entries.append(replace(entry, hash=digest))
        rows.append({"sequence": sequence, "body": body.decode("utf-8"), "hash": digest})
    if not rows:
        return entries
    _ADD_ENTRIES.run(connection, rows)
    signature = _sign(key, sequence, digest)
    _MOVE_HEAD.run(connection, [{"new_sequence": sequence, "new_hash": digest, "new_signature": signature}])
    if checkpoint or sequence // EVERY_ENTRIES != head.sequence // EVERY_ENTRIES:
        made = Checkpoint.sign(sequence, digest, events[-1].time, key)
        connection.execute(insert(AuditCheckpointRow), made.to_mapping())
    return entries


def verify_audit(
    engine: Engine,
    *,
    key: ed25519.Ed25519PublicKey | None = None,
    checkpoints: Iterable[Checkpoint] = (),
) -> AuditSummary:
    """Establish that no entry was edited, removed, inserted or reordered, and none cut off at the end.

    Args:
        engine: the broker's database.
        key: the broker's audit key (``audit.pub`` in its folder). Without it no signature is checked, and
            whoever can write the database could have rewritten the whole log.
        checkpoints: of this log, kept elsewhere: an older copy of the whole database lacks their entries.
    Raises:
        AuditBroken: names the first entry that does not fit.
        BadSignature: the head or a checkpoint was not signed by ``key``.
    """
    chain = Chain()
    try:
        with Session(engine) as session:
            head = session.get(AuditHeadRow, 1)
            held = [*checkpoints, *_stored_checkpoints(session)]
            chain.expect(held, key)
            for row in _rows(session):
                chain.add(row.sequence, row.body, row.hash)
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot read the audit log: {type(error).__name__}") from error
    _check_head(head, chain.sequence, chain.hash, key)
    return chain.summary(signed=key is not None)


def read_entries(engine: Engine) -> Iterator[AuditEntry]:
    """Every entry in order, each checked against its own hash but not against the chain."""
    with Session(engine) as session:
        for row in _rows(session):
            yield parse_entry(row.sequence, row.body, row.hash)


def verify_audit_log(settings: KeysSettings, *, checkpoints: Iterable[Checkpoint] = ()) -> AuditSummary:
    """``verify_audit`` on a broker's database, with the public key in its folder."""
    engine = open_existing(settings)
    try:
        key = read_audit_key(Path(settings.folder) / "audit.pub")
        return verify_audit(engine, key=key, checkpoints=checkpoints)
    finally:
        engine.dispose()


def read_audit_log(settings: KeysSettings) -> list[dict[str, Any]]:
    """Every entry for display: ``time``, ``outcome``, ``resource``, ``evidence``, ``reason`` and the rest."""
    engine = open_existing(settings)
    try:
        rows = [asdict(entry) for entry in read_entries(engine)]
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot read the audit log: {type(error).__name__}") from error
    finally:
        engine.dispose()
    return [{**row, "outcome": row["kind"], "evidence": row["evidence_digest"]} for row in rows]


def read_audit_key(path: Path) -> ed25519.Ed25519PublicKey:
    """The public key that a broker's audit log is checked with: ``audit.pub`` of its folder.

    Raises:
        ConfigError: unreadable, or not such a key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the audit log's public key {path}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{path} does not hold an Ed25519 key")
    return key


def _rows(session: Session) -> Iterator[AuditRow]:
    query = select(AuditRow).order_by(AuditRow.sequence).execution_options(yield_per=_BATCH)
    yield from session.scalars(query)


def _stored_checkpoints(session: Session) -> list[Checkpoint]:
    rows = session.scalars(select(AuditCheckpointRow).order_by(AuditCheckpointRow.sequence))
    return [
        Checkpoint(sequence=row.sequence, hash=row.hash, time=row.time, signature=row.signature)
        for row in rows
    ]


def _check_head(
    head: AuditHeadRow | None, sequence: int, digest: str, key: ed25519.Ed25519PublicKey | None
) -> None:
    if head is None:
        raise AuditBroken("the audit log has no head")
    if (head.sequence, head.hash) != (sequence, digest):
        raise AuditBroken(f"audit log ends at entry {sequence}, its signed head at {head.sequence}")
    if key is not None:
        _check_signature(key, head.signature, sequence, digest)


def _check_signature(key: ed25519.Ed25519PublicKey, signature: str, sequence: int, digest: str) -> None:
    try:
        key.verify(base64.b64decode(signature, validate=True), _signed_head(sequence, digest))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise BadSignature("the head of the audit log was not signed by this broker's audit key") from error


def _sign(key: ed25519.Ed25519PrivateKey, sequence: int, digest: str) -> str:
    return base64.b64encode(key.sign(_signed_head(sequence, digest))).decode("ascii")


def _signed_head(sequence: int, digest: str) -> bytes:
    return _HEAD_CONTEXT + rfc8785.dumps({"hash": digest, "sequence": sequence})


_SELECT_HEAD = select(AuditHeadRow.sequence, AuditHeadRow.hash, AuditHeadRow.signature).where(
    AuditHeadRow.id == 1
)
_HEAD = Query(_SELECT_HEAD)
_LOCKED_HEAD = Query(_SELECT_HEAD.with_for_update())
_ADD_ENTRIES = Query(
    insert(AuditRow).values(sequence=bindparam("sequence"), body=bindparam("body"), hash=bindparam("hash"))
)
_MOVE_HEAD = Query(
    update(AuditHeadRow)
    .where(AuditHeadRow.id == 1)
    .values(
        sequence=bindparam("new_sequence"), hash=bindparam("new_hash"), signature=bindparam("new_signature")
    )
)
