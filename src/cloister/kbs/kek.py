"""Key-encrypting keys: one provider per URI scheme, and the envelope that holds a resource at rest.

Every version of a resource is encrypted under a data key of its own; the KEK wraps only that data key. So a
KEK that never leaves its device can serve, and changing the KEK rewrites 60 bytes per version.

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

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext, ConfigError, MalformedInput
from cloister.kbs.owner_files import make_folder, read_private, write_new

_NONCE_BYTES, _TAG_BYTES = 12, 16
OVERHEAD_BYTES = _NONCE_BYTES + _TAG_BYTES


class KekProvider(Protocol):
    """Wraps and unwraps data keys under one key-encrypting key."""

    key_id: str
    """Public name of the KEK; stored beside everything that it wraps."""

    def wrap(self, key: SecretKey, resource: str) -> bytes:
        """Wrap a data key for one resource version."""
        ...

    def unwrap(self, wrapped: bytes, resource: str) -> SecretKey:
        """Inverse of ``wrap``.

        Raises:
            BadCiphertext: wrapped by another KEK, for another resource, or changed.
        """
        ...


class FileKek:
    """A KEK in a file of 32 bytes that only its owner can read; made on first start."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            make_folder(path.parent)
            write_new(path, SecretKey.generate().raw)
        try:
            self._kek = SecretKey(read_private(path))
        except MalformedInput as error:
            raise ConfigError(f"{path} does not hold a KEK: {error.message}") from error
        self.key_id = "file:" + hashlib.sha256(b"cloister-kek\0" + self._kek.raw).hexdigest()[:16]

    def wrap(self, key: SecretKey, resource: str) -> bytes:
        """See ``KekProvider``."""
        return _seal(self._kek, key.raw, _context("cloister-key", resource))

    def unwrap(self, wrapped: bytes, resource: str) -> SecretKey:
        """See ``KekProvider``."""
        return SecretKey(_open(self._kek, wrapped, _context("cloister-key", resource)))

    def __repr__(self) -> str:
        return f"FileKek({self.key_id})"


@dataclass(frozen=True, slots=True)
class Envelope:
    """One resource version at rest; nothing in it is readable without the KEK."""

    wrapped_key: bytes
    ciphertext: bytes
    kek_id: str


def seal_envelope(kek: KekProvider, data: bytes, resource: str) -> Envelope:
    """Encrypt a resource version under a new data key."""
    key = SecretKey.generate()
    ciphertext = _seal(key, data, _context("cloister-resource", resource))
    return Envelope(kek.wrap(key, resource), ciphertext, kek.key_id)


def open_envelope(kek: KekProvider, envelope: Envelope, resource: str) -> bytes:
    """Inverse of ``seal_envelope``.

    Raises:
        BadCiphertext: another KEK, another resource or version, or changed at rest.
    """
    if envelope.kek_id != kek.key_id:
        raise BadCiphertext(
            f"{resource} is wrapped under KEK {envelope.kek_id}, this broker has {kek.key_id}"
        )
    key = kek.unwrap(envelope.wrapped_key, resource)
    return _open(key, envelope.ciphertext, _context("cloister-resource", resource))


def open_kek(uri: str) -> KekProvider:
    """The provider that a URI names, for example ``file:/var/lib/cloister/kek``.

    Raises:
        ConfigError: unknown scheme, or the provider cannot be used.
    """
    scheme, colon, rest = uri.partition(":")
    provider = KEK_PROVIDERS.get(scheme)
    if not colon or not rest or provider is None:
        known = ", ".join(f"{name}:" for name in sorted(KEK_PROVIDERS))
        raise ConfigError(f"unknown KEK provider {scheme[:20]!r}", hint=f"known: {known}")
    return provider(rest)


def _file(rest: str) -> KekProvider:
    return FileKek(Path(rest.removeprefix("//")))


KEK_PROVIDERS: dict[str, Callable[[str], KekProvider]] = {"file": _file}
"""One entry per URI scheme; each takes what follows the colon."""


def _context(purpose: str, resource: str) -> bytes:
    return f"{purpose}\0{resource}".encode()


def _seal(key: SecretKey, data: bytes, context: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key.raw).encrypt(nonce, data, context)


def _open(key: SecretKey, sealed: bytes, context: bytes) -> bytes:
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise BadCiphertext("a record at rest is too short")
    try:
        return AESGCM(key.raw).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except InvalidTag as error:
        raise BadCiphertext(
            "a record at rest does not open: changed, or of another KEK or resource"
        ) from error
