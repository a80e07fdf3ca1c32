"""The hash-chained audit log: who got which key, when, on what evidence, and who did not.

Each entry is a JSON object with the members of ``AuditEntry``. ``prev`` is the hash of the entry before it
(64 zeros for the first); its own hash is SHA-256 over its canonical JSON (RFC 8785). The head row holds the
last sequence number and hash, signed with the broker's Ed25519 audit key in the same transaction, so entries
cannot be cut off at the end either. What remains is putting back a whole older copy of the database, head
included: only a head that was written down elsewhere finds that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlalchemy import select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cloister.errors import BadSignature, ConfigError, VerificationError
from cloister.kbs.records import AuditHeadRow, AuditRow, open_existing
from cloister.settings import KeysSettings

GENESIS = "0" * 64
Kind = Literal["release", "refusal", "stored", "deleted"]
_HEAD_CONTEXT = b"cloister-audit-head\0"
_BATCH = 1000


class AuditBroken(VerificationError):
    """The audit log was edited, reordered, or shortened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """What happened, before it has a place in the chain."""

    kind: Kind
    time: datetime
    subject: str = ""
    """Who asked: ``tee:tdx``, or ``role:admin``."""
    resource: str = ""
    """``repository/type/tag?version=n``; empty where attestation itself was refused."""
    evidence_digest: str = ""
    """SHA-256 of the vendor's evidence bytes, hexadecimal."""
    claims: dict[str, Any] = field(default_factory=dict)
    policy_ids: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the log."""

    sequence: int
    time: str
    kind: str
    subject: str
    resource: str
    evidence_digest: str
    claims: dict[str, Any]
    policy_ids: list[str]
    reason: str
    prev: str
    hash: str = ""

    def canonical(self) -> bytes:
        """What the hash is taken over: every member but the hash itself."""
        return rfc8785.dumps({name: getattr(self, name) for name in _HASHED})


_HASHED = tuple(item.name for item in fields(AuditEntry) if item.name != "hash")


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """What a verified log holds."""

    entries: int
    releases: int
    refusals: int
    head: str
    """Hash of the last entry; write it down elsewhere to detect that an older copy was put back."""
    signed: bool
    """Whether the head's signature was checked; False where no key was given."""


def begin_log(session: Session, key: ed25519.Ed25519PrivateKey) -> None:
    """Write the head of an empty log, once in the life of a database.

    Raises:
        AuditBroken: there are entries but no head.
    """
    if session.get(AuditHeadRow, 1) is not None:
        return
    if session.scalars(select(AuditRow.sequence).limit(1)).first() is not None:
        raise AuditBroken("the audit log has entries but no head")
    session.add(AuditHeadRow(id=1, sequence=0, hash=GENESIS, signature=_sign(key, 0, GENESIS)))


def append(session: Session, event: AuditEvent, key: ed25519.Ed25519PrivateKey) -> AuditEntry:
    """Add one entry within the caller's transaction, and move the signed head to it.

    The transaction must be a writing one: the head row is locked until it ends, so entries of several threads
    and brokers get one order.
    """
    head = session.scalars(select(AuditHeadRow).where(AuditHeadRow.id == 1).with_for_update()).first()
    if head is None:
        raise AuditBroken("the audit log has no head")
    entry = _entry(event, head.sequence + 1, head.hash)
    body = entry.canonical()
    digest = hashlib.sha256(body).hexdigest()
    session.add(AuditRow(sequence=entry.sequence, body=body.decode("utf-8"), hash=digest))
    head.sequence, head.hash, head.signature = entry.sequence, digest, _sign(key, entry.sequence, digest)
    session.flush()
    return replace(entry, hash=digest)


def verify_audit(engine: Engine, *, key: ed25519.Ed25519PublicKey | None = None) -> AuditSummary:
    """Establish that no entry was edited, removed, inserted or reordered, and none cut off at the end.

    Args:
        engine: the broker's database.
        key: the broker's audit key (``audit.pub`` in its folder). Without it the signature on the head is not
            checked, and whoever can write the database could have rewritten the whole log.
    Raises:
        AuditBroken: names the first entry that does not fit.
        BadSignature: the head was not signed by ``key``.
    """
    count = {"release": 0, "refusal": 0}
    sequence, previous = 0, GENESIS
    try:
        with Session(engine) as session:
            head = session.get(AuditHeadRow, 1)
            for row in _rows(session):
                sequence += 1
                entry = _checked(row, sequence, previous)
                previous = row.hash
                if entry.kind in count:
                    count[entry.kind] += 1
            signed = _check_head(head, sequence, previous, key)
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot read the audit log: {type(error).__name__}") from error
    return AuditSummary(sequence, count["release"], count["refusal"], previous, signed)


def read_entries(engine: Engine) -> Iterator[AuditEntry]:
    """Every entry in order, each checked against its own hash but not against the chain."""
    with Session(engine) as session:
        for row in _rows(session):
            yield _parse(row)


def verify_audit_log(settings: KeysSettings) -> AuditSummary:
    """``verify_audit`` on a broker's database, with the public key in its folder."""
    engine = open_existing(settings)
    try:
        return verify_audit(engine, key=_public_key(Path(settings.folder) / "audit.pub"))
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


def _public_key(path: Path) -> ed25519.Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the audit log's public key {path}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{path} does not hold an Ed25519 key")
    return key


def _entry(event: AuditEvent, sequence: int, previous: str) -> AuditEntry:
    return AuditEntry(
        sequence=sequence,
        time=event.time.isoformat(timespec="microseconds"),
        kind=event.kind,
        subject=event.subject,
        resource=event.resource,
        evidence_digest=event.evidence_digest,
        claims=event.claims,
        policy_ids=list(event.policy_ids),
        reason=event.reason,
        prev=previous,
    )


def _rows(session: Session) -> Iterator[AuditRow]:
    query = select(AuditRow).order_by(AuditRow.sequence).execution_options(yield_per=_BATCH)
    yield from session.scalars(query)


def _parse(row: AuditRow) -> AuditEntry:
    if hashlib.sha256(row.body.encode("utf-8")).hexdigest() != row.hash:
        raise AuditBroken(f"audit entry {row.sequence} was edited: its hash does not fit")
    try:
        return AuditEntry(**json.loads(row.body), hash=row.hash)
    except (ValueError, TypeError) as error:
        raise AuditBroken(f"audit entry {row.sequence} is not an audit entry") from error


def _checked(row: AuditRow, sequence: int, previous: str) -> AuditEntry:
    if row.sequence != sequence:
        raise AuditBroken(f"audit entry {sequence} is missing: the next one is {row.sequence}")
    entry = _parse(row)
    if entry.sequence != sequence:
        raise AuditBroken(f"audit entry {sequence} was moved: it was written as {entry.sequence}")
    if entry.prev != previous:
        raise AuditBroken(f"audit entry {sequence} does not follow the one before it")
    return entry


def _check_head(
    head: AuditHeadRow | None, sequence: int, digest: str, key: ed25519.Ed25519PublicKey | None
) -> bool:
    if head is None:
        raise AuditBroken("the audit log has no head")
    if (head.sequence, head.hash) != (sequence, digest):
        raise AuditBroken(f"audit log ends at entry {sequence}, its signed head at {head.sequence}")
    if key is None:
        return False
    try:
        key.verify(base64.b64decode(head.signature, validate=True), _signed_head(sequence, digest))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise BadSignature("the head of the audit log was not signed by this broker's audit key") from error
    return True


def _sign(key: ed25519.Ed25519PrivateKey, sequence: int, digest: str) -> str:
    return base64.b64encode(key.sign(_signed_head(sequence, digest))).decode("ascii")


def _signed_head(sequence: int, digest: str) -> bytes:
    return _HEAD_CONTEXT + rfc8785.dumps({"hash": digest, "sequence": sequence})
