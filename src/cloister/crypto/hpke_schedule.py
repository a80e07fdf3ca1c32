"""HPKE's key schedule in base mode with HKDF-SHA256 (RFC 9180, sections 4 and 5.1).

A gateway runs it for every request. The library's own takes three times as long, most of it in making HMAC
objects; what depends on the suite and ``info`` alone is kept here. Encapsulation and AEAD stay libraries'.
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


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104) under a key of at most a block: two hashes, without an object between them."""
    padded = key.ljust(_BLOCK_BYTES, b"\x00")
    return sha256(padded.translate(_OUTER) + sha256(padded.translate(_INNER) + message).digest()).digest()


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869, section 2.3)."""
    if length > 255 * HASH_BYTES:
        raise ValueError("HKDF gives at most 255 hashes")
    block = data = hmac_sha256(prk, info + b"\x01")
    count = 1
    while len(data) < length:
        count += 1
        block = hmac_sha256(prk, block + info + bytes((count,)))
        data += block
    return data[:length]


def labeled_expand(prk: bytes, suite_id: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand of RFC 9180, section 4."""
    return expand(prk, length.to_bytes(2, "big") + _VERSION + suite_id + label + info, length)


def schedule(
    shared_secret: bytes, suite_id: bytes, info: bytes, key_bytes: int, nonce_bytes: int
) -> tuple[bytes, bytes, bytes]:
    """Key, base nonce and exporter secret of a context.

    Args:
        suite_id: ``HPKE`` and the identifiers of KEM, KDF and AEAD.
    """
    context = _schedule_context(suite_id, info)
    secret = hmac_sha256(shared_secret, _VERSION + suite_id + b"secret")
    return (
        labeled_expand(secret, suite_id, b"key", context, key_bytes),
        labeled_expand(secret, suite_id, b"base_nonce", context, nonce_bytes),
        labeled_expand(secret, suite_id, b"exp", context, HASH_BYTES),
    )


@lru_cache(maxsize=64)
def _schedule_context(suite_id: bytes, info: bytes) -> bytes:
    def extract(label: bytes, ikm: bytes) -> bytes:
        return hmac_sha256(b"", _VERSION + suite_id + label + ikm)

    return _MODE_BASE + extract(b"psk_id_hash", b"") + extract(b"info_hash", info)
