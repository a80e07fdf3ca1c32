"""A Nitro hypervisor for tests: it makes attestation documents under its own root."""

from __future__ import annotations

from typing import Any

from cryptography import x509

from cloister.attest.nitro.cbor import Tag, encode_head
from tests.fakes.p384_pki import Holder, issue

PCR0 = b"\x10" * 48
USER_DATA = bytes(range(64))
TIMESTAMP_MS = 1790848800000  # 2026-10-01T10:00Z
ES384 = bytes.fromhex("a1013822")


def encode(value: Any) -> bytes:
    """A value as CBOR, in its shortest form."""
    match value:
        case None:
            return b"\xf6"
        case int():
            return encode_head(0, value) if value >= 0 else encode_head(1, -1 - value)
        case bytes():
            return encode_head(2, len(value)) + value
        case str():
            return encode_head(3, len(value.encode())) + value.encode()
        case list():
            return encode_head(4, len(value)) + b"".join(map(encode, value))
        case dict():
            pairs = (encode(key) + encode(item) for key, item in value.items())
            return encode_head(5, len(value)) + b"".join(pairs)
        case Tag():
            return encode_head(6, value.number) + encode(value.value)
    raise TypeError(type(value))


class FakeNitro:
    """One chain of root, zone, instance and leaf, and the documents that the leaf signs."""

    def __init__(self, *, root: Holder | None = None, **leaf: Any) -> None:
        self.root_holder = root or issue("fake.nitro-enclaves")
        self.zone = issue("zone.fake", self.root_holder, path_length=1)
        self.instance = issue("i-1.fake", self.zone, path_length=0)
        self.leaf = issue("i-1-enc1.fake", self.instance, authority=False, **leaf)
        self.bundle = [self.root_holder.der, self.zone.der, self.instance.der]

    @property
    def root(self) -> x509.Certificate:
        """What a relying party must choose to trust."""
        return self.root_holder.certificate

    def members(self, **changes: Any) -> dict[Any, Any]:
        """The members of a document; one that is given as ``...`` is left out."""
        members: dict[Any, Any] = {
            "module_id": "i-1-enc1",
            "digest": "SHA384",
            "timestamp": TIMESTAMP_MS,
            "pcrs": {0: PCR0, 1: b"\x11" * 48, 2: b"\x12" * 48, 3: bytes(48)},
            "certificate": self.leaf.der,
            "cabundle": self.bundle,
            "public_key": None,
            "user_data": USER_DATA,
            "nonce": b"nonce",
        }
        return {key: value for key, value in {**members, **changes}.items() if value is not ...}

    def document(self, **changes: Any) -> bytes:
        """A signed document."""
        return self.sign(encode(self.members(**changes)))

    def sign(self, payload: bytes) -> bytes:
        """Any payload, signed as documents are."""
        signature = self.leaf.sign(encode(["Signature1", ES384, b"", payload]))
        return encode([ES384, {}, payload, signature])
