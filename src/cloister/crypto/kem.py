"""Key encapsulation for HPKE: what ``cloister.crypto.hpke`` builds on, one class for each kind.

======================= ====== =========== ===== ==== =======================================================
KEM                     id     public key  enc   key  source
======================= ====== =========== ===== ==== =======================================================
DHKEM(P-256)            0x0010 65          65    32   RFC 9180, section 4.1
DHKEM(X25519)           0x0020 32          32    32   RFC 9180, section 4.1
MLKEM768-X25519         0x647a 1216        1120  32   ``cloister.crypto.kem_hybrid``
======================= ====== =========== ===== ==== =======================================================

Keys, their derivation and encapsulation are pyhpke's. Decapsulation, which a gateway does for every request,
is ``cryptography``'s Diffie-Hellman and the derivation of ``hpke_schedule``: all but Diffie-Hellman takes a
third of the time.

Providers raise ``ValueError`` for bytes that are no key; ``cloister.crypto.hpke`` says whose key it was.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyhpke
from cryptography.hazmat.primitives.asymmetric.ec import ECDH, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from cloister.crypto.hpke_schedule import extract_and_expand
from cloister.crypto.kem_hybrid import HybridKey

_P256_UNCOMPRESSED = 0x04


class Kem(enum.IntEnum):
    """Key encapsulation (RFC 9180, section 7.1; draft-ietf-hpke-pq)."""

    P256_HKDF_SHA256 = 0x0010
    X25519_HKDF_SHA256 = 0x0020
    MLKEM768_X25519 = 0x647A

    @property
    def public_bytes(self) -> int:
        """Length of a serialized public key (Npk)."""
        return _SIZES[self][0]

    @property
    def enc_bytes(self) -> int:
        """Length of ``enc`` (Nenc)."""
        return _SIZES[self][1]

    @property
    def private_bytes(self) -> int:
        """Length of a serialized private key (Nsk)."""
        return 32


_SIZES = {
    Kem.P256_HKDF_SHA256: (65, 65),
    Kem.X25519_HKDF_SHA256: (32, 32),
    Kem.MLKEM768_X25519: (1216, 1120),
}


class KemProvider(Protocol):
    """One KEM; its keys are opaque. Every method may raise ``ValueError``."""

    def parse_public(self, raw: bytes) -> Any:
        """A public key of the right length."""

    def parse_private(self, raw: bytes) -> Any:
        """A private key of the right length."""

    def derive_private(self, ikm: bytes) -> Any:
        """DeriveKeyPair."""

    def public_of(self, private: Any) -> bytes:
        """The public key's bytes."""

    def encap(self, public: Any, ephemeral: Any = None) -> tuple[bytes, bytes]:
        """Shared secret and ``enc``; ``ephemeral``, a private key, only reproduces vectors."""

    def decap(self, enc: bytes, private: Any) -> bytes:
        """The shared secret, of an ``enc`` of the right length."""


@dataclass(frozen=True, slots=True)
class DhPrivate:
    """A private key, and the public one's bytes, which go into every derivation."""

    key: pyhpke.KEMKeyInterface
    public: bytes


class DhKem:
    """DHKEM of RFC 9180, section 4.1; compressed points are refused, which pyhpke would take."""

    def __init__(self, kem: Kem) -> None:
        self._x25519 = kem is Kem.X25519_HKDF_SHA256
        self._suite_id = b"KEM" + kem.to_bytes(2, "big")
        self._kem = pyhpke.CipherSuite.new(
            pyhpke.KEMId(kem), pyhpke.KDFId.HKDF_SHA256, pyhpke.AEADId.AES128_GCM
        ).kem

    def parse_public(self, raw: bytes) -> pyhpke.KEMKeyInterface:
        """A point of the curve."""
        self._check_form(raw)
        return self._kem.deserialize_public_key(raw)

    def parse_private(self, raw: bytes) -> DhPrivate:
        """A scalar in the group's range."""
        return _with_public(self._kem.deserialize_private_key(raw))

    def derive_private(self, ikm: bytes) -> DhPrivate:
        """DeriveKeyPair of RFC 9180, section 7.1.3."""
        return _with_public(self._kem.derive_key_pair(ikm).private_key)

    def public_of(self, private: DhPrivate) -> bytes:
        """Its point."""
        return private.public

    def encap(
        self, public: pyhpke.KEMKeyInterface, ephemeral: DhPrivate | None = None
    ) -> tuple[bytes, bytes]:
        """Encap; a point of low order raises."""
        pair = None
        if ephemeral is not None:
            pair = pyhpke.KEMKeyPair(ephemeral.key, self.parse_public(ephemeral.public))
        return self._kem.encap(public, eks=pair)

    def decap(self, enc: bytes, private: DhPrivate) -> bytes:
        """Decap; a point of low order raises."""
        if self._x25519:
            dh = private.key.raw.exchange(X25519PublicKey.from_public_bytes(enc))
        else:
            self._check_form(enc)
            point = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), enc)
            dh = private.key.raw.exchange(ECDH(), point)
        return extract_and_expand(dh, self._suite_id, enc + private.public)

    def _check_form(self, raw: bytes) -> None:
        if not self._x25519 and raw[0] != _P256_UNCOMPRESSED:
            raise ValueError("not an uncompressed point")


def _with_public(private: pyhpke.KEMKeyInterface) -> DhPrivate:
    public = pyhpke.KEMKey.from_pyca_cryptography_key(private.raw.public_key()).to_public_bytes()
    return DhPrivate(private, public)


class HybridKem:
    """MLKEM768-X25519."""

    def parse_public(self, raw: bytes) -> bytes:
        """Checked when it is used: ML-KEM's own check needs the whole key."""
        return HybridKey.check_public(raw)

    def parse_private(self, raw: bytes) -> HybridKey:
        """Any 32 bytes are a key."""
        return HybridKey(raw)

    def derive_private(self, ikm: bytes) -> HybridKey:
        """Not offered: the drafts do not agree on it, and nothing here needs it."""
        raise ValueError("DeriveKeyPair is not offered for this KEM")

    def public_of(self, private: HybridKey) -> bytes:
        """ML-KEM's key, then X25519's."""
        return private.public

    def encap(self, public: bytes, ephemeral: Any = None) -> tuple[bytes, bytes]:
        """A shared secret of both."""
        if ephemeral is not None:
            raise ValueError("this KEM has no ephemeral key to give")
        return HybridKey.encapsulate(public)

    def decap(self, enc: bytes, private: HybridKey) -> bytes:
        """The shared secret of both."""
        return private.decapsulate(enc)


KEMS: dict[Kem, KemProvider] = {
    Kem.P256_HKDF_SHA256: cast(KemProvider, DhKem(Kem.P256_HKDF_SHA256)),
    Kem.X25519_HKDF_SHA256: cast(KemProvider, DhKem(Kem.X25519_HKDF_SHA256)),
    Kem.MLKEM768_X25519: cast(KemProvider, HybridKem()),
}
