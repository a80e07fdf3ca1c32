"""Intel's raw ECDSA: r and s, 32 big-endian bytes each, over SHA-256 with P-256."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509 import Certificate

from cloister.errors import BadSignature, MalformedInput


def verify_raw(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, what: str) -> None:
    """Establish that ``key`` signed ``message``; ``what`` names the signature in errors.

    Raises:
        MalformedInput: a signature that does not have 64 bytes.
        BadSignature: it does not verify.
    """
    if len(signature) != 64:
        raise MalformedInput(f"signature of {what} has {len(signature)} bytes, expected 64")
    encoded = encode_dss_signature(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    )
    try:
        key.verify(encoded, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BadSignature(f"signature of {what} does not verify") from error


def key_from_raw(point: bytes, what: str) -> ec.EllipticCurvePublicKey:
    """A P-256 key from x and y, 32 big-endian bytes each.

    Raises:
        MalformedInput: not a point of the curve.
    """
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError as error:
        raise MalformedInput(f"{what} is not a point of P-256") from error


def key_of(certificate: Certificate) -> ec.EllipticCurvePublicKey:
    """The P-256 key of a certificate whose key type has been checked."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MalformedInput("certificate has a key that is not P-256")
    return key
