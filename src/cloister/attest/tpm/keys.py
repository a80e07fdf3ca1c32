"""The attestation key's public part, in the forms in which TPM tools hand it on.

================= ==================================================================================
form              remarks
================= ==================================================================================
SubjectPublicKeyInfo  DER or PEM
TPMT_PUBLIC       the TPM's own, with attributes; they must say that the key signs only what the TPM made
TPM2B_PUBLIC      u16 size, then TPMT_PUBLIC
certificate       DER or PEM, see ``cloister.attest.tpm.certificates``
================= ==================================================================================

TPMT_PUBLIC: type u16 (1 RSA, 0x23 ECC), nameAlg u16, objectAttributes u32, authPolicy TPM2B, symmetric u16
(0x10: none), scheme u16 and, if not 0x10, its hash u16; RSA: keyBits u16, exponent u32 (0: 65537), modulus
TPM2B; ECC: curve u16, kdf u16 (0x10), x TPM2B, y TPM2B.

Source: TCG Trusted Platform Module Library 2.0, part 2, revision 1.59, sections 8.3 and 12.2.4.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from cloister.attest.tpm.algorithms import hash_name
from cloister.attest.tpm.reader import Reader
from cloister.errors import EndorsementMismatch, MalformedInput

AttestationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
MAX_KEY_BYTES = 4096
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
CURVES = {0x3: ec.SECP256R1(), 0x4: ec.SECP384R1(), 0x5: ec.SECP521R1()}
_RSA, _ECC, _NULL = 0x1, 0x23, 0x10
_FIXED_TPM, _RESTRICTED, _DECRYPT, _SIGN = 1, 16, 17, 18


def parse_key(raw: bytes) -> AttestationKey:
    """The key in ``raw``, whichever form it has.

    Raises:
        MalformedInput: none of the forms, or a key that is too short or of an unknown curve.
        EndorsementMismatch: a TPM key whose attributes permit it to sign anything else than what a TPM made.
    """
    if len(raw) > MAX_KEY_BYTES:
        raise MalformedInput(f"attestation key has {len(raw)} bytes, at most {MAX_KEY_BYTES} are read")
    if raw[:2] in (b"\x00\x01", b"\x00\x23"):
        return parse_tpmt_public(raw)
    if len(raw) > 4 and int.from_bytes(raw[:2], "big") == len(raw) - 2:
        return parse_tpmt_public(raw[2:])
    try:
        load = load_pem_public_key if raw.lstrip().startswith(b"-----") else load_der_public_key
        key = load(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedInput("attestation key is not a public key in DER, PEM or TPM form") from error
    return accept_key(key)


def accept_key(key: object) -> AttestationKey:
    """``key``, if it is one that a quote may be signed with."""
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise MalformedInput(f"attestation key has {key.key_size} bits, expected {MIN_RSA_BITS} or more")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {c.name for c in CURVES.values()}:
        return key
    raise MalformedInput("attestation key is neither RSA nor on a NIST curve of 256 bits or more")


def parse_tpmt_public(raw: bytes) -> AttestationKey:
    """The key in a TPMT_PUBLIC, after its attributes have been checked."""
    reader = Reader(raw, "TPM public area")
    kind = reader.number(2, "type")
    hash_name(reader.number(2, "name algorithm"))
    attributes = reader.number(4, "attributes")
    _check_attributes(attributes)
    reader.sized("policy", 64)
    symmetric = reader.number(2, "symmetric algorithm")
    if symmetric != _NULL:
        raise MalformedInput(f"TPM public area: symmetric algorithm {symmetric:#x} in a signing key")
    if reader.number(2, "scheme") != _NULL:
        reader.number(2, "hash of the scheme")
    key = _read_rsa(reader) if kind == _RSA else _read_ecc(reader, kind)
    reader.finish()
    return accept_key(key)


def rsa_key(modulus: bytes, exponent: int) -> rsa.RSAPublicKey:
    """An RSA key of an acceptable size from its numbers."""
    number = int.from_bytes(modulus, "big")
    if not MIN_RSA_BITS <= number.bit_length() <= MAX_RSA_BITS:
        raise MalformedInput(f"RSA key has {number.bit_length()} bits, expected {MIN_RSA_BITS} or more")
    try:
        return rsa.RSAPublicNumbers(exponent, number).public_key()
    except ValueError as error:
        raise MalformedInput("RSA key: modulus and exponent do not make one") from error


def ecc_key(curve: ec.EllipticCurve, x: bytes, y: bytes) -> ec.EllipticCurvePublicKey:
    """A key on ``curve`` from its coordinates, big-endian."""
    if max(len(x), len(y)) > (curve.key_size + 7) // 8:
        raise MalformedInput(f"key has coordinates that are too long for {curve.name}")
    try:
        return ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
        ).public_key()
    except ValueError as error:
        raise MalformedInput(f"key is not a point of {curve.name}") from error


def spki_of(key: AttestationKey) -> bytes:
    """DER of the SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_attributes(attributes: int) -> None:
    """A key that is not restricted would sign a forged quote that is handed to it."""
    needed = {"fixedTPM": _FIXED_TPM, "restricted": _RESTRICTED, "sign": _SIGN}
    missing = [name for name, bit in needed.items() if not attributes >> bit & 1]
    if missing or attributes >> _DECRYPT & 1:
        raise EndorsementMismatch(
            f"TPM key with attributes {attributes:#010x} is no attestation key:"
            f" expected {', '.join(needed)} and not decrypt"
        )


def _read_rsa(reader: Reader) -> rsa.RSAPublicKey:
    bits, exponent = reader.number(2, "key size"), reader.number(4, "exponent")
    modulus = reader.sized("modulus", MAX_RSA_BITS // 8)
    if 8 * len(modulus) != bits:
        raise MalformedInput(f"TPM public area: modulus of {len(modulus)} bytes in a key of {bits} bits")
    return rsa_key(modulus, exponent or 65537)


def _read_ecc(reader: Reader, kind: int) -> ec.EllipticCurvePublicKey:
    if kind != _ECC:
        raise MalformedInput(
            f"TPM public area of type {kind:#x}, expected {_RSA:#x} (RSA) or {_ECC:#x} (ECC)"
        )
    number = reader.number(2, "curve")
    if number not in CURVES:
        raise MalformedInput(f"TPM public area: unknown curve {number:#x}")
    if reader.number(2, "key derivation") != _NULL:
        raise MalformedInput("TPM public area: key derivation in a signing key")
    return ecc_key(CURVES[number], reader.sized("x", 66), reader.sized("y", 66))
