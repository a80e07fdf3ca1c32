"""The form of a backup: a tar file, mode 0600, with these members and no others.

============== =============================================================================================
member         content
============== =============================================================================================
manifest.json  ``format``, ``created``, ``schema``, the audit log's ``entries`` and ``head``, ``keks`` (the
               names of the KEKs that the resources are under), SHA-256 of every other member
kbs.sqlite     the whole database of one moment, also where the broker's own one is PostgreSQL; no sessions
*files*        the files of the state folder but the database, the session key and the KEK: without them the
               audit log cannot go on, and clients would have to be given another certificate
kek            the KEK file, only where it was asked for
============== =============================================================================================

Nothing of an archive is believed before its digests fit; they find accidents. What finds a forger is the
audit log inside it, which is signed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.errors import BadCiphertext, ConfigError, MalformedInput

FORMAT = "cloister-keys-backup/1"
DATABASE, MANIFEST, KEK = "kbs.sqlite", "manifest.json", "kek"
PUBLIC = frozenset({"tls.pem", "audit.pub"})
SECRET = ("tls.key", "token.key", "admin.key", "admin.token", "audit.key")
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """What an archive holds."""

    created: str
    entries: int
    """Of the audit log."""
    head: str
    """Hash of the last one."""
    versions: int
    """Stored versions of resources."""
    keks: tuple[str, ...]
    """Names of the KEKs that they are under; without these the resources stay closed."""
    has_kek: bool


def write_archive(path: Path, manifest: dict[str, Any], files: dict[str, bytes], copy: Path) -> None:
    """Write an archive; ``copy`` is the database."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
            members = {MANIFEST: json.dumps(manifest, indent=2).encode(), **files}
            for name, data in members.items():
                archive.addfile(_member(name, len(data)), io.BytesIO(data))
            with copy.open("rb") as database:
                archive.addfile(_member(DATABASE, copy.stat().st_size), database)
        raw.flush()
        os.fsync(raw.fileno())


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def read_archive(path: Path, copy: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files of an archive; the database goes to ``copy``.

    Raises:
        ConfigError: unreadable.
        MalformedInput: not an archive of this kind.
        BadCiphertext: a member was changed, or is missing.
    """
    try:
        with tarfile.open(path, mode="r:") as archive:
            members = archive.getmembers()
            names = [member.name for member in members]
            allowed = {MANIFEST, DATABASE, KEK, *SECRET, *PUBLIC}
            if (
                len(set(names)) != len(names)
                or not set(names) <= allowed
                or not {MANIFEST, DATABASE} <= set(names)
            ):
                raise MalformedInput(f"{path} is not a backup of a broker: it has other members")
            if not all(member.isreg() for member in members):
                raise MalformedInput(f"{path} is not a backup of a broker: a member is no plain file")
            files: dict[str, bytes] = {}
            for member in members:
                source = archive.extractfile(member)
                if source is None or (member.name != DATABASE and member.size > MAX_FILE_BYTES):
                    raise MalformedInput(f"{path}: member {member.name} is too long")
                if member.name == DATABASE:
                    _spool(source, copy)
                else:
                    files[member.name] = source.read()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tarfile.TarError as error:
        raise MalformedInput(f"{path} is not a tar file") from error
    manifest = _manifest(files.pop(MANIFEST))
    for name, found in {
        DATABASE: digest_of(copy),
        **{n: hashlib.sha256(d).hexdigest() for n, d in files.items()},
    }.items():
        if manifest["sha256"].get(name) != found:
            raise BadCiphertext(f"{path}: member {name} was changed")
    if manifest["sha256"].keys() != {DATABASE, *files}:
        raise BadCiphertext(f"{path}: a member is missing")
    return manifest, files


def _spool(source: Any, copy: Path) -> None:
    descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())


def _manifest(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
        summarize(document)
        if document["format"] != FORMAT or not isinstance(document["sha256"], dict):
            raise MalformedInput(f"the backup is not of the form {FORMAT}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedInput("the backup's manifest is not one") from error
    manifest: dict[str, Any] = document
    return manifest


def summarize(manifest: dict[str, Any]) -> BackupSummary:
    """What a manifest says."""
    return BackupSummary(
        created=str(manifest["created"]),
        entries=int(manifest["entries"]),
        head=str(manifest["head"]),
        versions=int(manifest["versions"]),
        keks=tuple(map(str, manifest["keks"])),
        has_kek=KEK in manifest["sha256"],
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
