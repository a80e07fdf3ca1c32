"""What both modes know of a model to load: its names, what it says of itself, and where its files go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cloister.errors import ConfigError
from cloister.serve.manifest import Manifest

# The names that torch-model-archiver accepts.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Content(Protocol):
    """A model's files, before they are where workers can read them."""

    @property
    def digest(self) -> str:
        """Of the sealed container; empty for a plain archive. Blocks until the model is placed."""

    def place(self, folder: Path) -> Path: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One version of a model, known but not yet unpacked. Whoever holds it closes it."""

    name: str
    version: str
    url: str
    """File name, as ``GET /models`` shows it."""
    manifest: Manifest
    """With what the registration said otherwise (name, handler) already in it."""
    content: Content
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The archive's own YAML settings."""
    signer: str = ""
    sequence: int = 0
    """Which of two versions is newer, before their numbers are asked; sealed models have one."""

    @property
    def digest(self) -> str:
        """Container digest in hexadecimal; empty for a plain archive. Blocks until the model is placed."""
        return self.content.digest

    @property
    def handler(self) -> str:
        """What ``load_handler`` is to load."""
        return self.manifest.model.handler

    def place(self, folder: Path) -> Path:
        """Put the model's files where all its workers can read them, once; returns that folder.

        Blocks; runs in a thread.

        Args:
            folder: new, empty, owner-only. Another one is returned where the files can stay where they are.
        Raises:
            MalformedInput, BadCiphertext: the files are not what they should be.
            ConfigError: no room, or packages that the model needs are not there.
            ModelFailed: its packages could not be installed.
        """
        return self.content.place(folder)

    def close(self) -> None:
        """Let go of the archive. May be called any number of times."""
        self.content.close()


class ModelStore(Protocol):
    """Where a server's models come from: plain archives, or sealed containers."""

    def resolve(
        self, url: str, *, model_name: str = "", handler: str = "", runtime: str = ""
    ) -> ModelSource: ...

    def wanted(self, entries: Sequence[Wanted]) -> list[ModelSource]: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """One entry of the setting ``models``."""

    name: str
    version: str | None


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
