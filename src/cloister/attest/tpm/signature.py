"""TPMT_SIGNATURE, and the bare signatures that some tools cut out of it.

=================== ===============================================================================
form                bytes
=================== ===============================================================================
RSASSA, RSAPSS      u16 0x14 or 0x16, u16 hash, TPM2B signature
ECDSA               u16 0x18, u16 hash, TPM2B r, TPM2B s
bare RSA            as long as the modulus: RSASSA with SHA-256 (Azure's vTPM has no other)
bare ECDSA          DER, with SHA-256
=================== ===============================================================================

Source: TCG Trusted Platform Module Library 2.0, part 2, revision 1.59, section 11.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.attest.tpm.algorithms import SIGNATURE_HASHES, hash_name
from cloister.attest.tpm.keys import AttestationKey
from cloister.attest.tpm.reader import Reader
from cloister.errors import BadSignature, MalformedInput

MAX_SIGNATURE_BYTES = 1024
_RSASSA, _RSAPSS, _ECDSA = 0x14, 0x16, 0x18
_NAMES = {_RSASSA: "RSASSA", _RSAPSS: "RSAPSS", _ECDSA: "ECDSA"}
_BARE_HASH = "sha256"


@dataclass(frozen=True, slots=True)
class TpmSignature:
    """A signature, ready for ``cryptography``."""

    scheme: str
    hash_name: str
    raw: bytes
    """RSA: the number; ECDSA: DER."""


def parse_signature(raw: bytes, key: AttestationKey) -> TpmSignature:
    """The signature in ``raw``, in the form that fits ``key``.

    Raises:
        MalformedInput: not such a signature, or one with a hash that is not accepted.
    """
    if len(raw) > MAX_SIGNATURE_BYTES:
        raise MalformedInput(f"TPM signature has {len(raw)} bytes, at most {MAX_SIGNATURE_BYTES} are read")
    if isinstance(key, rsa.RSAPublicKey) and len(raw) == (key.key_size + 7) // 8:
        return TpmSignature("RSASSA", _BARE_HASH, raw)
    if isinstance(key, ec.EllipticCurvePublicKey) and raw[:1] == b"\x30":
        return TpmSignature("ECDSA", _BARE_HASH, raw)
    return _parse_tpmt_signature(raw, key)


def verify_signature(key: AttestationKey, signature: TpmSignature, message: bytes) -> None:
    """Establish that ``key`` signed ``message``.

    Raises:
        BadSignature: it did not.
    """
    algorithm = SIGNATURE_HASHES[signature.hash_name]
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature.raw, message, ec.ECDSA(algorithm))
        elif signature.scheme == "RSAPSS":
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            key.verify(signature.raw, message, pss, algorithm)
        else:
            key.verify(signature.raw, message, padding.PKCS1v15(), algorithm)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature("signature of TPM quote does not verify under the attestation key") from error


def _parse_tpmt_signature(raw: bytes, key: AttestationKey) -> TpmSignature:
    reader = Reader(raw, "TPM signature")
    scheme = reader.number(2, "scheme")
    wanted = (_RSASSA, _RSAPSS) if isinstance(key, rsa.RSAPublicKey) else (_ECDSA,)
    if scheme not in wanted:
        names = " or ".join(_NAMES[number] for number in wanted)
        raise MalformedInput(f"TPM signature of scheme {scheme:#x}, the attestation key makes {names}")
    name = hash_name(reader.number(2, "hash"))
    if name not in SIGNATURE_HASHES:
        raise MalformedInput(f"TPM signature with {name}, expected one of {', '.join(SIGNATURE_HASHES)}")
    if scheme == _ECDSA:
        r, s = (int.from_bytes(reader.sized(part, 66), "big") for part in ("r", "s"))
        value = encode_dss_signature(r, s)
    else:
        value = reader.sized("signature", 512)
    reader.finish()
    return TpmSignature(_NAMES[scheme], name, value)
