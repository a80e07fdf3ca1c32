"""NitroTPM: the attestation key is certified by an AWS attestation document instead of a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attest.nitro.verify import NitroClaims, verify_nitro
from cloister.attest.tpm.keys import AttestationKey, spki_of
from cloister.attest.tpm.quote import VerifiedTpmQuote
from cloister.errors import BindingMismatch

_BANK = "sha384"


def verify_nitro_binding(
    document: bytes,
    key: AttestationKey,
    quotes: Sequence[VerifiedTpmQuote],
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> NitroClaims:
    """Establish that a NitroTPM document is genuine and speaks of this key, nonce and PCRs.

    Raises:
        MalformedInput, VerificationError: as ``verify_nitro``.
        BindingMismatch: the document is an enclave's, or of another key, nonce or PCR value.
    """
    claims = verify_nitro(document, None, now, roots)
    if claims.kind != "tpm":
        raise BindingMismatch("attestation document is an enclave's, expected NitroTPM's")
    if claims.public_key not in _encodings(key):
        raise BindingMismatch("attestation document is of another key than the quote's")
    for quote in quotes:
        if claims.nonce is not None and claims.nonce != quote.attest.extra_data:
            raise BindingMismatch("attestation document has another nonce than the quote")
        for index, value in quote.pcrs.get(_BANK, {}).items():
            if claims.pcrs.get(index, value) != value:
                raise BindingMismatch(f"attestation document has another value of PCR {index} than the quote")
    return claims


def _encodings(key: AttestationKey) -> tuple[bytes, ...]:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return spki_of(key), key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return (spki_of(key),)
