"""TorchServe model archives (``.mar``): a ZIP or gzipped TAR with ``MAR-INF/MANIFEST.json``.

An archive comes from a model's owner, who may be hostile to the caller and to the machine. Names and sizes
are checked as a whole before the first byte is written, and sizes are enforced again while writing, because
the lengths in an archive's directory are only claims.

Source: pytorch/serve 0.12, model-archiver/README.md, section "Artifact Details".
"""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import msgspec

from cloister.errors import ConfigError, MalformedInput

MANIFEST_NAME = "MAR-INF/MANIFEST.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_MEMBERS = 10_000
MAX_NAME_BYTES = 1024
MAX_UNPACKED_BYTES = 1 << 37
"""128 GiB: more than any archive that a worker could hold in memory."""
MAX_RATIO = 200
"""Unpacked bytes for each packed one; weights and source code stay below 20."""
RATIO_FLOOR_BYTES = 64 << 20
"""Archives that unpack to less than this are not asked for their ratio."""
_COPY_BYTES = 1 << 20


class ManifestModel(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The ``model`` object of a manifest. Unknown names are left alone: other tools add their own."""

    model_name: str = ""
    model_version: str = ""
    handler: str = ""
    serialized_file: str = ""
    model_file: str = ""
    config_file: str = ""
    requirements_file: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What Cloister reads of ``MANIFEST.json``."""

    runtime: str = "python"
    model: ManifestModel = ManifestModel()


class Archive(Protocol):
    """One archive format: its members, and the bytes of one."""

    def members(self) -> Sequence[Member]: ...

    def open(self, member: Member) -> IO[bytes]: ...


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, already checked."""

    name: str
    is_folder: bool
    size: int
    native: Any


def read_manifest(source: IO[bytes]) -> Manifest:
    """The manifest of an archive; a default one if it has none, as TorchServe allows.

    Raises:
        MalformedInput: not an archive, an unsafe one, or a manifest that is not JSON of the known form.
    """
    with open_archive(source) as archive:
        return _manifest_of(archive)


def unpack_archive(source: IO[bytes], folder: Path) -> Manifest:
    """Write every member under ``folder``, which must be empty, and return the manifest.

    Files become owner-only and lose execute, set-uid and every other special bit.

    Raises:
        MalformedInput: a member that leaves the folder, is a link or a device, appears twice, or is longer
            than it says; too many members; or unpacking to more than the limits.
    """
    with open_archive(source) as archive:
        manifest = _manifest_of(archive)
        for member in archive.members():
            target = folder.joinpath(*PurePosixPath(member.name).parts)
            if member.is_folder:
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_member(archive, member, target)
    return manifest


def pack_archive(
    target: Path | IO[bytes],
    *,
    name: str,
    version: str,
    handler: Path | str,
    serialized_file: Path | None = None,
    model_file: Path | None = None,
    extra_files: Sequence[Path] = (),
    config_file: Path | None = None,
    requirements_file: Path | None = None,
    created: datetime | None = None,
) -> Manifest:
    """Write an archive that TorchServe loads as well; returns its manifest.

    Members are stored, not deflated: weights do not shrink, and a stored member can be read at random.

    Args:
        handler: a file, a file with ``:function`` after it, or the bare name of a built-in handler.
        extra_files: files, or folders that are packed with all that is in them.
        created: written into the manifest; now if not given.
    Raises:
        ConfigError: a file that is not there, or two files of one name.
    """
    handler_file, handler_entry = _split_handler(handler)
    files = [
        f
        for f in (handler_file, serialized_file, model_file, config_file, requirements_file)
        if f is not None
    ]
    entries = {path.name: path for path in files}
    if len(entries) != len(set(files)):
        raise ConfigError("two files of the archive have the same name")
    for path in extra_files:
        for inner_name, inner in _walk(path):
            if entries.setdefault(inner_name, inner) != inner:
                raise ConfigError(f"two files of the archive have the same name: {inner_name}")
    model = ManifestModel(
        model_name=name,
        model_version=version,
        handler=handler_entry,
        serialized_file=serialized_file.name if serialized_file else "",
        model_file=model_file.name if model_file else "",
        config_file=config_file.name if config_file else "",
        requirements_file=requirements_file.name if requirements_file else "",
    )
    manifest = Manifest(model=model)
    created = created or datetime.now(UTC)
    document = {
        "createdOn": created.strftime("%d/%m/%Y %H:%M:%S"),
        "runtime": manifest.runtime,
        "model": {key: value for key, value in msgspec.to_builtins(model).items() if value},
        "archiverVersion": "0.12.0",
    }
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(MANIFEST_NAME, json.dumps(document, indent=2))
            for inner_name, path in entries.items():
                archive.write(path, inner_name)
    except OSError as error:
        raise ConfigError(f"cannot pack {error.filename}: {error.strerror}") from error
    return manifest


@contextmanager
def open_archive(source: IO[bytes]) -> Iterator[Archive]:
    """Open either format and check all of its directory; errors of its library become ``MalformedInput``."""
    try:
        archive = _open_format(source)
        _check_members(archive.members(), packed_bytes=_size_of(source))
        yield archive
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise MalformedInput("not a model archive: its ZIP or TAR structure is broken") from error
    except (ValueError, RuntimeError, KeyError, UnicodeError) as error:
        raise MalformedInput("not a model archive: a member cannot be read") from error


class _ZipArchive:
    def __init__(self, source: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(source)
        if len(self._zip.infolist()) > MAX_MEMBERS:
            raise MalformedInput(f"archive has more than {MAX_MEMBERS} members")
        self._members = [self._member(info) for info in self._zip.infolist()]

    def members(self) -> Sequence[Member]:
        return self._members

    def open(self, member: Member) -> IO[bytes]:
        return self._zip.open(member.native)

    @staticmethod
    def _member(info: zipfile.ZipInfo) -> Member:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise MalformedInput("archive has a link or a special file among its members")
        if info.flag_bits & 1:
            raise MalformedInput("archive has a member under a ZIP password")
        # zipfile cuts a name at NUL and keeps what it read before in orig_filename.
        if info.orig_filename != info.filename:
            raise MalformedInput("archive has a member with a forbidden name")
        return Member(info.filename, info.is_dir(), info.file_size, info)


class _TarArchive:
    def __init__(self, source: IO[bytes]) -> None:
        # Streaming over the directory first: a gzip bomb must not be inflated beyond the limit.
        self._tar = tarfile.open(fileobj=source, mode="r:*")  # noqa: SIM115 (closed with its source)
        self._members: list[Member] = []
        total = 0
        for info in self._tar:
            total += info.size
            if len(self._members) >= MAX_MEMBERS:
                raise MalformedInput(f"archive has more than {MAX_MEMBERS} members")
            _check_total(total, _size_of(source))
            self._members.append(self._member(info))
        self._strip_top_folder()

    def members(self) -> Sequence[Member]:
        return self._members

    def open(self, member: Member) -> IO[bytes]:
        content = self._tar.extractfile(member.native)
        if content is None:
            raise MalformedInput("archive has a member without content")
        return content

    def _strip_top_folder(self) -> None:
        """torch-model-archiver puts a TAR's members under a folder with the model's name."""
        tops = {member.name.partition("/")[0] for member in self._members}
        top = tops.pop() if len(tops) == 1 else ""
        if top and any(member.name == f"{top}/{MANIFEST_NAME}" for member in self._members):
            inner = [replace(m, name=m.name.partition("/")[2]) for m in self._members]
            self._members = [member for member in inner if member.name]

    @staticmethod
    def _member(info: tarfile.TarInfo) -> Member:
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise MalformedInput("archive has a link or a special file among its members")
        return Member(info.name, info.isdir(), info.size, info)


def _open_format(source: IO[bytes]) -> Archive:
    source.seek(0)
    magic = source.read(4)
    source.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return _TarArchive(source)
    return _ZipArchive(source)


def _check_members(members: Sequence[Member], *, packed_bytes: int) -> None:
    seen: dict[str, bool] = {}
    for member in members:
        path = _safe_path(member.name)
        key = str(path)
        if key in seen and not (seen[key] and member.is_folder):
            raise MalformedInput("archive has two members of the same name")
        seen[key] = member.is_folder
    for key in seen:
        for parent in PurePosixPath(key).parents:
            if seen.get(str(parent)) is False:
                raise MalformedInput("archive uses a file as a folder")
    _check_total(sum(member.size for member in members), packed_bytes)


def _safe_path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    forbidden = any(ord(c) < 32 or c in "\\\x7f" for c in name)
    if forbidden or not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise MalformedInput("archive has a member with a forbidden name")
    if path.is_absolute() or ".." in path.parts or (path == PurePosixPath(".") and not name.endswith("/")):
        raise MalformedInput("archive has a member outside of its folder")
    return path


def _check_total(total: int, packed_bytes: int) -> None:
    if total > MAX_UNPACKED_BYTES:
        raise MalformedInput(f"archive unpacks to {total} bytes, limit is {MAX_UNPACKED_BYTES}")
    if total > RATIO_FLOOR_BYTES and total > MAX_RATIO * packed_bytes:
        raise MalformedInput(f"archive of {packed_bytes} bytes unpacks to {total}: a ZIP bomb")


def _manifest_of(archive: Archive) -> Manifest:
    by_name = {str(PurePosixPath(member.name)): member for member in archive.members()}
    member = by_name.get(MANIFEST_NAME)
    if member is None:
        return Manifest(model=ManifestModel(handler=_guess_handler(list(by_name))))
    if member.size > MAX_MANIFEST_BYTES:
        raise MalformedInput(f"{MANIFEST_NAME} has {member.size} bytes, limit is {MAX_MANIFEST_BYTES}")
    with archive.open(member) as content:
        raw = content.read(MAX_MANIFEST_BYTES + 1)
    return parse_manifest(raw)


def parse_manifest(raw: bytes) -> Manifest:
    """Parse ``MANIFEST.json``.

    Raises:
        MalformedInput: not JSON, a value of the wrong type, or a file name that leaves the archive.
    """
    try:
        manifest = msgspec.json.decode(raw.removeprefix(b"\xef\xbb\xbf"), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedInput(f"{MANIFEST_NAME} is not a manifest") from error
    model = manifest.model
    named = (model.serialized_file, model.model_file, model.config_file, model.requirements_file)
    for name in (*named, model.handler.partition(":")[0]):
        if name:
            _safe_path(name)
    return manifest


def _guess_handler(names: list[str]) -> str:
    """TorchServe is told the handler when such an archive is registered; the usual names need no telling."""
    scripts = [name for name in names if name.endswith(".py") and "/" not in name]
    for usual in ("handler.py", "service.py", "model_handler.py"):
        if usual in scripts:
            return usual
    return scripts[0] if len(scripts) == 1 else ""


def _write_member(archive: Archive, member: Member, target: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with archive.open(member) as content, os.fdopen(os.open(target, flags, 0o600), "wb") as out:
            left = member.size
            while chunk := content.read(min(_COPY_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise MalformedInput("archive has a member that is longer than it says")
                out.write(chunk)
            if left:
                raise MalformedInput("archive has a member that is shorter than it says")
    except FileExistsError as error:
        raise MalformedInput("archive has two members of the same name") from error


def _split_handler(handler: Path | str) -> tuple[Path | None, str]:
    text = str(handler)
    file, _, function = text.partition(":") if isinstance(handler, str) else (text, "", "")
    path = Path(file)
    if not path.exists():
        if path.suffix == ".py" or "/" in file:
            raise ConfigError(f"handler {file} is not there")
        return None, text
    return path, f"{path.name}:{function}" if function else path.name


def _walk(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield path.name, path
        return
    for inner in sorted(path.rglob("*")):
        if inner.is_file():
            yield inner.relative_to(path).as_posix(), inner


def _size_of(source: IO[bytes]) -> int:
    position = source.tell()
    size = source.seek(0, io.SEEK_END)
    source.seek(position)
    return size
