"""Who sealed a model: Ed25519 keys of model owners, and the list of those that a server trusts.

A public key is written ``ed25519:`` and 43 characters, the unpadded base64url of its 32 bytes (RFC 8032 key,
RFC 4648 section 5). A list of trusted signers has one such line per key; empty lines and what follows ``#``
are ignored. An empty list trusts nobody.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, SupportsIndex

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.errors import BadSignature, ConfigError, MalformedInput, UntrustedRoot

PREFIX = "ed25519:"
SIGNATURE_BYTES = 64
_PUBLIC_BYTES = 32
_MAX_FILE_BYTES = 1 << 20


class SigningKey:
    """A model owner's private signing key. Only ``save`` writes it anywhere."""

    __slots__ = ("_key", "public")

    public: str
    """The public key in text form: what headers name and trust lists hold."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = render_public(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key that ``save`` wrote: PKCS#8 PEM, readable by its owner alone.

        Raises:
            ConfigError: no such file, not such a key, or others may read it.
        """
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                raw = file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise ConfigError(f"cannot read signing key {path}: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"signing key {path} is open to other users", hint=f"chmod 600 {path}")
        try:
            key = load_pem_private_key(raw, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not a private key in PEM form") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to a new file with mode 0600.

        Raises:
            ConfigError: the file exists (a signing key is never overwritten) or cannot be made.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
        except OSError as error:
            raise ConfigError(f"cannot write signing key {path}: {error.strerror}") from error

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public!r})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a SigningKey cannot be pickled or copied")


class TrustedSigners:
    """The public keys whose models may be loaded: ``signer in trusted``, or ``check`` to be told why not."""

    def __init__(self, signers: Iterable[str] = ()) -> None:
        self._signers = frozenset(signers)
        for signer in self._signers:
            parse_public(signer)

    @classmethod
    def from_lines(cls, lines: Iterable[str]) -> TrustedSigners:
        """One public key per line; empty lines and comments are ignored.

        Raises:
            MalformedInput: a line that is neither.
        """
        texts = (line.partition("#")[0].strip() for line in lines)
        return cls(text for text in texts if text)

    @classmethod
    def from_file(cls, path: Path) -> TrustedSigners:
        """The same from a file.

        Raises:
            ConfigError: the file cannot be read, or a line of it is not a public key.
        """
        try:
            return cls.from_lines(path.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise ConfigError(f"cannot read trusted signers {path}: {error.strerror}") from error
        except (MalformedInput, UnicodeDecodeError) as error:
            raise ConfigError(f"trusted signers {path}: {error}") from error

    def __contains__(self, signer: object) -> bool:
        return signer in self._signers

    def __len__(self) -> int:
        return len(self._signers)

    def check(self, signer: str) -> None:
        """Establish that the signer is trusted.

        Raises:
            UntrustedRoot: it is not in the list; an empty list trusts nobody.
        """
        if signer not in self._signers:
            raise UntrustedRoot(
                f"signer {signer} is not among the {len(self)} trusted ones",
                hint="add its line to the file of trusted signers if you trust it",
            )


def render_public(raw: bytes) -> str:
    """Text form of a public key."""
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def parse_public(text: str) -> bytes:
    """The 32 bytes of a public key in text form.

    Raises:
        MalformedInput: anything but the one text that ``render_public`` gives for some key.
    """
    try:
        raw = base64.b64decode(text.removeprefix(PREFIX) + "=", altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise MalformedInput(f"not a public key of the form {PREFIX}...: {text[:80]!r}") from error
    if len(raw) != _PUBLIC_BYTES or render_public(raw) != text:
        raise MalformedInput(f"not a public key of the form {PREFIX}...: {text[:80]!r}")
    return raw


def verify_signature(signer: str, signature: bytes, data: bytes) -> None:
    """Establish that the signer signed the data; not that the signer is trusted.

    Raises:
        MalformedInput: the signer is not a public key.
        BadSignature: it did not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(parse_public(signer)).verify(signature, data)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(f"the signature is not one of {signer}") from error
