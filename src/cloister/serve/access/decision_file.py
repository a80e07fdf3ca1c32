"""The file under the log of decisions: whole batches, mended after a crash, turned when it is long.

Its form is that of the broker's export (``cloister.kbs.audit_file``). A file that has grown over its limit
is given the number of its last entry as a suffix (``decisions.jsonl.000000004711``); the next one begins with
that entry's hash and a checkpoint over it, so that all of them are one chain, and a missing one is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.errors import ConfigError
from cloister.kbs.audit_file import FORMAT, read_open_log, verify_export
from cloister.kbs.chain import GENESIS, AuditBroken, AuditEvent, Head, entry_after, hash_of
from cloister.kbs.checkpoints import Checkpoint

_PART = re.compile(r"\.\d{12}")
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class DecisionSummary:
    """What a verified log holds."""

    entries: int
    permitted: int
    """Decisions, not lines: one line may stand for many."""
    refused: int
    files: int
    begins_after: int
    """The entry before the first one; 0 for a log that is whole."""
    head: str
    """Hash of the last entry; written down elsewhere, it shows that an older copy was put back."""
    checkpoints: int
    torn_bytes: int
    """Of a last line that was cut short, as when a server is killed; its next start takes them away."""


class DecisionFile:
    """Appends batches of events; to be used from one thread at a time.

    Args:
        max_bytes: how long one file may get; 0 for any length.
    """

    def __init__(
        self, path: Path, key: ed25519.Ed25519PrivateKey, *, now: datetime, max_bytes: int = 0
    ) -> None:
        """Open it; what is in it is checked first, and a torn last line is taken away.

        Raises:
            AuditBroken, BadSignature: it is not what its key signed.
            ConfigError: it cannot be used.
        """
        self._path, self._key, self._max_bytes = path, key, max_bytes
        self._head = Head(0, GENESIS)
        self._size = 0
        try:
            self._descriptor = os.open(path, _FLAGS, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        try:
            torn = self._resume(now)
            if torn:
                reason = f"{torn} bytes of a line that was cut short were taken away"
                self.append([AuditEvent(kind="repaired", time=now, reason=reason)], now)
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, events: Iterable[AuditEvent], now: datetime) -> None:
        """Write a batch and a checkpoint over it, durably, or nothing of it.

        Raises:
            ConfigError: it cannot be written, for example because the disk is full.
        """
        head, lines = self._head, [] if self._size else [self._beginning(now)]
        for event in events:
            entry = entry_after(head, event)
            head = Head(entry.sequence, hash_of(entry))
            document = asdict(entry)
            del document["hash"]
            lines.append(_line({"entry": document, "hash": head.hash}))
        lines.append(self._checkpoint(head, now))
        self._write("".join(lines).encode())
        self._head = head
        if self._max_bytes and self._size >= self._max_bytes:
            self._turn(now)

    def close(self) -> None:
        """End."""
        os.close(self._descriptor)

    def _resume(self, now: datetime) -> int:
        """Find out where the chain ends; how many bytes of a torn line were taken away."""
        whole, torn = _whole_lines(self._path)
        self._size = len(whole)
        if torn:
            os.ftruncate(self._descriptor, self._size)
        parts = rotated_parts(self._path)
        if whole:
            self._head = _end_of(self._path, whole, self._key)
        else:
            if parts:
                self._head = _end_of(parts[-1], _read(parts[-1]), self._key)
            self._write(self._beginning(now).encode())
        return torn

    def _beginning(self, now: datetime) -> str:
        """The first lines of a file: where the one before it ended, and that this is signed."""
        begin = _line({"format": FORMAT, "after": self._head.sequence, "hash": self._head.hash})
        if self._head.sequence:
            begin += self._checkpoint(self._head, now)
        return begin

    def _turn(self, now: datetime) -> None:
        part = self._path.with_name(f"{self._path.name}.{self._head.sequence:012d}")
        try:
            self._path.rename(part)
            descriptor = os.open(self._path, _FLAGS | os.O_EXCL, 0o600)
        except OSError:
            with contextlib.suppress(OSError):
                part.rename(self._path)
            return  # it goes on in the file that is too long, and tries again after the next batch
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, 0
        with contextlib.suppress(ConfigError):  # the next batch brings it along
            self._write(self._beginning(now).encode())

    def _write(self, raw: bytes) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)  # takes away what a write left that failed
            left = memoryview(raw)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise ConfigError(f"cannot write {self._path}: {error.strerror}") from error
        self._size += len(raw)

    def _checkpoint(self, head: Head, now: datetime) -> str:
        return _line({"checkpoint": Checkpoint.sign(head.sequence, head.hash, now, self._key).to_mapping()})


def verify_decisions(
    path: Path,
    key: ed25519.Ed25519PublicKey,
    *,
    checkpoints: Sequence[Checkpoint] = (),
    running: bool = False,
) -> DecisionSummary:
    """Establish that a log, with the files that were turned away from it, is an unbroken chain.

    Args:
        checkpoints: of the same log, kept from earlier: it must not contradict them, nor end before them.
        running: accept a last batch that is not whole: the server writes it now, or was killed.
    Raises:
        AuditBroken: edited, removed, moved, added or cut short.
        BadSignature: a checkpoint was not signed with this key.
        MalformedInput: not such a log.
        ConfigError: unreadable.
    """
    files = [*rotated_parts(path), path]
    whole, torn = _whole_lines(path)
    if torn and not running:
        raise AuditBroken(
            f"{path}: the last line was cut short",
            hint="--running accepts it where the server is at work or was killed",
        )
    reading = _Reading(files, whole)
    summary = verify_export(reading.lines(), key, checkpoints=checkpoints, open_end=running)
    return DecisionSummary(
        entries=summary.entries,
        permitted=reading.count["permitted"],
        refused=reading.count["refused"],
        files=len(files),
        begins_after=reading.begins_after,
        head=summary.head,
        checkpoints=summary.checkpoints,
        torn_bytes=torn,
    )


def rotated_parts(path: Path) -> list[Path]:
    """The files that were turned away from a log, in their order."""
    try:
        names = [item.name for item in path.parent.iterdir()]
    except OSError as error:
        raise ConfigError(f"cannot read {path.parent}: {error.strerror}") from error
    mine = [n for n in names if n.startswith(path.name) and _PART.fullmatch(n[len(path.name) :])]
    return [path.with_name(name) for name in sorted(mine)]


class _Reading:
    """The lines of several files as of one, and what they say on the way."""

    def __init__(self, files: Sequence[Path], last: bytes) -> None:
        self._files, self._last = files, last
        self.count = {"permitted": 0, "refused": 0}
        self.begins_after = 0

    def lines(self) -> Iterator[str]:
        """Every line; the first of each further file is held against the end of the one before it."""
        end: tuple[Any, Any] | None = None
        for file in self._files:
            raw = self._last if file is self._files[-1] else _read(file)
            for number, line in enumerate(raw.decode("utf-8", "replace").split("\n")):
                if not line:
                    continue
                document = _object(line)
                if number == 0:
                    begin = document.get("after"), document.get("hash")
                    if end is None:
                        self.begins_after = begin[0] if isinstance(begin[0], int) else 0
                    elif begin != end:
                        raise AuditBroken(f"{file.name} does not follow the file before it")
                    else:
                        continue
                    end = begin
                elif "entry" in document:
                    entry = document["entry"] if isinstance(document["entry"], dict) else {}
                    end = entry.get("sequence"), document.get("hash")
                    self._note(entry)
                yield line

    def _note(self, entry: dict[str, Any]) -> None:
        claims = entry.get("claims")
        count = claims.get("count", 1) if isinstance(claims, dict) else 1
        if entry.get("kind") in self.count and type(count) is int:
            self.count[entry["kind"]] += count


def _end_of(path: Path, raw: bytes, key: ed25519.Ed25519PrivateKey) -> Head:
    """Where an existing file ends; a last batch without its checkpoint was cut by a crash, and is kept."""
    try:
        return read_open_log(raw.decode("utf-8", "replace").split("\n"), key.public_key())
    except AuditBroken as error:
        raise AuditBroken(f"{path}: {error.message}", hint="move the file away, and look into it") from error


def _whole_lines(path: Path) -> tuple[bytes, int]:
    """The lines of a file that end, and how long what follows them is."""
    raw = _read(path)
    end = raw.rfind(b"\n") + 1
    return raw[:end], len(raw) - end


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}  # whoever verifies the line says what is wrong with it
    return found if isinstance(found, dict) else {}


def _line(document: object) -> str:
    return json.dumps(document, separators=(",", ":")) + "\n"
