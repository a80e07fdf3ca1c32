"""Open mode's models: archives and folders in a model store, by name or by an allow-listed URL.

Whoever may register a model says its name here, so a name reaches nothing outside of the store: no path, no
link that leaves it, no URL that the operator has not allowed (CVE-2023-43654 was a store that took them all).
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from cloister.engines.spec import SERVED_KEY
from cloister.errors import ConfigError, MalformedInput, ModelNotFound
from cloister.serve.archive import (
    MAX_MEMBERS,
    MAX_UNPACKED_BYTES,
    Description,
    Extent,
    Member,
    check_members,
    describe_archive,
    open_archive,
)
from cloister.serve.download import fetch_archive, is_url
from cloister.serve.manifest import MANIFEST_NAME, RUNTIMES, Manifest
from cloister.serve.requirements import install_requirements, warn_of_missing
from cloister.serve.sources import ModelSource, Wanted, is_model_name, pick
from cloister.serve.unpack import unpack_archive, write_members

SUFFIXES = (".mar", ".tar.gz", ".tgz")


class PlainStore:
    """A folder of archives.

    Args:
        allowed: regular expressions of URLs that may be fetched into the folder; none by default.
        install: install a model's ``requirements.txt`` beside it when it is placed.
        default_handler: for an archive that names none.
        max_bytes: longest archive that is fetched from a URL.
    """

    def __init__(
        self,
        folder: Path,
        allowed: Sequence[str] = (),
        *,
        install: bool = False,
        default_handler: str = "",
        max_bytes: int = MAX_UNPACKED_BYTES,
    ) -> None:
        self._folder = folder
        self._allowed = allowed
        self._install = install
        self._default_handler = default_handler
        self._max_bytes = max_bytes

    def resolve(self, url: str, *, model_name: str = "", handler: str = "", runtime: str = "") -> ModelSource:
        """The model at ``url``: the name of a file or folder in the store, or an allowed URL.

        Blocks; runs in a thread.

        Args:
            model_name: its name here, instead of the one in its manifest.
            handler: instead of the one in its manifest.
        Raises:
            ModelNotFound: nothing of that name, or a URL that is not allowed.
            MalformedInput: not an archive, an unsafe one, or a name or runtime that cannot be.
            ServingError: a URL's file is in the store already.
            TransportError: a URL could not be fetched.
        """
        if not url:
            raise ModelNotFound("empty url")
        if ".." in url:
            raise ModelNotFound(f"Relative path is not allowed in url: {url[:256]}")
        if runtime and runtime not in RUNTIMES:
            raise MalformedInput(f"Invalid model runtime value: {runtime[:64]}")
        if is_url(url):
            name = fetch_archive(url, self._folder, self._allowed, max_bytes=self._max_bytes)
        else:
            name = self._local_name(url)
        return self._source(self._inside(name, url), model_name=model_name, handler=handler, runtime=runtime)

    def wanted(self, entries: Sequence[Wanted]) -> list[ModelSource]:
        """The wanted models of the store; of every model's newest version if none is named.

        Raises:
            ConfigError: no such folder, or a wanted model that is not in it.
            MalformedInput: an archive that cannot be read.
        """
        if not self._folder.is_dir():
            raise ConfigError(f"serve.model_store: {self._folder} is not a folder")
        found: dict[tuple[str, str], Path] = {}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or not _is_model(path):
                continue
            with _naming(path):
                manifest = _identified(_describe(path).manifest, path)
            identity = manifest.model.model_name, manifest.model.model_version
            if identity in found:
                raise ConfigError(f"{found[identity].name} and {path.name} are both {' '.join(identity)}")
            found[identity] = path
        picked = pick(found, entries, where=str(self._folder))
        sources: list[ModelSource] = []
        try:
            for identity in picked:
                sources.append(self._source(found[identity]))
        except BaseException:
            for source in sources:
                source.close()
            raise
        return sources

    def _local_name(self, url: str) -> str:
        path = Path(url)
        if path.is_absolute() and "\0" not in url:
            folder, real = self._folder.resolve(), path.resolve()
            if folder in real.parents:
                return str(real.relative_to(folder))
        if "/" in url or "\\" in url or url.startswith(".") or "\0" in url:
            raise ModelNotFound(f"Model not found at: {url[:256]}")
        return url

    def _inside(self, name: str, url: str) -> Path:
        path = self._folder / name
        try:
            real = path.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise ModelNotFound(f"Model not found at: {url[:256]}") from None
        if self._folder.resolve() not in real.parents:
            raise ModelNotFound(f"Model not found at: {url[:256]}")
        return path

    def _source(
        self, path: Path, *, model_name: str = "", handler: str = "", runtime: str = ""
    ) -> ModelSource:
        with _naming(path):
            content = _FolderContent(path) if path.is_dir() else _ArchiveContent(path)
            try:
                described = content.describe()
                model = described.manifest.model
                served = SERVED_KEY in described.settings
                model = msgspec.structs.replace(
                    model,
                    model_name=model_name or model.model_name,
                    handler=handler or model.handler or ("" if served else self._default_handler),
                )
                manifest = msgspec.structs.replace(
                    described.manifest, model=model, runtime=runtime or described.manifest.runtime
                )
                manifest = _identified(manifest, path)
            except BaseException:
                content.close()
                raise
        return ModelSource(
            name=manifest.model.model_name,
            version=manifest.model.model_version,
            url=path.name,
            manifest=manifest,
            content=_WithRequirements(content, manifest, install=self._install),
            settings=described.settings,
        )


def resolve_source(url: str, store: Path, allowed: Sequence[str] = ()) -> ModelSource:
    """``PlainStore(store, allowed).resolve(url)``."""
    return PlainStore(store, allowed).resolve(url)


class _ArchiveContent:
    """A ZIP or TAR; kept open, so that what is placed is what was described."""

    def __init__(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ModelNotFound(f"Model not found at: {path.name}") from error
        self._file: IO[bytes] = os.fdopen(descriptor, "rb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._file.close()
            raise MalformedInput("not a model archive: not a regular file")

    def describe(self) -> Description:
        with open_archive(self._file) as archive:
            return describe_archive(archive)

    def place(self, folder: Path) -> Path:
        unpack_archive(self._file, folder)
        return folder

    def close(self) -> None:
        self._file.close()


class _FolderContent:
    """A no-archive model: used where it is, without a copy, unless packages are to be installed beside it."""

    def __init__(self, path: Path) -> None:
        inner = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        # A TAR that somebody has unpacked: all of it under one folder, as TorchServe allows.
        alone = inner[0] if len(inner) == 1 and inner[0].is_dir() and not inner[0].is_symlink() else path
        self._path = (path if alone.name == "MAR-INF" else alone).resolve()

    def describe(self) -> Description:
        archive = FolderArchive(self._path)
        check_members(archive.members(), packed_bytes=None)
        return describe_archive(archive)

    def place(self, folder: Path) -> Path:
        return self._path

    def copy(self, folder: Path) -> Path:
        write_members(FolderArchive(self._path), folder, None)
        return folder

    def close(self) -> None:
        pass


class FolderArchive:
    """A folder on a disk as an archive. Links that leave it are refused, and everything that is no file."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        paths = list(itertools.islice(self._root.rglob("*"), MAX_MEMBERS + 1))
        if len(paths) > MAX_MEMBERS:
            raise MalformedInput(f"the model's folder has more than {MAX_MEMBERS} files")
        self._members = [self._member(path) for path in sorted(paths)]

    def members(self) -> Sequence[Member]:
        return self._members

    def open(self, member: Member) -> IO[bytes]:
        file: IO[bytes] = Path(member.native).open("rb")  # noqa: SIM115 (the caller closes it)
        return file

    def extent(self, member: Member) -> Extent | None:
        return None

    def _member(self, path: Path) -> Member:
        try:
            real = path.resolve(strict=True)
            facts = real.stat()
        except (OSError, RuntimeError) as error:
            raise MalformedInput("the model's folder has a link to nothing") from error
        if self._root not in real.parents:
            raise MalformedInput("the model's folder has a link that leaves it")
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
            raise MalformedInput("the model's folder has something in it that is no file")
        name = path.relative_to(self._root).as_posix()
        is_folder = stat.S_ISDIR(facts.st_mode)
        return Member(name, is_folder, 0 if is_folder else facts.st_size, real)


class _WithRequirements:
    """Looks after the packages that a model needs when it is placed."""

    digest = ""

    def __init__(
        self, content: _ArchiveContent | _FolderContent, manifest: Manifest, *, install: bool
    ) -> None:
        self._content = content
        self._manifest = manifest
        self._install = install

    def place(self, folder: Path) -> Path:
        needed = self._manifest.model.requirements_file
        if needed and self._install and isinstance(self._content, _FolderContent):
            placed = self._content.copy(folder)
        else:
            placed = self._content.place(folder)
        if needed:
            name = self._manifest.model.model_name
            if self._install:
                install_requirements(placed, needed, model=name)
            else:
                warn_of_missing(placed, needed, model=name)
        return placed

    def close(self) -> None:
        self._content.close()


def _is_model(path: Path) -> bool:
    if path.is_dir():
        return (path / MANIFEST_NAME).is_file()
    return path.name.endswith(SUFFIXES) and path.is_file()


def _describe(path: Path) -> Description:
    content = _FolderContent(path) if path.is_dir() else _ArchiveContent(path)
    try:
        return content.describe()
    finally:
        content.close()


def _identified(manifest: Manifest, path: Path) -> Manifest:
    """With a name and a version, which TorchServe takes from the file and from nowhere."""
    stem = path.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    name, version = manifest.model.model_name or stem, manifest.model.model_version or "1.0"
    if not is_model_name(name) or not is_model_name(version):
        raise MalformedInput("no model can have this name or version: letters, digits, . _ and - are allowed")
    model = msgspec.structs.replace(manifest.model, model_name=name, model_version=version)
    return msgspec.structs.replace(manifest, model=model)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it was."""
    try:
        yield
    except MalformedInput as error:
        raise MalformedInput(f"{path.name}: {error.message}") from error
