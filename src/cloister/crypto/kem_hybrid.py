"""MLKEM768-X25519, also known as X-Wing: safe while either of ML-KEM-768 and X25519 is.

=========== ====== ==========================================================================================
value       bytes  form
=========== ====== ==========================================================================================
private key 32     seed; SHAKE256 of it gives ML-KEM's seed (64 bytes), then X25519's scalar (32)
public key  1216   ML-KEM-768 encapsulation key (1184), X25519 public key (32)
``enc``     1120   ML-KEM-768 ciphertext (1088), ephemeral X25519 public key (32)
secret      32     SHA3-256(ML-KEM's secret, X25519's secret, ephemeral key, public key, label)
=========== ====== ==========================================================================================

ML-KEM and X25519 are the ``cryptography`` package's (OpenSSL); only the line that combines them is here.

Source: draft-connolly-cfrg-xwing-kem, sections 5.2 to 5.4; the same KEM under the same identifier in
draft-ietf-hpke-pq and draft-irtf-cfrg-concrete-hybrid-kems.
"""

from __future__ import annotations

from hashlib import sha3_256, shake_256

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

SEED_BYTES = 32
MLKEM_PUBLIC_BYTES = 1184
MLKEM_CT_BYTES = 1088
X25519_BYTES = 32
LABEL = b"\\.//^\\"


class HybridKey:
    """A private key; its repr says nothing."""

    __slots__ = ("_mlkem", "_x25519", "_x25519_public", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"expected {SEED_BYTES} bytes")
        expanded = shake_256(seed).digest(96)
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        self._x25519_public = self._x25519.public_key().public_bytes_raw()
        self.public = self._mlkem.public_key().public_bytes_raw() + self._x25519_public
        """What callers are given, 1216 bytes."""

    def __repr__(self) -> str:
        return "HybridKey(redacted)"

    def decapsulate(self, enc: bytes) -> bytes:
        """The shared secret; a forged ``enc`` gives another one, as in ML-KEM.

        Raises:
            ValueError: wrong length, or an X25519 key of low order.
        """
        if len(enc) != MLKEM_CT_BYTES + X25519_BYTES:
            raise ValueError("enc: wrong length")
        ephemeral = enc[MLKEM_CT_BYTES:]
        first = self._mlkem.decapsulate(enc[:MLKEM_CT_BYTES])
        second = self._x25519.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        return _combine(first, second, ephemeral, self._x25519_public)

    @staticmethod
    def check_public(raw: bytes) -> bytes:
        """``raw`` if it is a public key.

        Raises:
            ValueError: wrong length, or a coefficient out of range (FIPS 203, section 7.2).
        """
        if len(raw) != MLKEM_PUBLIC_BYTES + X25519_BYTES:
            raise ValueError("public key: wrong length")
        MLKEM768PublicKey.from_public_bytes(raw[:MLKEM_PUBLIC_BYTES])
        return raw

    @staticmethod
    def encapsulate(public: bytes) -> tuple[bytes, bytes]:
        """A new shared secret and its ``enc``.

        Raises:
            ValueError: as ``check_public``, or an X25519 key of low order.
        """
        theirs = public[MLKEM_PUBLIC_BYTES:]
        first, ct = MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES]).encapsulate()
        ephemeral = X25519PrivateKey.generate()
        ours = ephemeral.public_key().public_bytes_raw()
        second = ephemeral.exchange(X25519PublicKey.from_public_bytes(theirs))
        return _combine(first, second, ours, theirs), ct + ours


def _combine(first: bytes, second: bytes, ephemeral: bytes, public: bytes) -> bytes:
    return sha3_256(first + second + ephemeral + public + LABEL).digest()
