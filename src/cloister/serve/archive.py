"""TorchServe model archives: a ZIP, a gzipped TAR, or a folder, with ``MAR-INF/MANIFEST.json``.

An archive comes from a model's owner, who may be hostile to the caller and to the machine. Names and sizes
are checked as a whole before the first byte is written, and sizes are enforced again while writing, because
the lengths in an archive's directory are only claims.

Source: pytorch/serve 0.12, frontend/archive (ModelArchive, ZipUtils): what each format may look like.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, Protocol

from cloister.errors import MalformedInput
from cloister.serve.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SETTINGS_BYTES,
    Manifest,
    ManifestModel,
    check_name,
    parse_manifest,
    parse_settings,
)

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 1 << 37
"""128 GiB: more than any archive that a worker could hold in memory."""
MAX_RATIO = 200
"""Unpacked bytes for each packed one; weights and source code stay below 20."""
RATIO_FLOOR_BYTES = 64 << 20
"""Archives that unpack to less than this are not asked for their ratio."""
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
)
"""What the libraries say of an archive that is not one."""
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, already checked."""

    name: str
    is_folder: bool
    size: int
    native: Any


class Extent(NamedTuple):
    """Where a member lies in its archive's file, uncompressed."""

    offset: int
    crc: int


class Archive(Protocol):
    """One archive format: its members, and the bytes of one."""

    def members(self) -> Sequence[Member]: ...

    def open(self, member: Member) -> IO[bytes]: ...

    def extent(self, member: Member) -> Extent | None:
        """Where the member's bytes lie as they are, or None if they must come through ``open``."""


class Description(NamedTuple):
    """What an archive says of itself."""

    manifest: Manifest
    settings: dict[str, Any]


def describe_archive(archive: Archive) -> Description:
    """Manifest (a default one if there is none, as TorchServe allows) and settings (empty if there are none).

    Raises:
        MalformedInput: one of them cannot be read, or the manifest names settings that are not there.
    """
    by_name = {str(PurePosixPath(member.name)): member for member in archive.members()}
    member = by_name.get(MANIFEST_NAME)
    if member is None:
        return Description(Manifest(model=ManifestModel(handler=_guess_handler(list(by_name)))), {})
    manifest = parse_manifest(_read(archive, member, MAX_MANIFEST_BYTES))
    name = manifest.model.config_file
    if not name:
        return Description(manifest, {})
    settings = by_name.get(str(PurePosixPath(name)))
    if settings is None:
        raise MalformedInput("the archive's settings file is not in it")
    return Description(manifest, parse_settings(_read(archive, settings, MAX_SETTINGS_BYTES)))


def read_description(source: IO[bytes]) -> Description:
    """``describe_archive`` of a ZIP or TAR.

    Raises:
        MalformedInput: not an archive, or an unsafe one.
    """
    with open_archive(source) as archive:
        return describe_archive(archive)


@contextmanager
def open_archive(source: IO[bytes]) -> Iterator[Archive]:
    """Open either format and check all of its directory; errors of its library become ``MalformedInput``."""
    try:
        archive = _open_format(source)
        check_members(archive.members(), packed_bytes=_size_of(source))
        yield archive
    except BROKEN as error:
        raise MalformedInput("not a model archive: its ZIP or TAR structure is broken") from error
    except (ValueError, RuntimeError, LookupError) as error:
        raise MalformedInput("not a model archive: a member cannot be read") from error


def check_members(members: Sequence[Member], *, packed_bytes: int | None) -> None:
    """Refuse what could write outside of a folder, over another member, or without end.

    Args:
        packed_bytes: size of the archive; None for what is unpacked already, which may have any size.
    """
    seen: dict[str, bool] = {}
    for member in members:
        key = str(check_name(member.name))
        if key in seen and not (seen[key] and member.is_folder):
            raise MalformedInput("archive has two members of the same name")
        seen[key] = member.is_folder
    for key in seen:
        for parent in PurePosixPath(key).parents:
            if seen.get(str(parent)) is False:
                raise MalformedInput("archive uses a file as a folder")
    if packed_bytes is not None:
        _check_total(sum(member.size for member in members), packed_bytes)


class _ZipArchive:
    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._zip = zipfile.ZipFile(source)
        if len(self._zip.infolist()) > MAX_MEMBERS:
            raise MalformedInput(f"archive has more than {MAX_MEMBERS} members")
        self._members = [self._member(info) for info in self._zip.infolist()]

    def members(self) -> Sequence[Member]:
        return self._members

    def open(self, member: Member) -> IO[bytes]:
        return self._zip.open(member.native)

    def extent(self, member: Member) -> Extent | None:
        info: zipfile.ZipInfo = member.native
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            return None
        self._zip.open(info).close()  # compares the member's own header with the directory
        self._source.seek(info.header_offset)
        header = self._source.read(_LOCAL_HEADER_BYTES)
        # APPNOTE 4.3.7: the last two fields are the lengths of the name and of the extra field after it.
        name_bytes, extra_bytes = (
            int.from_bytes(header[26:28], "little"),
            int.from_bytes(header[28:30], "little"),
        )
        offset = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        return Extent(offset, info.CRC)

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
        members: list[Member] = []
        total = 0
        for info in self._tar:
            total += info.size
            if len(members) >= MAX_MEMBERS:
                raise MalformedInput(f"archive has more than {MAX_MEMBERS} members")
            _check_total(total, _size_of(source))
            members.append(self._member(info))
        self._members = _without_top_folder(members)

    def members(self) -> Sequence[Member]:
        return self._members

    def open(self, member: Member) -> IO[bytes]:
        content = self._tar.extractfile(member.native)
        if content is None:
            raise MalformedInput("archive has a member without content")
        return content

    def extent(self, member: Member) -> Extent | None:
        return None

    @staticmethod
    def _member(info: tarfile.TarInfo) -> Member:
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise MalformedInput("archive has a link or a special file among its members")
        check_name(info.name)
        return Member(info.name, info.isdir(), info.size, info)


def _without_top_folder(members: list[Member]) -> list[Member]:
    """The members without the folder that torch-model-archiver puts a TAR's members under.

    TorchServe takes the first part of every name away, whatever it is. A TAR with the manifest at its top,
    which TorchServe does not load, is taken as it is.
    """
    if any(str(PurePosixPath(member.name)) == MANIFEST_NAME for member in members):
        return [member for member in members if str(PurePosixPath(member.name)) != "."]
    inner = [replace(member, name=member.name.partition("/")[2] or member.name) for member in members]
    return [
        item for item, member in zip(inner, members, strict=True) if "/" in member.name or not item.is_folder
    ]


def _open_format(source: IO[bytes]) -> Archive:
    source.seek(0)
    magic = source.read(4)
    source.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return _TarArchive(source)
    return _ZipArchive(source)


def _check_total(total: int, packed_bytes: int) -> None:
    if total > MAX_UNPACKED_BYTES:
        raise MalformedInput(f"archive unpacks to {total} bytes, limit is {MAX_UNPACKED_BYTES}")
    if total > RATIO_FLOOR_BYTES and total > MAX_RATIO * packed_bytes:
        raise MalformedInput(f"archive of {packed_bytes} bytes unpacks to {total}: a ZIP bomb")


def _read(archive: Archive, member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise MalformedInput(f"{member.name[:64]} has {member.size} bytes, limit is {limit}")
    with archive.open(member) as content:
        return content.read(limit + 1)


def _guess_handler(names: list[str]) -> str:
    """TorchServe is told the handler when such an archive is registered; the usual names need no telling."""
    scripts = [name for name in names if name.endswith(".py") and "/" not in name]
    for usual in ("handler.py", "service.py", "model_handler.py"):
        if usual in scripts:
            return usual
    return scripts[0] if len(scripts) == 1 else ""


def _size_of(source: IO[bytes]) -> int:
    position = source.tell()
    size = source.seek(0, io.SEEK_END)
    source.seek(position)
    return size
