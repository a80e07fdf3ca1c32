"""A TPM for tests: attestation keys of every kind, quotes, event logs."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HASHES = {"sha1": 0x4, "sha256": 0xB, "sha384": 0xC, "sha512": 0xD}
ALGORITHMS = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
CURVES = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}
AK_ATTRIBUTES = 0x00050072
NONCE = bytes(range(32))


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One RSA key per size; making them is slow."""
    return rsa.generate_private_key(65537, bits)


def sized(content: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(content)) + content


def pcr_values(bank: str, numbers: Iterable[int]) -> dict[int, bytes]:
    """Some value for each PCR."""
    return {number: hashlib.new(bank, bytes([number])).digest() for number in numbers}


def tpmt_public(key: Any, attributes: int = AK_ATTRIBUTES) -> bytes:
    """The TPM's form of a public key."""
    policy = sized(b"")
    if isinstance(key, rsa.RSAPublicKey):
        head = struct.pack(">HHI", 1, 0xB, attributes) + policy
        modulus = key.public_numbers().n.to_bytes(key.key_size // 8, "big")
        return head + struct.pack(">HHHHI", 0x10, 0x14, 0xB, key.key_size, 0) + sized(modulus)
    numbers, size = key.public_numbers(), (key.key_size + 7) // 8
    head = struct.pack(">HHI", 0x23, 0xB, attributes) + policy
    curve = struct.pack(">HHHHH", 0x10, 0x18, 0xB, CURVES[key.curve.name], 0x10)
    return head + curve + sized(numbers.x.to_bytes(size, "big")) + sized(numbers.y.to_bytes(size, "big"))


def selection_of(banks: Mapping[str, Mapping[int, bytes]]) -> bytes:
    """TPML_PCR_SELECTION of all given PCRs."""
    parts = [struct.pack(">I", len(banks))]
    for bank, values in banks.items():
        bitmap = sum(1 << number for number in values).to_bytes(3, "little")
        parts.append(struct.pack(">HB", HASHES[bank], 3) + bitmap)
    return b"".join(parts)


class FakeTpm:
    """A TPM with one attestation key."""

    def __init__(self, key: Any = None, *, scheme: str = "RSASSA", algorithm: str = "sha256") -> None:
        self.key: Any = key or rsa_key()
        self.scheme = "ECDSA" if isinstance(self.key, ec.EllipticCurvePrivateKey) else scheme
        self.algorithm = algorithm

    @property
    def spki(self) -> bytes:
        """The public key."""
        content: bytes = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return content

    def message(
        self,
        banks: Mapping[str, Mapping[int, bytes]],
        *,
        nonce: bytes = NONCE,
        magic: int = 0xFF544347,
        kind: int = 0x8018,
        safe: int = 1,
        digest: bytes | None = None,
    ) -> bytes:
        """A quote's message."""
        values = b"".join(values[number] for values in banks.values() for number in sorted(values))
        own = hashlib.new(self.algorithm, values).digest() if digest is None else digest
        return b"".join(
            (
                struct.pack(">IH", magic, kind),
                sized(b"\x00\x0b" + bytes(32)),
                sized(nonce),
                struct.pack(">QIIBQ", 5000, 3, 1, safe, 0x2020),
                selection_of(banks),
                sized(own),
            )
        )

    def raw_signature(self, message: bytes) -> bytes:
        """The signature as ``cryptography`` makes it."""
        algorithm = ALGORITHMS[self.algorithm]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return bytes(self.key.sign(message, ec.ECDSA(algorithm)))
        if self.scheme == "RSAPSS":
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
            return bytes(self.key.sign(message, pss, algorithm))
        return bytes(self.key.sign(message, padding.PKCS1v15(), algorithm))

    def signature(self, message: bytes) -> bytes:
        """TPMT_SIGNATURE."""
        raw = self.raw_signature(message)
        number = {"RSASSA": 0x14, "RSAPSS": 0x16, "ECDSA": 0x18}[self.scheme]
        head = struct.pack(">HH", number, HASHES[self.algorithm])
        if self.scheme != "ECDSA":
            return head + sized(raw)
        r, s = decode_dss_signature(raw)
        size = (self.key.key_size + 7) // 8
        return head + sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))

    def evidence(self, banks: Mapping[str, Mapping[int, bytes]], **more: Any) -> dict[str, Any]:
        """Evidence as a JSON object; ``more`` are further members, None leaves one out."""
        message = self.message(banks, nonce=more.pop("quoted_nonce", NONCE))
        members = {
            "ak_public": self.spki.hex(),
            "tpm_quote": {
                "message": message.hex(),
                "signature": self.signature(message).hex(),
                "pcrs": {bank: {str(n): v.hex() for n, v in pcrs.items()} for bank, pcrs in banks.items()},
            },
            **more,
        }
        return {name: value for name, value in members.items() if value is not None}


def encode(document: Mapping[str, Any]) -> bytes:
    """Evidence as bytes."""
    return json.dumps(document).encode()


def event_log(
    events: Iterable[tuple[int, int, bytes, bytes]], banks: Iterable[str] = ("sha256",), *, end: bytes = b""
) -> bytes:
    """A crypto-agile log of (register, type, what is measured, data)."""
    banks = tuple(banks)
    declared = b"".join(struct.pack("<HH", HASHES[bank], hashlib.new(bank).digest_size) for bank in banks)
    header = b"Spec ID Event03\x00" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + declared + b"\x00"
    parts = [struct.pack("<II20sI", 0, 3, bytes(20), len(header)) + header]
    for register, kind, measured, data in events:
        parts.append(struct.pack("<III", register, kind, len(banks)))
        parts.extend(struct.pack("<H", HASHES[b]) + hashlib.new(b, measured).digest() for b in banks)
        parts.append(struct.pack("<I", len(data)) + data)
    return b"".join(parts) + end


def extend(bank: str, *measured: bytes) -> bytes:
    """What a register holds after these have been measured into it."""
    value = bytes(hashlib.new(bank).digest_size)
    for content in measured:
        value = hashlib.new(bank, value + hashlib.new(bank, content).digest()).digest()
    return value
