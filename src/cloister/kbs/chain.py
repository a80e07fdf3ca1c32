"""The chain of audit entries: what an entry is, how it follows the one before it, and how that is checked.

Each entry is a JSON object with the members of ``AuditEntry``. ``prev`` is the hash of the entry before it
(64 zeros for the first); its own hash is SHA-256 over its canonical JSON (RFC 8785). No database, no files:
``cloister.kbs.audit`` keeps the chain, ``cloister.kbs.audit_file`` carries it elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

import rfc8785
from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.errors import VerificationError
from cloister.kbs.checkpoints import Checkpoint

GENESIS = "0" * 64
Kind = Literal[
    "release",
    "refusal",
    "stored",
    "deleted",
    "revoked",
    "restored",
    "minimum",
    "rotated",
    "document",
    "permitted",
    "refused",
    "repaired",
]


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


def hash_of(entry: AuditEntry) -> str:
    """An entry's own hash: SHA-256 over its canonical JSON, hexadecimal."""
    return hashlib.sha256(entry.canonical()).hexdigest()


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
    checkpoints: int = 0
    """How many checkpoints the log was held against: its own, and those that were given."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain ends."""

    sequence: int
    hash: str


def entry_after(head: Head, event: AuditEvent) -> AuditEntry:
    """The entry that an event becomes at the end of a chain; its hash is not taken yet."""
    return AuditEntry(
        sequence=head.sequence + 1,
        time=event.time.isoformat(timespec="microseconds"),
        kind=event.kind,
        subject=event.subject,
        resource=event.resource,
        evidence_digest=event.evidence_digest,
        claims=event.claims,
        policy_ids=list(event.policy_ids),
        reason=event.reason,
        prev=head.hash,
    )


def parse_entry(sequence: int, body: str, digest: str) -> AuditEntry:
    """Read one stored entry.

    Raises:
        AuditBroken: its hash does not fit, or it is not an entry.
    """
    if hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest() != digest:
        raise AuditBroken(f"audit entry {sequence} was edited: its hash does not fit")
    try:
        return AuditEntry(**json.loads(body), hash=digest)
    except (ValueError, TypeError, RecursionError) as error:
        raise AuditBroken(f"audit entry {sequence} is not an audit entry") from error


class Chain:
    """Entries checked one after the other: each follows the one before it and has the hash that it says.

    Args:
        after: where the chain begins, for a log whose beginning was checked earlier.
    """

    def __init__(self, after: Head | None = None) -> None:
        after = after or Head(0, GENESIS)
        self.sequence, self.hash = after.sequence, after.hash
        self._first = after.sequence
        self._count = {"release": 0, "refusal": 0}
        self._expected: dict[int, str] = {}
        self._checkpoints = 0

    def expect(self, checkpoints: Iterable[Checkpoint], key: ed25519.Ed25519PublicKey | None) -> None:
        """Hold the chain against checkpoints; to be called before the entries that they speak of are added.

        Raises:
            BadSignature: one was not signed by ``key``.
            AuditBroken: two of them contradict each other, or the chain so far.
        """
        for checkpoint in checkpoints:
            if key is not None:
                checkpoint.verify(key)
            self._checkpoints += 1
            if checkpoint.sequence < self._first:
                continue  # of a part of the log that is not looked at
            if checkpoint.sequence == self.sequence:
                expected = self.hash
            else:
                expected = self._expected.setdefault(checkpoint.sequence, checkpoint.hash)
            if expected != checkpoint.hash or self._first < checkpoint.sequence < self.sequence:
                raise AuditBroken(f"a checkpoint contradicts the log at entry {checkpoint.sequence}")

    def add(self, sequence: int, body: str, digest: str) -> AuditEntry:
        """Check the next entry.

        Raises:
            AuditBroken: it is not the one that follows.
        """
        expected = self.sequence + 1
        if sequence != expected:
            raise AuditBroken(f"audit entry {expected} is missing: the next one is {sequence}")
        entry = parse_entry(sequence, body, digest)
        if entry.sequence != expected:
            raise AuditBroken(f"audit entry {expected} was moved: it was written as {entry.sequence}")
        if entry.prev != self.hash:
            raise AuditBroken(f"audit entry {expected} does not follow the one before it")
        if self._expected.pop(sequence, digest) != digest:
            raise AuditBroken(f"audit entry {sequence} is not the one that a checkpoint speaks of")
        self.sequence, self.hash = sequence, digest
        if entry.kind in self._count:
            self._count[entry.kind] += 1
        return entry

    def summary(self, *, signed: bool) -> AuditSummary:
        """What was found, once every entry was added.

        Raises:
            AuditBroken: the log ends before an entry that a checkpoint speaks of.
        """
        if self._expected:
            raise AuditBroken(
                f"the audit log was cut short: it ends at entry {self.sequence}, a checkpoint speaks of "
                f"entry {max(self._expected)}"
            )
        return AuditSummary(
            self.sequence - self._first,
            self._count["release"],
            self._count["refusal"],
            self.hash,
            signed,
            self._checkpoints,
        )
