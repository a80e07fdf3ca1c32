"""AES-GCM and ChaCha20-Poly1305 under one interface, and messages that are encrypted in order under one key.

Source: RFC 9180, sections 5.2 (nonces) and 7.3 (algorithms); RFC 5116; RFC 8439.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from cloister.errors import BadCiphertext, CloisterError, MalformedInput

Buffer: TypeAlias = bytes | bytearray | memoryview

NONCE_BYTES = 12
TAG_BYTES = 16


class Aead(enum.IntEnum):
    """Encryption (RFC 9180, section 7.3)."""

    AES_128_GCM = 0x0001
    AES_256_GCM = 0x0002
    CHACHA20_POLY1305 = 0x0003

    @property
    def key_bytes(self) -> int:
        """Length of a key (Nk)."""
        return 16 if self is Aead.AES_128_GCM else 32


class AeadKey:
    """A key of an AEAD; nonces are the caller's to keep apart."""

    __slots__ = ("_key",)

    def __init__(self, aead: Aead, key: bytes) -> None:
        if len(key) != aead.key_bytes:
            raise MalformedInput(f"{aead.name} key: expected {aead.key_bytes} bytes, found {len(key)}")
        self._key = ChaCha20Poly1305(key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key)

    def seal(self, nonce: bytes, pt: Buffer, aad: bytes = b"") -> bytes:
        """Encrypt one message; the tag comes last."""
        try:
            return self._key.encrypt(nonce, pt, aad)
        except (ValueError, OverflowError) as error:
            raise CloisterError("message too long to encrypt at once") from error

    def open(self, nonce: bytes, ct: Buffer, aad: bytes = b"") -> bytes:
        """Inverse of ``seal``.

        Raises:
            BadCiphertext: it does not authenticate.
        """
        try:
            return self._key.decrypt(nonce, ct, aad)
        except (InvalidTag, ValueError, OverflowError) as error:
            raise BadCiphertext("ciphertext does not authenticate") from error


class AeadSequence:
    """One direction of a conversation: each message's nonce is the base nonce XOR its number."""

    __slots__ = ("_base", "_key", "_number")

    def __init__(self, key: AeadKey, base_nonce: bytes) -> None:
        self._key = key
        self._base = int.from_bytes(base_nonce, "big")
        self._number = 0

    def seal(self, pt: Buffer, aad: bytes = b"") -> bytes:
        """Encrypt the next message."""
        number = self._number
        self._number = number + 1
        return self._key.seal((self._base ^ number).to_bytes(NONCE_BYTES, "big"), pt, aad)

    def open(self, ct: Buffer, aad: bytes = b"") -> bytes:
        """Decrypt the next message; one that fails stays the next one.

        Raises:
            BadCiphertext: changed, out of order, or not of this sequence.
        """
        number = self._number
        opened = self._key.open((self._base ^ number).to_bytes(NONCE_BYTES, "big"), ct, aad)
        self._number = number + 1
        return opened
