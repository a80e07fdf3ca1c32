"""API keys: ``clk_`` and 256 random bits. The file holds their SHA-256 only; nobody can read a key back.

One JSON object a line: ``{"name", "sha256", "tenant", "groups", "created", "expires"}``; ``expires`` may be
null. A plain hash is enough because a key is random and long: there is nothing to guess.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloister.errors import ConfigError
from cloister.policy.requests import Caller

PREFIX = "clk_"
KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key's record."""

    name: str
    sha256: str
    tenant: str = ""
    groups: tuple[str, ...] = ()
    created: str = ""
    expires: str | None = None

    @property
    def until_s(self) -> float:
        """Seconds since 1970; infinite for a key without end."""
        return float("inf") if self.expires is None else datetime.fromisoformat(self.expires).timestamp()

    def caller(self) -> Caller:
        """Whom the key speaks for."""
        return Caller(kind="api-key", subject=self.name, tenant=self.tenant, groups=self.groups)


def make_api_key(
    path: Path,
    name: str,
    *,
    now: datetime,
    tenant: str = "",
    groups: tuple[str, ...] = (),
    expires: datetime | None = None,
) -> str:
    """Add a key to the file and return it: the only time that it is seen.

    Raises:
        ConfigError: a name that is taken or not one, or a file that cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:40]!r} is not a name for a key", hint="letters, digits, . _ @ -")
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    record = ApiKey(
        name=name,
        sha256=_digest(key.encode()),
        tenant=tenant,
        groups=groups,
        created=now.astimezone(UTC).isoformat(timespec="seconds"),
        expires=None if expires is None else expires.astimezone(UTC).isoformat(timespec="seconds"),
    )
    with _alone(path):
        records = read_api_keys(path) if path.exists() else {}
        if any(former.name == name for former in records.values()):
            raise ConfigError(
                f"there is a key named {name} already", hint="remove it first, or choose another name"
            )
        _write(path, [*records.values(), record])
    return key


def remove_api_key(path: Path, name: str) -> None:
    """Remove a key from the file.

    Raises:
        ConfigError: no such key, or a file that cannot be used.
    """
    with _alone(path):
        records = read_api_keys(path)
        left = [record for record in records.values() if record.name != name]
        if len(left) == len(records):
            raise ConfigError(f"there is no key named {name[:128]}")
        _write(path, left)


def read_api_keys(path: Path) -> dict[str, ApiKey]:
    """Every record by its hash.

    Raises:
        ConfigError: the file cannot be read, or a line is not a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys in {path}") from error
    records: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            record = _parse(line, f"{path}, line {number}")
            records[record.sha256] = record
    return records


def find_record(records: Mapping[str, ApiKey], key: bytes, now: datetime) -> ApiKey | None:
    """The record of a presented key; None if it is not a key that is valid now.

    Looked up by its hash: the time that takes says nothing of the keys in the file.
    """
    record = records.get(_digest(key))
    return record if record is not None and now.timestamp() < record.until_s else None


def _parse(line: str, origin: str) -> ApiKey:
    try:
        document = json.loads(line)
        record = ApiKey(**{**document, "groups": tuple(document.get("groups", ()))})
        texts = (record.name, record.sha256, record.tenant, record.created, *record.groups)
        if not all(isinstance(text, str) for text in texts) or not _HASH.fullmatch(record.sha256):
            raise ConfigError(f"{origin}: not a record of an API key")
        if record.expires is not None and datetime.fromisoformat(record.expires).tzinfo is None:
            raise ConfigError(f"{origin}: expires has no offset from UTC")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{origin}: not a record of an API key") from error
    return record


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One writer at a time: of two, the later one would write what the earlier one has not seen."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, records: list[ApiKey]) -> None:
    text = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    new = path.with_name(path.name + ".new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
