"""Write an archive's members under a folder, straight into the pages of the files that they become.

The bytes of a stored member are read (and decrypted) into the mapped pages of their file in a tmpfs: no
second copy exists at any moment. Space is reserved before, as a page that cannot be had ends the process.
"""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from cloister.errors import ConfigError, MalformedInput
from cloister.serve.archive import (
    BROKEN,
    Archive,
    Description,
    Extent,
    Member,
    describe_archive,
    open_archive,
)

_COPY_BYTES = 1 << 20
_MAP_BYTES = 1 << 22
"""A member is filled in pieces of this size, whose checksum is taken while they are in the CPU's cache."""
FILE_MODE = 0o600
FOLDER_MODE = 0o700


def unpack_archive(source: IO[bytes], folder: Path, *, authentic: bool = False) -> Description:
    """Write every member under ``folder``, which must be empty, and return what the archive says of itself.

    Files become owner-only and lose execute, set-uid and every other special bit.

    Args:
        authentic: the source's bytes are authenticated, so that a ZIP's checksums say nothing more.
    Raises:
        MalformedInput: a member that leaves the folder, is a link or a device, appears twice, is longer than
            it says or does not have its checksum; too many members; or unpacking to more than the limits.
        ConfigError: the folder's file system has no room for it.
    """
    with open_archive(source) as archive:
        description = describe_archive(archive)
        write_members(archive, folder, source, authentic=authentic)
    return description


def write_members(
    archive: Archive, folder: Path, source: IO[bytes] | None, *, authentic: bool = False
) -> None:
    """``unpack_archive`` of an archive that is open already."""
    try:
        for member in archive.members():
            target = folder.joinpath(*PurePosixPath(member.name).parts)
            if member.is_folder:
                target.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
                continue
            target.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            extent = archive.extent(member) if source is not None else None
            if source is not None and extent is not None:
                _map_member(source, extent, member.size, target, authentic=authentic)
            else:
                _copy_member(archive, member, target)
    except BROKEN:
        raise  # one of them is an OSError
    except FileExistsError as error:
        raise MalformedInput("archive has two members of the same name") from error
    except OSError as error:
        raise ConfigError(
            f"cannot unpack the archive into {folder.parent}: {error.strerror}",
            hint="serve.tmpfs needs room for every loaded model",
        ) from error


def protect_folder(folder: Path) -> None:
    """Take write permission from all that is in ``folder`` and from itself."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            Path(path, name).chmod(0o400)
        Path(path).chmod(0o500)


def _create(target: Path) -> int:
    return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


def _map_member(source: IO[bytes], extent: Extent, size: int, target: Path, *, authentic: bool) -> None:
    descriptor = _create(target)
    try:
        if size == 0:
            return
        os.posix_fallocate(descriptor, 0, size)
        source.seek(extent.offset)
        crc = _fill(descriptor, source, size, checked=not authentic)
    finally:
        os.close(descriptor)
    if not authentic and crc != extent.crc:
        raise MalformedInput("archive has a member whose checksum is wrong")


def _fill(descriptor: int, source: IO[bytes], size: int, *, checked: bool) -> int:
    # Nothing is released in a finally clause: the traceback of an error in the source still refers to slices
    # of the pages, which go with it, and closing them before would raise in the error's place.
    pages = mmap.mmap(descriptor, size)
    view = memoryview(pages)
    filled = crc = 0
    while filled < size:
        part = view[filled : filled + _MAP_BYTES]
        count = source.readinto(part)  # type: ignore[attr-defined]  # every binary file has it
        if not count:
            raise MalformedInput("archive has a member that is shorter than it says")
        if checked:
            crc = zlib.crc32(part[:count], crc)
        part.release()
        filled += count
    view.release()
    pages.close()
    return crc


def _copy_member(archive: Archive, member: Member, target: Path) -> None:
    with archive.open(member) as content, os.fdopen(_create(target), "wb") as out:
        left = member.size
        while chunk := content.read(min(_COPY_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise MalformedInput("archive has a member that is longer than it says")
            out.write(chunk)
        if left:
            raise MalformedInput("archive has a member that is shorter than it says")
