"""Sealed models: a signed header in the clear and an encrypted payload that is read at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.seal.container import SealedHeader, VerifiedHeader, read_header
from cloister.seal.reader import SealedFile, container_digest, open_sealed, unseal_file
from cloister.seal.signing import SigningKey, TrustedSigners
from cloister.seal.store import ModelStore, StoreEntry
from cloister.seal.writer import seal_file

if TYPE_CHECKING:
    from cloister.seal.tensors import read_safetensors

__all__ = [
    "ModelStore",
    "SealedFile",
    "SealedHeader",
    "SigningKey",
    "StoreEntry",
    "TrustedSigners",
    "VerifiedHeader",
    "container_digest",
    "open_sealed",
    "read_header",
    "read_safetensors",
    "seal_file",
    "unseal_file",
]


def __getattr__(name: str) -> object:
    """``read_safetensors``, which needs numpy; a server that unlocks models does not."""
    if name == "read_safetensors":
        from cloister.seal.tensors import read_safetensors

        return read_safetensors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
