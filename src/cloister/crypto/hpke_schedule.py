"""HPKE's key derivation in base mode with HKDF-SHA256 (RFC 9180, sections 4, 4.1 and 5.1).

A gateway runs it for every request. The library's own takes three times as long, most of it in making HMAC
objects; here what depends on the suite and ``info`` alone is kept, and what is derived from one key is
derived together. Diffie-Hellman and AEAD stay libraries'.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

HASH_BYTES = 32
_BLOCK_BYTES = 64
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_VERSION = b"HPKE-v1"
_MODE_BASE = b"\x00"
_LAST = b"\x01"
"""The counter of HKDF-Expand's first block."""
_NO_SALT = bytes(_BLOCK_BYTES)
_NO_SALT_INNER, _NO_SALT_OUTER = _NO_SALT.translate(_INNER), _NO_SALT.translate(_OUTER)


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104) under a key of at most a block: two hashes, without an object between them."""
    padded = key.ljust(_BLOCK_BYTES, b"\x00")
    return sha256(padded.translate(_OUTER) + sha256(padded.translate(_INNER) + message).digest()).digest()


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869, section 2.3)."""
    if length > 255 * HASH_BYTES:
        raise ValueError("HKDF gives at most 255 hashes")
    block = data = hmac_sha256(prk, info + _LAST)
    count = 1
    while len(data) < length:
        count += 1
        block = hmac_sha256(prk, block + info + bytes((count,)))
        data += block
    return data[:length]


def expand_two(
    prk: bytes, first: bytes, first_bytes: int, second: bytes, second_bytes: int
) -> tuple[bytes, bytes]:
    """HKDF-Expand of two ``info`` under one key, each of at most a hash."""
    padded = prk.ljust(_BLOCK_BYTES, b"\x00")
    inner, outer = padded.translate(_INNER), padded.translate(_OUTER)
    return (
        sha256(outer + sha256(inner + first + _LAST).digest()).digest()[:first_bytes],
        sha256(outer + sha256(inner + second + _LAST).digest()).digest()[:second_bytes],
    )


def labeled_expand(prk: bytes, suite_id: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand of RFC 9180, section 4."""
    return expand(prk, length.to_bytes(2, "big") + _VERSION + suite_id + label + info, length)


def extract_and_expand(dh: bytes, suite_id: bytes, kem_context: bytes) -> bytes:
    """ExtractAndExpand of RFC 9180, section 4.1: a DHKEM's shared secret.

    Args:
        dh: what Diffie-Hellman gave.
        suite_id: ``KEM`` and its identifier.
        kem_context: ``enc``, then the recipient's public key.
    """
    labeled = _VERSION + suite_id
    inner = sha256(_NO_SALT_INNER + labeled + b"eae_prk" + dh).digest()
    prk = sha256(_NO_SALT_OUTER + inner).digest()
    return hmac_sha256(prk, b"\x00\x20" + labeled + b"shared_secret" + kem_context + _LAST)


def schedule(
    shared_secret: bytes, suite_id: bytes, info: bytes, key_bytes: int, nonce_bytes: int
) -> tuple[bytes, bytes, bytes]:
    """Key, base nonce and exporter secret of a context.

    Args:
        suite_id: ``HPKE`` and the identifiers of KEM, KDF and AEAD.
    """
    of_secret, of_key, of_nonce, of_exporter = _schedule_inputs(suite_id, info, key_bytes, nonce_bytes)
    padded = hmac_sha256(shared_secret, of_secret).ljust(_BLOCK_BYTES, b"\x00")
    inner, outer = padded.translate(_INNER), padded.translate(_OUTER)
    return (
        sha256(outer + sha256(inner + of_key).digest()).digest()[:key_bytes],
        sha256(outer + sha256(inner + of_nonce).digest()).digest()[:nonce_bytes],
        sha256(outer + sha256(inner + of_exporter).digest()).digest(),
    )


@lru_cache(maxsize=64)
def _schedule_inputs(
    suite_id: bytes, info: bytes, key_bytes: int, nonce_bytes: int
) -> tuple[bytes, bytes, bytes, bytes]:
    """What is hashed to derive the secret, the key, the nonce and the exporter secret; public."""
    labeled = _VERSION + suite_id

    def extract(label: bytes, ikm: bytes) -> bytes:
        return hmac_sha256(b"", labeled + label + ikm)

    def expanded(label: bytes, length: int) -> bytes:
        return length.to_bytes(2, "big") + labeled + label + context + _LAST

    context = _MODE_BASE + extract(b"psk_id_hash", b"") + extract(b"info_hash", info)
    return (
        labeled + b"secret",
        expanded(b"key", key_bytes),
        expanded(b"base_nonce", nonce_bytes),
        expanded(b"exp", HASH_BYTES),
    )
