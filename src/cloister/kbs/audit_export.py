"""Write the audit log from the broker's database into a file (``cloister.kbs.audit_file``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from cloister.errors import ConfigError
from cloister.kbs.audit import read_head
from cloister.kbs.audit_file import FORMAT
from cloister.kbs.chain import GENESIS, AuditBroken, Chain, Head, parse_entry
from cloister.kbs.checkpoints import Checkpoint
from cloister.kbs.database import Database, database_url, open_existing
from cloister.kbs.owner_files import load_or_make_ed25519
from cloister.kbs.records import AuditCheckpointRow, AuditRow
from cloister.settings import KeysSettings

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
        with database.snapshot() as connection:
            lines = export_audit(connection, key, now, after=after)
            begin = next(lines)  # what cannot be exported leaves no file behind
            with target.open("x", encoding="utf-8") as file:
                file.write(begin)
                for line in lines:
                    file.write(line)
                    entries += line.startswith('{"entry"')
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from error
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot read the audit log: {type(error).__name__}") from error
    finally:
        database.close()
    return entries


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


_CHECKPOINT = AuditCheckpointRow
_CHECKPOINTS = select(_CHECKPOINT.sequence, _CHECKPOINT.time, _CHECKPOINT.hash, _CHECKPOINT.signature)
_ENTRIES = select(AuditRow.sequence, AuditRow.body, AuditRow.hash).order_by(AuditRow.sequence)
