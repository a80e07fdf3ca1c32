"""HPKE (RFC 9180) in base mode, with the exporter: a typed edge around pyhpke.

The receiving side's key schedule is our own (``hpke_schedule``), for speed.

The library parses keys leniently and raises its own errors; here a key has exactly the length that its KEM
serializes to, and only errors of this package come out. Suites are a closed table, ``SUITES``.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Self, cast

import pyhpke
from cryptography.exceptions import InvalidTag

from cloister.crypto.hpke_schedule import expand, hmac_sha256, labeled_expand, schedule
from cloister.errors import BadCiphertext, CloisterError, MalformedInput

_P256_UNCOMPRESSED = 0x04
_SUITE_ID = struct.Struct(">4sHHH")


class Kem(enum.IntEnum):
    """Key encapsulation (RFC 9180, section 7.1)."""

    P256_HKDF_SHA256 = 0x0010
    X25519_HKDF_SHA256 = 0x0020

    @property
    def public_bytes(self) -> int:
        """Length of a serialized public key, which is also that of ``enc`` (Npk, Nenc)."""
        return 65 if self is Kem.P256_HKDF_SHA256 else 32

    @property
    def private_bytes(self) -> int:
        """Length of a serialized private key (Nsk)."""
        return 32


class Kdf(enum.IntEnum):
    """Key derivation (RFC 9180, section 7.2)."""

    HKDF_SHA256 = 0x0001


class Aead(enum.IntEnum):
    """Encryption (RFC 9180, section 7.3)."""

    AES_128_GCM = 0x0001
    AES_256_GCM = 0x0002
    CHACHA20_POLY1305 = 0x0003


class PublicKey:
    """A recipient's public key."""

    __slots__ = ("_key", "kem", "raw")

    def __init__(self, kem: Kem, raw: bytes) -> None:
        """Parse ``raw``.

        Raises:
            MalformedInput: wrong length, or not a point of the curve.
        """
        if len(raw) != kem.public_bytes:
            raise MalformedInput(
                f"{kem.name} public key: expected {kem.public_bytes} bytes, found {len(raw)}"
            )
        if kem is Kem.P256_HKDF_SHA256 and raw[0] != _P256_UNCOMPRESSED:
            raise MalformedInput(f"{kem.name} public key: not an uncompressed point")
        try:
            self._key = _KEMS[kem].deserialize_public_key(raw)
        except ValueError as error:
            raise MalformedInput(f"{kem.name} public key: not a point of the curve") from error
        self.kem = kem
        self.raw = raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and (self.kem, self.raw) == (other.kem, other.raw)

    def __hash__(self) -> int:
        return hash((self.kem, self.raw))

    def __repr__(self) -> str:
        return f"PublicKey({self.kem.name}, {self.raw.hex()})"


class PrivateKey:
    """A recipient's private key; its bytes cannot be taken out again, and its repr says nothing."""

    __slots__ = ("_key", "kem", "public")

    def __init__(self, kem: Kem, key: pyhpke.KEMKeyInterface) -> None:
        self.kem = kem
        self._key = key
        self.public = PublicKey(
            kem, pyhpke.KEMKey.from_pyca_cryptography_key(key.raw.public_key()).to_public_bytes()
        )

    @classmethod
    def generate(cls, kem: Kem = Kem.X25519_HKDF_SHA256) -> Self:
        """A new key from the system's random source."""
        return cls.derive(kem, os.urandom(kem.private_bytes))

    @classmethod
    def derive(cls, kem: Kem, ikm: bytes) -> Self:
        """DeriveKeyPair of RFC 9180, section 7.1.3: the same ``ikm`` gives the same key."""
        if len(ikm) < kem.private_bytes:
            raise MalformedInput(f"ikm: expected at least {kem.private_bytes} bytes, found {len(ikm)}")
        return cls(kem, _KEMS[kem].derive_key_pair(ikm).private_key)

    @classmethod
    def from_bytes(cls, kem: Kem, raw: bytes) -> Self:
        """Parse a serialized private key.

        Raises:
            MalformedInput: wrong length, or out of the group's range.
        """
        if len(raw) != kem.private_bytes:
            raise MalformedInput(f"{kem.name} private key: expected {kem.private_bytes} bytes")
        try:
            return cls(kem, _KEMS[kem].deserialize_private_key(raw))
        except ValueError as error:
            raise MalformedInput(f"{kem.name} private key: out of range") from error

    def __repr__(self) -> str:
        return f"PrivateKey({self.kem.name}, redacted)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")


@dataclass(frozen=True, slots=True)
class Suite:
    """One combination of KEM, KDF and AEAD."""

    kem: Kem
    kdf: Kdf
    aead: Aead
    _suite: pyhpke.CipherSuite = field(repr=False, compare=False)

    @property
    def key_bytes(self) -> int:
        """Length of an AEAD key (Nk)."""
        return self._suite.aead.key_size

    @property
    def nonce_bytes(self) -> int:
        """Length of an AEAD nonce (Nn)."""
        return self._suite.aead.nonce_size

    def setup_sender(
        self, recipient: PublicKey, info: bytes, *, ephemeral: PrivateKey | None = None
    ) -> SenderContext:
        """SetupBaseS.

        Args:
            ephemeral: only to reproduce published vectors. Two contexts with the same ephemeral key and
                recipient encrypt under the same key and nonces.
        Raises:
            MalformedInput: the recipient's key is of another KEM or of low order.
        """
        pair = None
        if ephemeral is not None:
            pair = pyhpke.KEMKeyPair(ephemeral._key, ephemeral.public._key)
        self._same_kem(recipient.kem)
        try:
            enc, context = self._suite.create_sender_context(recipient._key, info, eks=pair)
        except ValueError as error:
            raise MalformedInput(f"{self.kem.name} public key: of low order") from error
        return SenderContext(enc, context)

    def setup_recipient(self, enc: bytes, key: PrivateKey, info: bytes) -> RecipientContext:
        """SetupBaseR.

        Raises:
            MalformedInput: ``enc`` is not a public key of this KEM, or of low order.
        """
        self._same_kem(key.kem)
        if len(enc) != self.kem.public_bytes:
            raise MalformedInput(f"enc: expected {self.kem.public_bytes} bytes, found {len(enc)}")
        if self.kem is Kem.P256_HKDF_SHA256 and enc[0] != _P256_UNCOMPRESSED:
            raise MalformedInput("enc: not an uncompressed point")
        try:
            shared_secret = self._suite.kem.decap(enc, key._key)
        except ValueError as error:
            raise MalformedInput(f"enc: not a usable {self.kem.name} key") from error
        suite_id = _SUITE_ID.pack(b"HPKE", self.kem, self.kdf, self.aead)
        keys = schedule(shared_secret, suite_id, info, self.key_bytes, self.nonce_bytes)
        return RecipientContext(self._suite.aead.import_key(keys[0]), keys[1], keys[2], suite_id)

    def extract(self, salt: bytes, ikm: bytes) -> bytes:
        """Extract of the suite's KDF, without HPKE's labels."""
        return hmac_sha256(salt if len(salt) <= 64 else sha256(salt).digest(), ikm)

    def expand(self, prk: bytes, info: bytes, length: int) -> bytes:
        """Expand of the suite's KDF, without HPKE's labels."""
        return expand(prk, info, length)

    def aead_seal(self, key: bytes, nonce: bytes, pt: bytes, aad: bytes = b"") -> bytes:
        """Encrypt once under a key that was derived outside of an HPKE context."""
        return self._suite.aead.import_key(key).seal(pt, nonce, aad)

    def aead_open(self, key: bytes, nonce: bytes, ct: bytes | memoryview, aad: bytes = b"") -> bytes:
        """Inverse of ``aead_seal``.

        Raises:
            BadCiphertext: it does not authenticate.
        """
        try:
            return self._suite.aead.import_key(key).open(cast(bytes, ct), nonce, aad)
        except (InvalidTag, ValueError, OverflowError) as error:
            raise BadCiphertext("ciphertext does not authenticate") from error

    def aead_key(self, key: bytes) -> AeadKey:
        """As ``aead_seal`` and ``aead_open``, for many messages under one key, each with its own nonce."""
        return AeadKey(self._suite.aead.import_key(key))

    def _same_kem(self, kem: Kem) -> None:
        if kem is not self.kem:
            raise MalformedInput(f"key of another KEM: expected {self.kem.name}, found {kem.name}")


class AeadKey:
    """A key of an AEAD; nonces are the caller's to keep apart."""

    __slots__ = ("_key",)

    def __init__(self, key: pyhpke.AEADKeyInterface) -> None:
        self._key = key

    def seal(self, nonce: bytes, pt: bytes, aad: bytes = b"") -> bytes:
        """Encrypt one message."""
        return self._key.seal(pt, nonce, aad)

    def open(self, nonce: bytes, ct: bytes, aad: bytes = b"") -> bytes:
        """Inverse of ``seal``.

        Raises:
            BadCiphertext: it does not authenticate.
        """
        try:
            return self._key.open(ct, nonce, aad)
        except (InvalidTag, ValueError, OverflowError) as error:
            raise BadCiphertext("ciphertext does not authenticate") from error


class SenderContext:
    """Encrypts in order, to one recipient."""

    __slots__ = ("_context", "enc")

    def __init__(self, enc: bytes, context: pyhpke.ContextInterface) -> None:
        self.enc = enc
        self._context = context

    def seal(self, pt: bytes, aad: bytes = b"") -> bytes:
        """Encrypt the next message."""
        try:
            return self._context.seal(pt, aad)
        except pyhpke.SealError as error:
            raise CloisterError("HPKE could not encrypt: message too long") from error

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of ``length`` bytes that both sides can derive."""
        return self._context.export(exporter_context, length)


class RecipientContext:
    """Decrypts in order. One failure ends it: what follows a forged message is not believed either."""

    __slots__ = ("_base_nonce", "_exporter_secret", "_failed", "_key", "_sequence", "_suite_id")

    def __init__(
        self, key: pyhpke.AEADKeyInterface, base_nonce: bytes, exporter_secret: bytes, suite_id: bytes
    ) -> None:
        self._key = key
        self._base_nonce = base_nonce
        self._exporter_secret = exporter_secret
        self._suite_id = suite_id
        self._sequence = 0
        self._failed = False

    def open(self, ct: bytes | memoryview, aad: bytes = b"") -> bytes:
        """Decrypt the next message.

        Raises:
            BadCiphertext: changed, reordered, or meant for another key or ``info``.
        """
        if self._failed:
            raise BadCiphertext("this context already met a message that does not authenticate")
        try:
            opened = self._key.open(cast(bytes, ct), self._nonce(), aad)
        except (InvalidTag, ValueError, OverflowError) as error:
            self._failed = True
            raise BadCiphertext("ciphertext does not authenticate") from error
        self._sequence += 1
        return opened

    def _nonce(self) -> bytes:
        """ComputeNonce of RFC 9180, section 5.2."""
        base = self._base_nonce
        return (int.from_bytes(base, "big") ^ self._sequence).to_bytes(len(base), "big")

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of ``length`` bytes that both sides can derive."""
        return labeled_expand(self._exporter_secret, self._suite_id, b"sec", exporter_context, length)


def find_suite(kem_id: int, kdf_id: int, aead_id: int) -> Suite:
    """The suite with these identifiers.

    Raises:
        MalformedInput: no such suite is supported.
    """
    try:
        return SUITES[kem_id, kdf_id, aead_id]
    except KeyError as error:
        found = f"KEM 0x{kem_id:04x}, KDF 0x{kdf_id:04x}, AEAD 0x{aead_id:04x}"
        raise MalformedInput(f"unsupported HPKE suite: {found}") from error


def find_kem(kem_id: int) -> Kem:
    """The KEM with this identifier.

    Raises:
        MalformedInput: not supported.
    """
    try:
        return Kem(kem_id)
    except ValueError as error:
        raise MalformedInput(f"unsupported HPKE KEM: 0x{kem_id:04x}") from error


def _make_suite(kem: Kem, kdf: Kdf, aead: Aead) -> Suite:
    library = pyhpke.CipherSuite.new(pyhpke.KEMId(kem), pyhpke.KDFId(kdf), pyhpke.AEADId(aead))
    return Suite(kem, kdf, aead, library)


SUITES: Mapping[tuple[int, int, int], Suite] = MappingProxyType(
    {(kem, kdf, aead): _make_suite(kem, kdf, aead) for kem in Kem for kdf in Kdf for aead in Aead}
)
_KEMS = {kem: SUITES[kem, Kdf.HKDF_SHA256, Aead.AES_128_GCM]._suite.kem for kem in Kem}
