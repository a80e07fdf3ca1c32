"""Where models come from in open mode: a folder of archives. And what both modes know of a model to load."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cloister.errors import ConfigError, MalformedInput
from cloister.serve.archive import read_manifest

# TorchServe accepts the same model names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
SUFFIXES = (".mar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One version of a model, ready to be given to a worker."""

    name: str
    version: str
    url: str
    """File name, as ``GET /models`` shows it."""
    digest: str
    """Container digest in hexadecimal; empty for a plain archive."""
    signer: str
    archive_fd: int
    """Open file with the archive; whoever holds this source closes it."""
    sequence: int = 0
    """Which of two versions is newer, before their numbers are asked; sealed models have one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One entry of the setting ``models``."""

    name: str
    version: str | None


Found = TypeVar("Found")


def parse_wanted(entries: Iterable[str]) -> list[Wanted]:
    """Entries ``name`` or ``name=version``.

    Raises:
        ConfigError: a name that no model can have, or the same entry twice.
    """
    wanted = []
    for entry in entries:
        name, equals, version = entry.partition("=")
        if not is_model_name(name) or (equals and not is_model_name(version)):
            raise ConfigError(f"serve.models: {entry!r} is not a name or name=version")
        wanted.append(Wanted(name, version or None))
    if len(set(wanted)) != len(wanted):
        raise ConfigError("serve.models: the same model is named twice")
    return wanted


def is_model_name(name: str) -> bool:
    """Whether a model, or a version, can be called so."""
    return bool(_NAME.fullmatch(name))


def open_archives(folder: Path, wanted: Sequence[Wanted]) -> list[ModelSource]:
    """Sources of the wanted archives in a folder; of every model's newest version if none is named.

    Raises:
        ConfigError: no such folder, or a wanted model that is not in it.
        MalformedInput: an archive that cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"serve.model_store: {folder} is not a folder")
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(SUFFIXES) and path.is_file():
            identity = _identify(path)
            if identity in found:
                raise ConfigError(f"{found[identity].name} and {path.name} are both {' '.join(identity)}")
            found[identity] = path
    picked = pick(found, wanted, where=str(folder))
    return [_open_source(*identity, found[identity]) for identity in picked]


def pick(
    available: Iterable[tuple[str, str]], wanted: Sequence[Wanted], *, where: str
) -> list[tuple[str, str]]:
    """The (name, version) pairs to load.

    Raises:
        ConfigError: something wanted is not available.
    """
    versions: dict[str, list[str]] = {}
    for name, known_version in available:
        versions.setdefault(name, []).append(known_version)
    for name in versions:
        versions[name].sort(key=version_order)
    picked = []
    for want in wanted or [Wanted(name, None) for name in versions]:
        known = versions.get(want.name, [])
        newest = known[-1] if known else None
        version = want.version or newest
        if version is None or version not in known:
            raise ConfigError(
                f"model {want.name} {want.version or ''}".rstrip() + f" is not in {where}",
                hint=f"there: {', '.join(sorted(versions)) or 'no model at all'}",
            )
        picked.append((want.name, version))
    return list(dict.fromkeys(picked))


def version_order(version: str) -> list[tuple[int, int, str]]:
    """Sort key by which 1.10 comes after 1.9, and a number after a word (1.0-rc before 1.0.1)."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _identify(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        try:
            model = read_manifest(file).model
        except MalformedInput as error:
            raise MalformedInput(f"{path.name}: {error.message}") from error
    stem = path.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    name, version = model.model_name or stem, model.model_version or "1.0"
    if not is_model_name(name) or not is_model_name(version):
        raise MalformedInput(f"{path.name}: its manifest has a name or version that no model can have")
    return name, version


def _open_source(name: str, version: str, path: Path) -> ModelSource:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return ModelSource(name, version, path.name, digest="", signer="", archive_fd=descriptor)
