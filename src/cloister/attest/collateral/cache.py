"""A folder that remembers what a source found, up to a maximum age.

One file per question, named by the SHA-256 of platform and source. Its first line is the SHA-256 of the rest,
which is an entry (``cloister.attest.collateral.entry``). The checksum finds damage; it is no protection, and
needs to be none: endorsements are verified after they were found, wherever they were.

A file that cannot be read, is damaged, is of another platform, too old or from the future counts as absent.
A folder that cannot be written is no cache, which costs time and nothing else. What is too old is not used
when the source fails either: the maximum age is what bounds how long a revocation can stay unseen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from cloister.attest.collateral.entry import MAX_ENTRY_BYTES, Entry, canonical, parse_entry, parse_json
from cloister.attest.collateral.parts import unusable_parts
from cloister.attest.collateral.platform import Wanted
from cloister.attest.collateral.source import Source
from cloister.errors import ConfigError, MalformedInput

MAX_FILES = 4096
_DIGEST_CHARACTERS = 64


class CacheSource:
    """Another source, asked only for what the folder does not have.

    Args:
        source: what is asked.
        folder: made on first use, for its owner only.
        max_age_s: how long an entry is used after it was obtained.
    Raises:
        ConfigError: an age that is not positive.
    """

    def __init__(self, source: Source, folder: Path, *, max_age_s: float) -> None:
        if not max_age_s > 0:
            raise ConfigError(f"the cache's maximum age must be positive, found {max_age_s}")
        self._source = source
        self._folder = folder
        self._max_age = timedelta(seconds=max_age_s)

    @property
    def name(self) -> str:
        return self._source.name

    def find(self, wanted: Wanted, now: datetime) -> Entry | None:
        """What the folder has and still holds at ``now``; else what the source finds, which is remembered."""
        for platform in wanted.platforms:
            entry = self._read(platform.key, now)
            if entry is not None:
                return entry
        found = self._source.find(wanted, now)
        if found is not None:
            with contextlib.suppress(OSError):
                self._write(found)
        return found

    def _read(self, key: Mapping[str, str], now: datetime) -> Entry | None:
        try:
            entry = read_cached(self._path(key))
        except (OSError, MalformedInput):
            return None
        if entry.key != key or entry.source != self._source.name:
            return None
        age = now - entry.obtained
        # What was obtained after ``now`` has no age: of a clock that went back nothing follows.
        fresh = timedelta(0) <= age <= self._max_age
        return entry if fresh and not unusable_parts(entry.endorsements, now) else None

    def _write(self, entry: Entry) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        body = json.dumps(entry.to_mapping(), separators=(",", ":")).encode()
        temporary = self._folder / f".{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            temporary.replace(self._path(entry.key))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        files = list(self._folder.glob("*.json"))
        if len(files) > MAX_FILES:
            files.sort(key=lambda path: path.stat().st_mtime)
            for path in files[: len(files) - MAX_FILES]:
                path.unlink(missing_ok=True)

    def _path(self, key: Mapping[str, str]) -> Path:
        asked = canonical({**key, "source": self._source.name})
        return self._folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"


def read_cached(path: Path) -> Entry:
    """The entry in a file of the cache.

    Raises:
        OSError: it cannot be read.
        MalformedInput: it is damaged.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_ENTRY_BYTES + _DIGEST_CHARACTERS + 2)
    digest, _, body = raw.partition(b"\n")
    if digest.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        raise MalformedInput(f"cached collateral {path.name} is damaged")
    return parse_entry(parse_json(body, MAX_ENTRY_BYTES, f"cached collateral {path.name}"))


def list_cached(folder: Path) -> Iterator[Entry]:
    """Every readable entry of a cache's folder, oldest first."""
    entries: list[Entry] = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, MalformedInput):
            entries.append(read_cached(path))
    yield from sorted(entries, key=lambda entry: entry.obtained)


def default_cache(environ: Mapping[str, str]) -> Path:
    """``cloister/collateral`` below ``XDG_CACHE_HOME``, or below ``~/.cache``.

    Raises:
        ConfigError: neither that nor ``HOME`` is set to an absolute path.
    """
    named = environ.get("XDG_CACHE_HOME", "")
    home = environ.get("HOME", "")
    base = Path(named) if named.startswith("/") else Path(home) / ".cache"
    if not base.is_absolute():
        raise ConfigError("no folder for the cache of collateral", hint="set collateral.cache")
    return base / "cloister" / "collateral"
