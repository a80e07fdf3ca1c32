"""A launch measurement for software platforms: what MRTD is to hardware, over a package's files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cloister.errors import ConfigError

MEASUREMENT_BYTES = 48
_DOMAIN = b"cloister package measurement v1\x00"


def measure_package(folder: Path) -> bytes:
    """SHA-384 (48 bytes) over every file below ``folder``: relative POSIX paths and contents.

    Files go in the byte order of their paths; path and content are each preceded by their length (8 bytes,
    big-endian), so that no two packages have the same input. Byte code (``*.pyc``, ``__pycache__``) is left
    out: the interpreter writes it at will. A symbolic link is an error: it would let unmeasured content in.

    Raises:
        ConfigError: no such folder, no file in it, a symbolic link, or an unreadable file.
    """
    digest = hashlib.sha384(_DOMAIN)
    paths = _measured_files(folder)
    if not paths:
        raise ConfigError(f"nothing to measure in {folder}")
    for name, path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot measure {path}: {error.strerror}") from error
        for part in (name, content):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.digest()


def installed_package() -> Path:
    """Folder of the Cloister package that is running."""
    return Path(__file__).resolve().parent.parent


def _measured_files(folder: Path) -> list[tuple[bytes, Path]]:
    if not folder.is_dir():
        raise ConfigError(f"cannot measure {folder}: not a folder")
    found: list[tuple[bytes, Path]] = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if "__pycache__" in relative.parts or path.suffix == ".pyc":
            continue
        if path.is_symlink():
            raise ConfigError(f"cannot measure {path}: symbolic links are not measured")
        if path.is_file():
            found.append((relative.as_posix().encode("utf-8", "surrogateescape"), path))
    return sorted(found)
