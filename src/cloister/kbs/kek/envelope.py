"""The envelope that holds one resource version at rest.

Every version of a resource is encrypted under a data key of its own; the KEK wraps only that data key. So a
KEK that never leaves its device can serve, and changing the KEK rewrites some 60 bytes per version.

The wrapped key's form is its provider's; the file provider's is this, and the others' are in their files:

=============== ===== ============================================================================
wrapped key     bytes meaning
=============== ===== ============================================================================
nonce           12    random
data key        32    AES-256-GCM under the KEK; additional data: ``cloister-key`` NUL resource
tag             16
=============== ===== ============================================================================

The resource itself is nonce (12), ciphertext, tag (16), AES-256-GCM under the data key; additional data:
``cloister-resource`` NUL resource. *resource* is ``repository/type/tag?version=n``: no row can be moved to
another path or passed off as another version.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext
from cloister.kbs.kek.gcm import OVERHEAD_BYTES, gcm_open, gcm_seal
from cloister.kbs.kek.provider import KekProvider, WrappedKey, context

__all__ = ["OVERHEAD_BYTES", "Envelope", "open_envelope", "rewrap_envelope", "seal_envelope"]


@dataclass(frozen=True, slots=True)
class Envelope:
    """One resource version at rest; nothing in it is readable without the KEK."""

    wrapped_key: bytes
    ciphertext: bytes
    kek_id: str


def seal_envelope(kek: KekProvider, data: bytes, resource: str) -> Envelope:
    """Encrypt a resource version under a new data key."""
    key = SecretKey.generate()
    ciphertext = gcm_seal(key, data, context("cloister-resource", resource))
    wrapped = kek.wrap(key, resource)
    return Envelope(wrapped.data, ciphertext, wrapped.kek_id)


def open_envelope(kek: KekProvider, envelope: Envelope, resource: str) -> bytes:
    """Inverse of ``seal_envelope``.

    Raises:
        BadCiphertext: another KEK, another resource or version, or changed at rest.
    """
    key = _unwrap(kek, envelope, resource)
    return gcm_open(key, envelope.ciphertext, context("cloister-resource", resource))


def rewrap_envelope(kek: KekProvider, envelope: Envelope, resource: str) -> Envelope:
    """The same envelope with its data key wrapped under the newest KEK; the ciphertext stays as it is.

    Raises:
        BadCiphertext: as ``open_envelope``, for the wrapped key.
    """
    wrapped = kek.wrap(_unwrap(kek, envelope, resource), resource)
    return Envelope(wrapped.data, envelope.ciphertext, wrapped.kek_id)


def _unwrap(kek: KekProvider, envelope: Envelope, resource: str) -> SecretKey:
    if not kek.holds(envelope.kek_id):
        raise BadCiphertext(
            f"{resource} is wrapped under KEK {envelope.kek_id}, this broker has {kek.key_id}"
        )
    return kek.unwrap(WrappedKey(envelope.kek_id, envelope.wrapped_key), resource)
