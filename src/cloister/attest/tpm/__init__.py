"""TPM 2.0 quotes: bytes, attestation keys, verification, claims."""

from cloister.attest.tpm.endorsements import TpmEndorsements
from cloister.attest.tpm.verify import TpmClaims

__all__ = ["TpmClaims", "TpmEndorsements"]
