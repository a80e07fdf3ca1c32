"""Remote attestation: obtain Evidence, verify it (genuine?), appraise it (acceptable?)."""

from cloister.attest.appraisal import AppraisalDenied, ReferenceValues, appraise
from cloister.attest.model import (
    AttestationResult,
    Attester,
    Check,
    Claims,
    Endorsements,
    Evidence,
    TrustTier,
)
from cloister.attest.verifier import SCHEMES, verify_evidence

__all__ = [
    "SCHEMES",
    "AppraisalDenied",
    "AttestationResult",
    "Attester",
    "Check",
    "Claims",
    "Endorsements",
    "Evidence",
    "ReferenceValues",
    "TrustTier",
    "appraise",
    "verify_evidence",
]
