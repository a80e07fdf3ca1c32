"""A model's files as buffers in memory: maps of the decrypted copy that all its workers share, or bytes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from cloister.errors import ConfigError


class ModelFiles:
    """Named buffers, by their paths within an archive. Nothing is copied."""

    def __init__(self, buffers: Mapping[str, bytes | memoryview]) -> None:
        self._buffers = {name: memoryview(content) for name, content in buffers.items()}
        self._folder: Path | None = None
        self._paths: dict[str, Path] = {}

    @classmethod
    def from_paths(cls, paths: Mapping[str, Path]) -> ModelFiles:
        """Single files by the names that they will have, as their owner packs them."""
        files = cls({})
        files._paths = dict(paths)
        return files

    @classmethod
    def from_folder(cls, folder: Path) -> ModelFiles:
        """The files of a folder, each mapped when it is asked for.

        In protected mode the folder is on a file system in memory, which whoever placed it has checked.
        """
        files = cls({})
        files._folder = folder
        return files

    def __contains__(self, name: str) -> bool:
        return name in self._buffers or self._path(name) is not None

    def names(self) -> Iterator[str]:
        """The names of all files."""
        yield from dict.fromkeys((*self._buffers, *self._paths))
        if self._folder is not None:
            for path in sorted(self._folder.rglob("*")):
                name = path.relative_to(self._folder).as_posix()
                if path.is_file() and name not in self._buffers and name not in self._paths:
                    yield name

    def read(self, name: str) -> memoryview:
        """One file's content, read-only. It lives as long as something refers to it.

        Raises:
            ConfigError: there is no such file.
        """
        buffer = self._buffers.get(name)
        if buffer is None:
            path = self._path(name)
            if path is None:
                raise ConfigError(f"the archive has no file {name[:256]!r}, which its engine needs")
            buffer = self._buffers[name] = _map(path)
        return buffer.toreadonly()

    def path(self, name: str) -> Path:
        """Where a file lies, for the system's loader of libraries, which takes nothing else.

        Raises:
            ConfigError: there is no such file, or it is in memory only.
        """
        path = self._path(name)
        if path is None:
            raise ConfigError(f"the archive has no file {name[:256]!r} that can be loaded from its place")
        return path

    def beside(self, name: str, suffix: str) -> str:
        """The name of the file that differs from ``name`` in its suffix only."""
        return str(PurePosixPath(name).with_suffix(suffix))

    def close(self) -> None:
        """Let go of all buffers; those that an engine still uses stay until it ends."""
        self._buffers.clear()

    def _path(self, name: str) -> Path | None:
        if name in self._paths:
            return self._paths[name]
        parts = PurePosixPath(name)
        if self._folder is None or not name or parts.is_absolute() or ".." in parts.parts:
            return None
        path = self._folder / parts
        return path if path.is_file() else None


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
