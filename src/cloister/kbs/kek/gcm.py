"""AES-256-GCM with a random nonce in front: the form of everything that this process encrypts at rest."""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext

NONCE_BYTES, TAG_BYTES = 12, 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES


def gcm_seal(key: SecretKey, data: bytes, context: bytes) -> bytes:
    """Nonce, ciphertext, tag."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key.raw).encrypt(nonce, data, context)


def gcm_open(key: SecretKey, sealed: bytes, context: bytes) -> bytes:
    """Inverse of ``gcm_seal``; raises BadCiphertext."""
    if len(sealed) < OVERHEAD_BYTES:
        raise BadCiphertext("a record at rest is too short")
    try:
        return AESGCM(key.raw).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
    except InvalidTag as error:
        raise BadCiphertext(
            "a record at rest does not open: changed, or of another KEK or resource"
        ) from error
