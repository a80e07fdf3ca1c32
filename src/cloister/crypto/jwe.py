"""JSON Web Encryption of one resource to one TEE key, in the form that a Confidential Containers guest opens.

The message is RFC 7516's flattened JSON form, with ``enc`` always ``A256GCM``::

    {"protected", "encrypted_key", "iv", "ciphertext", "tag"}      each base64url without padding

The guest does not keep the bytes of ``protected``: it parses the header and serialises it again, as compact
JSON with ``alg``, ``enc``, then the rest, and takes that for the additional data. So ``epk`` has to be inside
``protected`` (the JSON serialisers of the usual libraries put it outside), and the header has to be written
in exactly that order, the members of ``epk`` sorted. Every byte of it is therefore made here, from the
primitives of RFC 7518; the tests hold it against an independent library in both directions.

========================= ====================================================== ==================
``alg`` of the TEE key    encrypted_key                                          source
========================= ====================================================== ==================
ECDH-ES+A256KW            AES-256 key wrap under Concat KDF(ECDH), P-256, P-521  RFC 7518, 4.6
RSA-OAEP-256              RSA-OAEP with SHA-256, 2048 to 8192 bits               RFC 7518, 4.3
========================= ====================================================== ==================

RSA1_5 is refused (Bleichenbacher's oracle), and so is any name that is not in this table.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from cloister.errors import BadCiphertext, MalformedInput

ENC = "A256GCM"
ECDH_ES_A256KW = "ECDH-ES+A256KW"
RSA_OAEP_256 = "RSA-OAEP-256"
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
MEMBERS = ("protected", "encrypted_key", "iv", "ciphertext", "tag")

_CEK_BYTES, _IV_BYTES, _TAG_BYTES = 32, 12, 16
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
_JWK_MEMBERS = {"EC": ("kty", "crv", "alg", "x", "y"), "RSA": ("kty", "alg", "n", "e")}


@dataclass(frozen=True, slots=True)
class TeePublicKey:
    """The public key of a TEE, checked; ``jwk`` holds exactly the members that evidence is bound to."""

    jwk: dict[str, str]
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> TeePublicKey:
        """Read a JWK; members other than the known ones are dropped, as the other side drops them.

        Raises:
            MalformedInput: member missing or of another type, unknown ``kty``, ``crv`` or ``alg``, or a
                point that is not on its curve.
        """
        members = _JWK_MEMBERS.get(str(jwk.get("kty")))
        if members is None:
            raise MalformedInput(f"tee-pubkey: kty must be EC or RSA, found {_shown(jwk.get('kty'))}")
        rebuilt: dict[str, str] = {}
        for name in members:
            value = jwk.get(name)
            if not isinstance(value, str):
                raise MalformedInput(f"tee-pubkey: member {name!r} is missing or not text")
            rebuilt[name] = value
        if members is _JWK_MEMBERS["EC"]:
            return cls(rebuilt, _ec_public(rebuilt))
        return cls(rebuilt, _rsa_public(rebuilt))


class TeePrivateKey:
    """An ephemeral P-256 key pair that lives in the TEE's memory and opens what the broker sends it."""

    __slots__ = ("_key", "public_jwk")

    def __init__(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self._key = key
        self.public_jwk = public_jwk(key.public_key())

    @classmethod
    def generate(cls) -> TeePrivateKey:
        """A new P-256 key, the protocol's default."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def decrypt(self, message: Mapping[str, Any]) -> bytes:
        """Open one message; see ``decrypt``."""
        return decrypt(self._key, message)

    def decrypt_into(self, message: Mapping[str, Any], room: Callable[[int], memoryview]) -> None:
        """Open one message into the caller's memory; see ``decrypt_into``."""
        decrypt_into(self._key, message, room)

    def __repr__(self) -> str:
        return f"TeePrivateKey({self.public_jwk['alg']}, redacted)"


def public_jwk(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> dict[str, str]:
    """The JWK of a public key with exactly the members that the protocol's typed struct has."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "alg": RSA_OAEP_256, "n": _b64u_uint(numbers.n), "e": _b64u_uint(numbers.e)}
    point = key.public_numbers()
    width = (key.curve.key_size + 7) // 8
    return {
        "kty": "EC",
        "crv": {256: "P-256", 521: "P-521"}[key.curve.key_size],
        "alg": ECDH_ES_A256KW,
        "x": b64u_encode(point.x.to_bytes(width, "big")),
        "y": b64u_encode(point.y.to_bytes(width, "big")),
    }


def encrypt(recipient: TeePublicKey, plaintext: bytes | memoryview) -> dict[str, str]:
    """Encrypt one resource to a TEE key. Returns the five members of the flattened JSON form."""
    cek = secrets.token_bytes(_CEK_BYTES)
    header: dict[str, Any] = {"alg": recipient.jwk["alg"], "enc": ENC}
    if isinstance(recipient.key, ec.EllipticCurvePublicKey):
        ephemeral = ec.generate_private_key(recipient.key.curve)
        epk = public_jwk(ephemeral.public_key())
        header["epk"] = {name: epk[name] for name in ("crv", "kty", "x", "y")}
        wrapping_key = _concat_kdf(ephemeral.exchange(ec.ECDH(), recipient.key))
        encrypted_key = aes_key_wrap(wrapping_key, cek)
    else:
        encrypted_key = recipient.key.encrypt(cek, _OAEP)
    protected = b64u_encode(json.dumps(header, separators=(",", ":")).encode("ascii"))
    iv = secrets.token_bytes(_IV_BYTES)
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode("ascii"))
    return {
        "protected": protected,
        "encrypted_key": b64u_encode(encrypted_key),
        "iv": b64u_encode(iv),
        "ciphertext": b64u_encode(sealed[:-_TAG_BYTES]),
        "tag": b64u_encode(sealed[-_TAG_BYTES:]),
    }


def decrypt(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, message: Mapping[str, Any]) -> bytes:
    """Open one message with the TEE's private key.

    The additional data are the bytes of ``protected`` as they came, so headers in any order are opened.

    Raises:
        MalformedInput: a member is missing or not base64url, or the header is not one of ours.
        BadCiphertext: made for another key, or changed on the way.
    """
    parts = _parse_message(message)
    with _does_not_open():
        return AESGCM(_cek(key, parts)).decrypt(parts.iv, parts.sealed, parts.aad)


def decrypt_into(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    message: Mapping[str, Any],
    room: Callable[[int], memoryview],
) -> None:
    """As ``decrypt``, straight into memory of the caller's choice: no other copy of the plaintext is made.

    Args:
        room: called once with the number of bytes; returns a writable view of exactly that length.
    """
    parts = _parse_message(message)
    with _does_not_open():
        aead = AESGCM(_cek(key, parts))
        aead.decrypt_into(parts.iv, parts.sealed, parts.aad, room(len(parts.sealed) - _TAG_BYTES))


def b64u_encode(raw: bytes) -> str:
    """base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64u_decode(text: str, what: str) -> bytes:
    """Strict inverse of ``b64u_encode``: no padding, no other alphabet, no stray bits in the last character.

    Raises:
        MalformedInput: anything else; ``what`` names the field.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInput(f"{what}: not base64url without padding") from error
    if b64u_encode(raw) != text:
        raise MalformedInput(f"{what}: not base64url without padding")
    return raw


@dataclass(frozen=True, slots=True)
class _Parts:
    """One message, its members decoded."""

    header: dict[str, Any]
    encrypted_key: bytes
    iv: bytes
    sealed: bytes
    aad: bytes


def _parse_message(message: Mapping[str, Any]) -> _Parts:
    parts: dict[str, bytes] = {}
    for name in MEMBERS:
        value = message.get(name)
        if not isinstance(value, str):
            raise MalformedInput(f"JWE: member {name!r} is missing or not text")
        parts[name] = b64u_decode(value, f"JWE {name}")
    if len(parts["iv"]) != _IV_BYTES or len(parts["tag"]) != _TAG_BYTES:
        raise MalformedInput("JWE: iv must have 12 bytes and tag 16")
    header = _parse_header(parts["protected"])
    aad = message["protected"].encode("ascii")
    if message.get("aad"):
        aad += b"." + str(message["aad"]).encode("utf-8")
    return _Parts(header, parts["encrypted_key"], parts["iv"], parts["ciphertext"] + parts["tag"], aad)


def _cek(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, parts: _Parts) -> bytes:
    cek = _unwrap_cek(key, parts.header, parts.encrypted_key)
    if len(cek) != _CEK_BYTES:
        raise ValueError("length of the content key")
    return cek


@contextlib.contextmanager
def _does_not_open() -> Iterator[None]:
    try:
        yield
    except (InvalidTag, InvalidUnwrap, ValueError) as error:
        raise BadCiphertext("JWE does not open: made for another key, or changed on the way") from error


def _unwrap_cek(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, header: dict[str, Any], encrypted_key: bytes
) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        _expect("alg", RSA_OAEP_256, header.get("alg"))
        return key.decrypt(encrypted_key, _OAEP)
    _expect("alg", ECDH_ES_A256KW, header.get("alg"))
    epk = header.get("epk")
    if not isinstance(epk, dict):
        raise MalformedInput("JWE header: epk is missing")
    sender = TeePublicKey.from_jwk({**epk, "alg": ECDH_ES_A256KW}).key
    if not isinstance(sender, ec.EllipticCurvePublicKey) or sender.curve.name != key.curve.name:
        raise MalformedInput("JWE header: epk is not on the curve of the recipient's key")
    return aes_key_unwrap(_concat_kdf(key.exchange(ec.ECDH(), sender)), encrypted_key)


def _concat_kdf(shared: bytes) -> bytes:
    """RFC 7518, section 4.6.2, with empty PartyUInfo and PartyVInfo."""
    algorithm = ECDH_ES_A256KW.encode("ascii")
    other_info = (
        len(algorithm).to_bytes(4, "big") + algorithm + bytes(4) + bytes(4) + (256).to_bytes(4, "big")
    )
    return ConcatKDFHash(hashes.SHA256(), length=32, otherinfo=other_info).derive(shared)


def _parse_header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("JWE header: not JSON") from error
    if not isinstance(header, dict):
        raise MalformedInput("JWE header: not a JSON object")
    _expect("enc", ENC, header.get("enc"))
    for name in ("crit", "zip", "apu", "apv"):
        if name in header:
            raise MalformedInput(f"JWE header: {name!r} is not supported")
    return header


def _expect(name: str, expected: str, found: object) -> None:
    if found != expected:
        raise MalformedInput(f"JWE header: {name} must be {expected}, found {_shown(found)}")


def _ec_public(jwk: dict[str, str]) -> ec.EllipticCurvePublicKey:
    if jwk["alg"] != ECDH_ES_A256KW:
        raise MalformedInput(f"tee-pubkey: alg must be {ECDH_ES_A256KW}, found {_shown(jwk['alg'])}")
    curve = _CURVES.get(jwk["crv"])
    if curve is None:
        raise MalformedInput(f"tee-pubkey: crv must be P-256 or P-521, found {_shown(jwk['crv'])}")
    width = (curve.key_size + 7) // 8
    x, y = (b64u_decode(jwk[name], f"tee-pubkey {name}") for name in ("x", "y"))
    if len(x) != width or len(y) != width:
        raise MalformedInput(f"tee-pubkey: coordinates of {jwk['crv']} have {width} bytes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + x + y)
    except ValueError as error:
        raise MalformedInput("tee-pubkey: the point is not on its curve") from error


def _rsa_public(jwk: dict[str, str]) -> rsa.RSAPublicKey:
    if jwk["alg"] != RSA_OAEP_256:
        raise MalformedInput(f"tee-pubkey: alg must be {RSA_OAEP_256}, found {_shown(jwk['alg'])}")
    n, e = (int.from_bytes(b64u_decode(jwk[name], f"tee-pubkey {name}"), "big") for name in ("n", "e"))
    if not MIN_RSA_BITS <= n.bit_length() <= MAX_RSA_BITS:
        raise MalformedInput(f"tee-pubkey: RSA keys have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    try:
        return rsa.RSAPublicNumbers(e, n).public_key()
    except ValueError as error:
        raise MalformedInput("tee-pubkey: not an RSA public key") from error


def _b64u_uint(number: int) -> str:
    return b64u_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _shown(value: object) -> str:
    return repr(value)[:40]
