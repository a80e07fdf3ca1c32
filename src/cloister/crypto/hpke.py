"""HPKE (RFC 9180) in base mode, with the exporter.

Key encapsulation (``kem``) and encryption (``aead``) are libraries'; the key schedule between them is our
own (``hpke_schedule``), for speed. A key has exactly the length that its KEM serializes to, and only errors
of this package come out. Suites are a closed table, ``SUITES``.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Self

from cloister.crypto.aead import NONCE_BYTES, Aead, AeadKey, AeadSequence, Buffer
from cloister.crypto.hpke_schedule import expand, expand_two, hmac_sha256, labeled_expand, schedule
from cloister.crypto.kem import KEMS, Kem
from cloister.errors import BadCiphertext, MalformedInput

__all__ = [
    "SUITES", "Aead", "Kdf", "Kem", "PrivateKey", "PublicKey", "RecipientContext", "SenderContext", "Suite",
    "find_kem", "find_suite",
]  # fmt: skip

_SUITE_ID = struct.Struct(">4sHHH")


class Kdf(enum.IntEnum):
    """Key derivation (RFC 9180, section 7.2)."""

    HKDF_SHA256 = 0x0001


class PublicKey:
    """A recipient's public key."""

    __slots__ = ("_key", "kem", "raw")

    def __init__(self, kem: Kem, raw: bytes) -> None:
        """Parse ``raw``.

        Raises:
            MalformedInput: wrong length, or not a key of this kind, such as no point of the curve.
        """
        if len(raw) != kem.public_bytes:
            raise MalformedInput(
                f"{kem.name} public key: expected {kem.public_bytes} bytes, found {len(raw)}"
            )
        try:
            self._key = KEMS[kem].parse_public(raw)
        except ValueError as error:
            raise MalformedInput(f"{kem.name} public key: not one of this kind") from error
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

    def __init__(self, kem: Kem, key: Any) -> None:
        self.kem = kem
        self._key = key
        self.public = PublicKey(kem, KEMS[kem].public_of(key))

    @classmethod
    def generate(cls, kem: Kem = Kem.X25519_HKDF_SHA256) -> Self:
        """A new key from the system's random source."""
        if kem is Kem.MLKEM768_X25519:
            return cls.from_bytes(kem, os.urandom(kem.private_bytes))
        return cls.derive(kem, os.urandom(kem.private_bytes))

    @classmethod
    def derive(cls, kem: Kem, ikm: bytes) -> Self:
        """DeriveKeyPair of RFC 9180, section 7.1.3: the same ``ikm`` gives the same key."""
        if len(ikm) < kem.private_bytes:
            raise MalformedInput(f"ikm: expected at least {kem.private_bytes} bytes, found {len(ikm)}")
        try:
            return cls(kem, KEMS[kem].derive_private(ikm))
        except ValueError as error:
            raise MalformedInput(f"{kem.name} private key: cannot be derived") from error

    @classmethod
    def from_bytes(cls, kem: Kem, raw: bytes) -> Self:
        """Parse a serialized private key.

        Raises:
            MalformedInput: wrong length, or out of the group's range.
        """
        if len(raw) != kem.private_bytes:
            raise MalformedInput(f"{kem.name} private key: expected {kem.private_bytes} bytes")
        try:
            return cls(kem, KEMS[kem].parse_private(raw))
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
    key_bytes: int = field(init=False, repr=False)
    """Length of an AEAD key (Nk)."""
    nonce_bytes: int = field(init=False, repr=False, default=NONCE_BYTES)
    """Length of an AEAD nonce (Nn)."""
    enc_bytes: int = field(init=False, repr=False)
    """Length of ``enc`` (Nenc)."""
    _suite_id: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = {
            "key_bytes": self.aead.key_bytes,
            "enc_bytes": self.kem.enc_bytes,
            "_suite_id": _SUITE_ID.pack(b"HPKE", self.kem, self.kdf, self.aead),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

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
        self._same_kem(recipient.kem)
        if ephemeral is not None:
            self._same_kem(ephemeral.kem)
        try:
            given = None if ephemeral is None else ephemeral._key
            shared_secret, enc = KEMS[self.kem].encap(recipient._key, given)
        except ValueError as error:
            raise MalformedInput(f"{self.kem.name} public key: of low order") from error
        messages, exporter = self._schedule(shared_secret, info)
        return SenderContext(enc, messages, exporter)

    def setup_recipient(self, enc: bytes, key: PrivateKey, info: bytes) -> RecipientContext:
        """SetupBaseR.

        Raises:
            MalformedInput: ``enc`` is not a public key of this KEM, or of low order.
        """
        self._same_kem(key.kem)
        if len(enc) != self.enc_bytes:
            raise MalformedInput(f"enc: expected {self.enc_bytes} bytes, found {len(enc)}")
        try:
            shared_secret = KEMS[self.kem].decap(enc, key._key)
        except ValueError as error:
            raise MalformedInput(f"enc: not a usable {self.kem.name} key") from error
        return RecipientContext(*self._schedule(shared_secret, info))

    def extract(self, salt: bytes, ikm: bytes) -> bytes:
        """Extract of the suite's KDF, without HPKE's labels."""
        return hmac_sha256(salt if len(salt) <= 64 else sha256(salt).digest(), ikm)

    def expand(self, prk: bytes, info: bytes, length: int) -> bytes:
        """Expand of the suite's KDF, without HPKE's labels."""
        return expand(prk, info, length)

    def expand_two(
        self, prk: bytes, first: bytes, first_bytes: int, second: bytes, second_bytes: int
    ) -> tuple[bytes, bytes]:
        """As ``expand``, for two values of at most a hash under one key."""
        return expand_two(prk, first, first_bytes, second, second_bytes)

    def aead_key(self, key: bytes) -> AeadKey:
        """For messages under a key that was derived outside of an HPKE context."""
        return AeadKey(self.aead, key)

    def _schedule(self, shared_secret: bytes, info: bytes) -> tuple[AeadSequence, Exporter]:
        """KeySchedule in base mode, the same for both sides."""
        suite_id = self._suite_id
        key, base_nonce, secret = schedule(shared_secret, suite_id, info, self.key_bytes, NONCE_BYTES)
        return AeadSequence(AeadKey(self.aead, key), base_nonce), Exporter(secret, suite_id)

    def _same_kem(self, kem: Kem) -> None:
        if kem is not self.kem:
            raise MalformedInput(f"key of another KEM: expected {self.kem.name}, found {kem.name}")


class Exporter:
    """Derives secrets that both sides know (RFC 9180, section 5.3)."""

    __slots__ = ("_secret", "_suite_id")

    def __init__(self, secret: bytes, suite_id: bytes) -> None:
        self._secret = secret
        self._suite_id = suite_id

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of ``length`` bytes."""
        return labeled_expand(self._secret, self._suite_id, b"sec", exporter_context, length)


class SenderContext:
    """Encrypts in order, to one recipient."""

    __slots__ = ("_exporter", "_messages", "enc")

    def __init__(self, enc: bytes, messages: AeadSequence, exporter: Exporter) -> None:
        self.enc = enc
        self._messages = messages
        self._exporter = exporter

    def seal(self, pt: Buffer, aad: bytes = b"") -> bytes:
        """Encrypt the next message."""
        return self._messages.seal(pt, aad)

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of ``length`` bytes that both sides can derive."""
        return self._exporter.export(exporter_context, length)


class RecipientContext:
    """Decrypts in order. One failure ends it: what follows a forged message is not believed either."""

    __slots__ = ("_exporter", "_failed", "_messages")

    def __init__(self, messages: AeadSequence, exporter: Exporter) -> None:
        self._messages = messages
        self._exporter = exporter
        self._failed = False

    def open(self, ct: Buffer, aad: bytes = b"") -> bytes:
        """Decrypt the next message.

        Raises:
            BadCiphertext: changed, reordered, or meant for another key or ``info``.
        """
        if self._failed:
            raise BadCiphertext("this context already met a message that does not authenticate")
        try:
            return self._messages.open(ct, aad)
        except BadCiphertext:
            self._failed = True
            raise

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of ``length`` bytes that both sides can derive."""
        return self._exporter.export(exporter_context, length)


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


SUITES: Mapping[tuple[int, int, int], Suite] = MappingProxyType(
    {(kem, kdf, aead): Suite(kem, kdf, aead) for kem in Kem for kdf in Kdf for aead in Aead}
)
