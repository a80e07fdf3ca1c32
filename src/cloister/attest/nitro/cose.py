"""COSE_Sign1 with ES384, as AWS wraps its attestation documents.

============= ================= ==========================================================================
element       CBOR              meaning
============= ================= ==========================================================================
(tag)         18, may be absent COSE_Sign1
protected     byte string       ``{1: -35}``: algorithm ES384
unprotected   map               empty: nothing in it would be signed
payload       byte string       1 to 16384 bytes, the attestation document
signature     byte string       r and s, 48 big-endian bytes each
============= ================= ==========================================================================

Signed is the array ``["Signature1", protected, h'', payload]``.

Source: RFC 9052, sections 4.2 and 4.4; AWS Nitro Enclaves attestation process, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest.nitro.cbor import Tag, decode, encode_bytes
from cloister.attest.p384 import SIGNATURE_BYTES, verify_raw
from cloister.errors import MalformedInput

TAG_SIGN1 = 18
ES384_HEADER = bytes.fromhex("a1013822")
MAX_PAYLOAD_BYTES = 16384
MAX_DOCUMENT_BYTES = MAX_PAYLOAD_BYTES + 256
_SIGNED_BEGIN = bytes.fromhex("846a5369676e617475726531") + encode_bytes(ES384_HEADER) + encode_bytes(b"")


@dataclass(frozen=True, slots=True)
class Sign1:
    """A signed message whose signature has not been checked yet."""

    payload: bytes
    signature: bytes

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Establish that ``key`` signed the payload.

        Raises:
            BadSignature: it did not.
        """
        verify_raw(key, self.signature, _SIGNED_BEGIN + encode_bytes(self.payload), "attestation document")


def parse_sign1(raw: bytes) -> Sign1:
    """The parts of a COSE_Sign1 message, tagged or not.

    Raises:
        MalformedInput: another structure, algorithm or length, or anything after it.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise MalformedInput(f"COSE_Sign1 has {len(raw)} bytes, at most {MAX_DOCUMENT_BYTES} are read")
    message = decode(raw)
    if isinstance(message, Tag):
        if message.number != TAG_SIGN1:
            raise MalformedInput(f"COSE message has tag {message.number}, expected {TAG_SIGN1}")
        message = message.value
    if not isinstance(message, list) or len(message) != 4:
        raise MalformedInput("COSE_Sign1 is not an array of four elements")
    protected, unprotected, payload, signature = message
    if protected != ES384_HEADER:
        raise MalformedInput("COSE_Sign1: protected header does not say ES384, and only that")
    if unprotected != {}:
        raise MalformedInput("COSE_Sign1: unprotected header is not an empty map")
    if not isinstance(payload, bytes) or not 1 <= len(payload) <= MAX_PAYLOAD_BYTES:
        raise MalformedInput(f"COSE_Sign1: payload is not a byte string of 1 to {MAX_PAYLOAD_BYTES} bytes")
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise MalformedInput(f"COSE_Sign1: signature is not a byte string of {SIGNATURE_BYTES} bytes")
    return Sign1(payload, signature)
