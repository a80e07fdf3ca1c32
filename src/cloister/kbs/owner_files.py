"""Files that only their owner may read: written whole or not at all, refused when others could read them."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError, MalformedInput

MAX_FILE_BYTES = 1 << 16


def make_folder(folder: Path) -> None:
    """Create a state folder with owner-only rights, if it is not there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create folder {folder}: {error.strerror}") from error


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Write a file that must not exist yet, durably. Returns False if another process was first.

    Raises:
        ConfigError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # fails where the name is taken, and never shows half a file
        finally:
            temporary.unlink()
        _sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Write an owner-only file over an older one, in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_new(temporary, data)
    try:
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path) -> bytes:
    """Read a file that nobody but its owner can read.

    Raises:
        ConfigError: absent, too long, not a plain file, or group or world have any right to it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a plain file")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"{path} can be used by group or others (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"chmod 600 {path}, and replace the secret if somebody may have read it",
            )
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_FILE_BYTES} bytes")
    return data


def load_or_make_ed25519(path: Path) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key in a PEM file, made on first use."""
    if not path.exists():
        write_new(path, _pem(ed25519.Ed25519PrivateKey.generate()))
    key = _load_pem(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} does not hold an Ed25519 key")
    return key


def load_or_make_p256(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in a PEM file, made on first use."""
    if not path.exists():
        write_new(path, _pem(ec.generate_private_key(ec.SECP256R1())))
    key = _load_pem(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ConfigError(f"{path} does not hold a P-256 key")
    return key


def load_or_make_secret(path: Path) -> SecretKey:
    """The 32-byte key in a file, made on first use."""
    if not path.exists():
        write_new(path, SecretKey.generate().raw)
    try:
        return SecretKey(read_private(path))
    except MalformedInput as error:
        raise ConfigError(f"{path} does not hold a key of 32 bytes") from error


def _pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_pem(path: Path) -> object:
    try:
        return load_pem_private_key(read_private(path), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} does not hold an unencrypted PEM private key") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
