"""Checkpoints of the audit log: its length and last hash at some time, signed with the broker's audit key.

A checkpoint that an auditor keeps elsewhere proves later that the log still holds those entries: a log that
was cut short, or put back from an older copy with its head, no longer has that entry with that hash. The
broker writes one every ``EVERY_ENTRIES`` entries and about every hour; exporting the log makes one more.

As JSON: ``{"hash", "sequence", "signature", "time"}``; the signature (base64) is Ed25519 over
``cloister-audit-checkpoint`` NUL and the RFC 8785 canonical JSON of the other three.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Self

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.errors import BadSignature, MalformedInput

EVERY_ENTRIES = 1000
EVERY_S = 3600.0
_CONTEXT = b"cloister-audit-checkpoint\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One signed statement about the log."""

    sequence: int
    """How many entries the log had."""
    hash: str
    """Hash of the last of them."""
    time: str
    signature: str

    @classmethod
    def sign(cls, sequence: int, digest: str, time: datetime, key: ed25519.Ed25519PrivateKey) -> Self:
        """A checkpoint of a log that ends with this entry."""
        moment = time.isoformat(timespec="microseconds")
        signature = key.sign(_signed(sequence, digest, moment))
        return cls(
            sequence=sequence,
            hash=digest,
            time=moment,
            signature=base64.b64encode(signature).decode("ascii"),
        )

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any]) -> Self:
        """Read the JSON form.

        Raises:
            MalformedInput: a member is missing, unknown or of another type.
        """
        forms: dict[str, type] = {"sequence": int, "hash": str, "time": str, "signature": str}
        if not isinstance(document, Mapping) or document.keys() != forms.keys():
            raise MalformedInput(f"checkpoint: members must be {', '.join(sorted(forms))}")
        if any(type(document[name]) is not form for name, form in forms.items()):
            raise MalformedInput("checkpoint: a member is of another type")
        return cls(**document)

    def to_mapping(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    def verify(self, key: ed25519.Ed25519PublicKey) -> None:
        """Establish that the broker with this audit key made it.

        Raises:
            BadSignature: it did not.
        """
        try:
            signature = base64.b64decode(self.signature, validate=True)
            key.verify(signature, _signed(self.sequence, self.hash, self.time))
        except (InvalidSignature, binascii.Error, ValueError) as error:
            raise BadSignature(
                f"the checkpoint of entry {self.sequence} was not signed by this broker's audit key"
            ) from error


def _signed(sequence: int, digest: str, time: str) -> bytes:
    try:
        return _CONTEXT + rfc8785.dumps({"hash": digest, "sequence": sequence, "time": time})
    except rfc8785.CanonicalizationError as error:
        raise ValueError("not canonical JSON") from error
