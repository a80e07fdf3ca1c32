"""The audit log as a file that can be checked without the database: JSON lines, one object each.

============== ============================================================================================
first member   the rest of the line
============== ============================================================================================
``format``     first line: ``cloister-audit/1``; ``after`` and ``hash``: the entry that the file begins after
``entry``      an entry of the chain (``cloister.kbs.chain``), and its ``hash``
``checkpoint`` a checkpoint (``cloister.kbs.checkpoints``); stands after the entry that it speaks of
============== ============================================================================================

The last line is a checkpoint of the last entry, or the file was cut short. The broker's public audit key is
not in the file: an auditor has it from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from cloister.errors import ConfigError, MalformedInput
from cloister.kbs.audit import read_head
from cloister.kbs.chain import GENESIS, AuditBroken, AuditSummary, Chain, Head, parse_entry
from cloister.kbs.checkpoints import Checkpoint
from cloister.kbs.database import Database, database_url, open_existing
from cloister.kbs.owner_files import load_or_make_ed25519
from cloister.kbs.records import AuditCheckpointRow, AuditRow
from cloister.settings import KeysSettings

FORMAT = "cloister-audit/1"
MAX_LINE_CHARACTERS = 1 << 20
_BATCH = 1000


def export_audit(
    connection: Connection, key: ed25519.Ed25519PrivateKey, now: datetime, *, after: int = 0
) -> Iterator[str]:
    """The lines of an export, of one moment of the log.

    Args:
        connection: in a transaction that sees one state of the database.
        key: the broker's audit key; signs the last checkpoint.
        after: begin after this entry, which an earlier export ended with.
    Raises:
        AuditBroken: the log is broken, and nothing of it is worth exporting from there on.
        ConfigError: there is no entry ``after``.
    """
    end = read_head(connection, key.public_key())
    begin = _begin(connection, after)
    yield _line({"format": FORMAT, "after": begin.sequence, "hash": begin.hash})
    chain = Chain(begin)
    checkpoints = {
        row.sequence: row for row in connection.execute(_CHECKPOINTS.where(_CHECKPOINT.sequence > after))
    }
    rows = connection.execution_options(yield_per=_BATCH).execute(
        _ENTRIES.where(AuditRow.sequence > after, AuditRow.sequence <= end.sequence)
    )
    for row in rows:
        entry = asdict(chain.add(row.sequence, row.body, row.hash))
        del entry["hash"]
        yield _line({"entry": entry, "hash": row.hash})
        if row.sequence in checkpoints and row.sequence != end.sequence:
            yield _line({"checkpoint": dict(checkpoints[row.sequence]._mapping)})
    if (chain.sequence, chain.hash) != (end.sequence, end.hash):
        raise AuditBroken(f"audit log ends at entry {chain.sequence}, its signed head at {end.sequence}")
    last = Checkpoint.sign(end.sequence, end.hash, now, key)
    yield _line({"checkpoint": last.to_mapping()})


def verify_export(
    lines: Iterable[str],
    key: ed25519.Ed25519PublicKey,
    *,
    checkpoints: Iterable[Checkpoint] = (),
    open_end: bool = False,
) -> AuditSummary:
    """Establish that a file is an unbroken part of this broker's log, up to its last line.

    Args:
        checkpoints: of the same log, from earlier exports: the file must not contradict them.
        open_end: it is still being written: its last lines may have no checkpoint yet.
    Raises:
        MalformedInput: not such a file.
        AuditBroken: an entry was edited, removed, moved or added, or the file or the log was cut short.
        BadSignature: a checkpoint was not signed with this broker's audit key.
    """
    chain, ended = _read(lines, key, checkpoints)
    if not ended and not open_end:
        raise AuditBroken("audit export: it was cut short, its last line is no checkpoint")
    return chain.summary(signed=True)


def read_open_log(lines: Iterable[str], key: ed25519.Ed25519PublicKey) -> Head:
    """Where a file of this form ends that is still being written: its last lines may have no checkpoint yet.

    Raises:
        MalformedInput, AuditBroken, BadSignature: as ``verify_export``.
    """
    chain, _ = _read(lines, key, ())
    return Head(chain.sequence, chain.hash)


def _read(
    lines: Iterable[str], key: ed25519.Ed25519PublicKey, checkpoints: Iterable[Checkpoint]
) -> tuple[Chain, bool]:
    """The chain of a file, and whether its last line is a checkpoint."""
    numbered = enumerate((line for line in lines if line.strip()), 1)
    first = _object(*next(numbered, (1, "")))
    if first.get("format") != FORMAT:
        raise MalformedInput(f"audit export: the first line does not say {FORMAT}")
    chain = Chain(Head(_number(first, "after"), _text(first, "hash")))
    if chain.sequence == 0 and chain.hash != GENESIS:
        raise AuditBroken("audit export: it begins with another hash than a log does")
    chain.expect(checkpoints, key)
    ended = False
    for number, line in numbered:
        document = _object(number, line)
        if "checkpoint" in document:
            checkpoint = Checkpoint.from_mapping(document["checkpoint"])
            if checkpoint.sequence != chain.sequence:
                raise AuditBroken(f"audit export: line {number} is a checkpoint of another entry")
            chain.expect([checkpoint], key)
            ended = True
        else:
            chain.add(chain.sequence + 1, _canonical(document), _text(document, "hash"))
            ended = False
    return chain, ended


def export_audit_log(settings: KeysSettings, target: Path, now: datetime, *, after: int = 0) -> int:
    """``export_audit`` of a broker's database into a file; returns how many entries it has.

    Raises:
        ConfigError: there is no broker, or the file cannot be written.
    """
    open_existing(settings).dispose()
    database = Database(database_url(settings))
    key = load_or_make_ed25519(Path(settings.folder) / "audit.key")
    entries = 0
    try:
        with database.snapshot() as connection, target.open("x", encoding="utf-8") as file:
            for line in export_audit(connection, key, now, after=after):
                file.write(line)
                entries += line.startswith('{"entry"')
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from error
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot read the audit log: {type(error).__name__}") from error
    finally:
        database.close()
    return entries


def verify_export_file(
    path: Path, key: ed25519.Ed25519PublicKey, *, checkpoints: Iterable[Checkpoint] = ()
) -> AuditSummary:
    """``verify_export`` of a file.

    Raises:
        ConfigError: unreadable; otherwise as ``verify_export``.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return verify_export(file, key, checkpoints=checkpoints)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}") from error


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """Checkpoints from a file: an export, or one checkpoint as JSON per line.

    Raises:
        ConfigError: unreadable.
        MalformedInput: not such a file, or none in it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            documents = [_object(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read checkpoints from {path}") from error
    found = [
        Checkpoint.from_mapping(document.get("checkpoint", document))
        for document in documents
        if "entry" not in document and "format" not in document
    ]
    if not found:
        raise MalformedInput(f"{path} holds no checkpoint")
    return found


def _begin(connection: Connection, after: int) -> Head:
    if after == 0:
        return Head(0, GENESIS)
    row = connection.execute(_ENTRIES.where(AuditRow.sequence == after)).first()
    if row is None:
        raise ConfigError(f"the audit log has no entry {after}")
    parse_entry(row.sequence, row.body, row.hash)
    return Head(row.sequence, row.hash)


def _line(document: dict[str, Any]) -> str:
    return msgspec.json.encode(document).decode("utf-8") + "\n"


def _object(number: int, line: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_CHARACTERS:
        raise MalformedInput(f"audit export: line {number} is too long")
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"audit export: line {number} is not JSON") from error
    if not isinstance(document, dict):
        raise MalformedInput(f"audit export: line {number} is not a JSON object")
    return document


def _canonical(document: dict[str, Any]) -> str:
    if document.keys() != {"entry", "hash"} or not isinstance(document["entry"], dict):
        raise MalformedInput("audit export: a line is neither an entry nor a checkpoint")
    try:
        return rfc8785.dumps(document["entry"]).decode("utf-8")
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise MalformedInput("audit export: an entry has no canonical form") from error


def _number(document: dict[str, Any], name: str) -> int:
    value = document.get(name)
    if type(value) is not int or value < 0:
        raise MalformedInput(f"audit export: {name} is not a number")
    return value


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise MalformedInput(f"audit export: {name} is not text")
    return value


_CHECKPOINT = AuditCheckpointRow
_CHECKPOINTS = select(_CHECKPOINT.sequence, _CHECKPOINT.time, _CHECKPOINT.hash, _CHECKPOINT.signature)
_ENTRIES = select(AuditRow.sequence, AuditRow.body, AuditRow.hash).order_by(AuditRow.sequence)
