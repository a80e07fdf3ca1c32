"""The TPM's numbers for hash algorithms, and the names that are used here.

Source: TCG Algorithm Registry, revision 1.34, table 3.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType

from cryptography.hazmat.primitives import hashes

from cloister.errors import MalformedInput

HASHES = MappingProxyType({0x4: "sha1", 0xB: "sha256", 0xC: "sha384", 0xD: "sha512"})
DIGEST_BYTES = MappingProxyType({"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64})
SIGNATURE_HASHES: MappingProxyType[str, hashes.HashAlgorithm] = MappingProxyType(
    {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
)
"""What a quote may be signed with. SHA-1 is not among them: its collisions can be made."""


def hash_name(number: int) -> str:
    """Name of a hash algorithm; MalformedInput if it is not known here."""
    if number not in HASHES:
        known = ", ".join(HASHES.values())
        raise MalformedInput(f"TPM hash algorithm {number:#x}, known are {known}")
    return HASHES[number]


def digest(name: str, content: bytes) -> bytes:
    """Hash of ``content``."""
    return hashlib.new(name, content, usedforsecurity=False).digest()
