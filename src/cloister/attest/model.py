"""The nouns of RFC 9334 as types: Evidence, Endorsements, Claims, Attestation Result.

Pure data. ``verify`` (genuine?) turns Evidence and Endorsements into Claims; ``appraise`` (acceptable?)
turns Claims and Reference Values into an AttestationResult, or raises.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an Attester says of itself, in its vendor's own bytes, not yet believed."""

    scheme: str
    """Key of ``cloister.attest.verifier.SCHEMES``, for example ``tdx``."""
    raw: bytes


class Endorsements(Protocol):
    """What a vendor says of its hardware: collateral, certificates, CRLs. One class per vendor."""

    def to_mapping(self) -> dict[str, Any]:
        """JSON form; the class's ``from_mapping`` takes it back."""
        ...


class Attester(Protocol):
    """Obtains Evidence of this machine."""

    scheme: str

    def get_evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes of ``report_data``.

        Raises:
            KeyUnavailable, TransportError: the hardware or its quoting service did not answer.
        """
        ...

    def get_endorsements(self) -> Endorsements | None:
        """Endorsements that this machine holds itself, for callers that have no way to fetch them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What verified Evidence says. Only ``verify_evidence`` makes these."""

    scheme: str
    simulated: bool
    """True if the chain ends in any root but the vendor's own: such a TEE protects nothing."""
    debug: bool
    report_data: bytes
    tcb_status: str
    """In the vendor's words, for example ``UpToDate``."""
    tcb_date: str
    advisory_ids: tuple[str, ...]
    hardware_id: str
    """Hexadecimal identity of the physical platform."""

    def to_mapping(self) -> dict[str, Any]:
        """Every claim as JSON: bytes become lower-case hexadecimal, tuples become lists."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


class TrustTier(enum.IntEnum):
    """AR4SI trust tiers (draft-ietf-rats-ar4si)."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of an appraisal, in public values."""

    name: str
    expected: str
    found: str
    passed: bool


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """The verdict: every check that was made, and the claims they were made on."""

    tier: TrustTier
    claims: Claims
    checks: tuple[Check, ...] = field(default=())
    evaluated_at: datetime | None = None

    @property
    def simulated(self) -> bool:
        """Whether the verdict is about a simulated platform."""
        return self.claims.simulated

    def to_mapping(self) -> dict[str, Any]:
        """JSON form for ``--json``, policies and tokens."""
        return {
            "tier": self.tier.name.lower(),
            "simulated": self.simulated,
            "evaluated_at": self.evaluated_at.isoformat() if self.evaluated_at else None,
            "checks": [
                {"name": c.name, "expected": c.expected, "found": c.found, "passed": c.passed}
                for c in self.checks
            ],
            "claims": self.claims.to_mapping(),
        }
