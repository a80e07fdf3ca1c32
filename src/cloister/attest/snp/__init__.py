"""AMD SEV-SNP attestation reports: bytes, certificates, verification, claims."""

from cloister.attest.snp.claims import SnpClaims
from cloister.attest.snp.endorsements import SnpEndorsements

__all__ = ["SnpClaims", "SnpEndorsements"]
