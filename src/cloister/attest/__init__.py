"""Remote attestation: obtain Evidence, verify it (genuine?), appraise it (acceptable?)."""

from cloister.attest.appraisal import AppraisalDenied, ReferenceValues, appraise
from cloister.attest.composite import Part, verify_composite
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.model import (
    AttestationResult,
    Attester,
    Check,
    Claims,
    Endorsements,
    Evidence,
    TrustTier,
)
from cloister.attest.nitro.verify import NitroEndorsements
from cloister.attest.nvidia import NvidiaEndorsements
from cloister.attest.snp import SnpEndorsements
from cloister.attest.tpm import TpmEndorsements
from cloister.attest.verifier import SCHEMES, parse_endorsements, verify_evidence

__all__ = [
    "SCHEMES",
    "AppraisalDenied",
    "AttestationResult",
    "Attester",
    "Check",
    "Claims",
    "DcapEndorsements",
    "Endorsements",
    "Evidence",
    "NitroEndorsements",
    "NvidiaEndorsements",
    "Part",
    "ReferenceValues",
    "SnpEndorsements",
    "TpmEndorsements",
    "TrustTier",
    "appraise",
    "parse_endorsements",
    "verify_composite",
    "verify_evidence",
]
