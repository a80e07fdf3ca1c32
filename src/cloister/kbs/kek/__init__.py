"""Key-encrypting keys: one provider per URI scheme, and the envelope that holds a resource at rest."""

from __future__ import annotations

from cloister.kbs.kek.envelope import OVERHEAD_BYTES, Envelope, open_envelope, seal_envelope
from cloister.kbs.kek.file import FileKek
from cloister.kbs.kek.provider import KekProvider, WrappedKey
from cloister.kbs.kek.ring import KEK_PROVIDERS, KekRing, open_kek, open_ring

__all__ = [
    "KEK_PROVIDERS",
    "OVERHEAD_BYTES",
    "Envelope",
    "FileKek",
    "KekProvider",
    "KekRing",
    "WrappedKey",
    "open_envelope",
    "open_kek",
    "open_ring",
    "seal_envelope",
]
