"""AWS Nitro attestation documents (enclaves, NitroTPM): bytes, verification, claims."""

from cloister.attest.nitro.verify import NitroClaims, NitroEndorsements

__all__ = ["NitroClaims", "NitroEndorsements"]
