"""A folder of sealed models that refuses to go back.

Layout: ``<folder>/<name>/<version>.sealed``, and ``<folder>/sequences.json`` with the highest sequence that
was ever added per name. The record keeps an honest folder from being rolled back by mistake or by a stale
copy. An attacker who can write the whole folder can put back an old record as well; what holds against that
is the key broker, which need not release the key of an old model.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloister.errors import CloisterError, ConfigError, MalformedInput, ModelNotFound, RollbackRefused
from cloister.seal.container import SealedHeader, read_header
from cloister.seal.reader import container_digest
from cloister.seal.signing import TrustedSigners
from cloister.seal.writer import BLOCK_BYTES, replacing

SUFFIX = ".sealed"
_RECORD = "sequences.json"


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One container in a store, its header verified when the entry was made."""

    path: Path
    header: SealedHeader


class ModelStore:
    """Named and versioned containers; all that it gives out is signed by a trusted signer.

    Args:
        folder: made when the first container is added.
        trusted: whose containers to accept.
    """

    def __init__(self, folder: Path, trusted: TrustedSigners) -> None:
        self._folder = folder
        self._trusted = trusted

    def add(self, container: Path) -> StoreEntry:
        """Verify a container's header and copy it in. Adding the same bytes again changes nothing.

        Raises:
            MalformedInput, UntrustedRoot, BadSignature, BadCiphertext: the container does not verify.
            RollbackRefused: its sequence is not above the highest one recorded for its name.
        """
        header = self._verify(container)
        target = self._path(header.name, header.version)
        with self._locked():
            highest = self._sequences().get(header.name, -1)
            if header.sequence == highest and target.exists():
                if container_digest(container) == container_digest(target):
                    return StoreEntry(target, header)
                raise RollbackRefused(
                    f"{header.name} {header.version} with sequence {highest} is there with other bytes",
                    hint="seal it with a higher sequence",
                )
            if header.sequence <= highest:
                raise RollbackRefused(
                    f"{header.name}: sequence {header.sequence} is not above {highest}, the highest seen",
                    hint="seal it with a higher sequence",
                )
            with _io_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with container.open("rb") as source, replacing(target, mode=0o644) as copy:
                    shutil.copyfileobj(source, copy, BLOCK_BYTES)
                    # The copy counts, not the original, which could have been changed in between.
                    if read_header(copy, self._trusted).header != header:
                        raise MalformedInput(f"{container} changed while it was added", hint="add it again")
            self._record(header.name, header.sequence)
        return StoreEntry(target, header)

    def list(self) -> tuple[StoreEntry, ...]:
        """Every container that verifies, by name, then by sequence; others are left out."""
        entries = []
        for path in sorted(self._folder.glob(f"*/*{SUFFIX}")):
            with contextlib.suppress(CloisterError):
                entries.append(self._entry(path))
        return tuple(sorted(entries, key=lambda entry: (entry.header.name, entry.header.sequence)))

    def get(self, name: str, version: str) -> StoreEntry:
        """One version of a model, be it the newest or not.

        Raises:
            ModelNotFound: there is none.
            MalformedInput, UntrustedRoot, BadSignature, BadCiphertext: it does not verify.
        """
        for path in self._containers(name):
            if path.name == version + SUFFIX:
                return self._entry(path)
        raise ModelNotFound(f"no version {version[:128]!r} of {name[:128]!r} in {self._folder}")

    def newest(self, name: str) -> StoreEntry:
        """The version with the highest sequence.

        Raises:
            ModelNotFound: no version of it is there.
            RollbackRefused: a newer one was there once.
            MalformedInput, UntrustedRoot, BadSignature, BadCiphertext: a version does not verify.
        """
        paths = self._containers(name)
        if not paths:
            raise ModelNotFound(f"no model {name[:128]!r} in {self._folder}")
        entry = max((self._entry(path) for path in paths), key=lambda entry: entry.header.sequence)
        highest = self._sequences().get(name, -1)
        if entry.header.sequence < highest:
            raise RollbackRefused(
                f"{name}: sequence {highest} was here, the highest left is {entry.header.sequence}"
            )
        return entry

    def _containers(self, name: str) -> tuple[Path, ...]:
        """The files of one name. What a caller sends is compared with what is there, never made a path."""
        folders = (path for path in self._folder.glob("*/") if path.name == name)
        return tuple(path for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}")))

    def _path(self, name: str, version: str) -> Path:
        return self._folder / name / f"{version}{SUFFIX}"

    def _verify(self, path: Path) -> SealedHeader:
        with _io_errors(path), path.open("rb") as file:
            return read_header(file, self._trusted).header

    def _entry(self, path: Path) -> StoreEntry:
        header = self._verify(path)
        if path != self._path(header.name, header.version):
            raise MalformedInput(f"{path} holds {header.name} {header.version}")
        return StoreEntry(path, header)

    def _sequences(self) -> dict[str, int]:
        record = self._folder / _RECORD
        try:
            return msgspec.json.decode(record.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"cannot read {record}: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise MalformedInput(f"{record}: {error}") from error

    def _record(self, name: str, sequence: int) -> None:
        record = self._folder / _RECORD
        document = msgspec.json.encode({**self._sequences(), name: sequence}, order="sorted")
        with _io_errors(record), replacing(record, mode=0o644) as file:
            file.write(document)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One addition at a time, also between processes."""
        with _io_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _io_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"model store: {error.filename or path}: {error.strerror}") from error
