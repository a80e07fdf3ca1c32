"""Backup and restore of a broker: one archive, made while the broker runs.

The archive: ``cloister.kbs.backup_archive``. Without the KEK no resource in it can be read. It still is a
secret: whoever has it can issue tokens of this broker. Keep KEK and archive apart; ``cloister keys recovery``
splits the KEK for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlalchemy import MetaData, Table, create_engine, func, insert, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from cloister.errors import BadCiphertext, ConfigError, MalformedInput
from cloister.kbs.audit import AuditSummary, verify_audit
from cloister.kbs.backup_archive import (
    DATABASE,
    FORMAT,
    KEK,
    PUBLIC,
    SECRET,
    BackupSummary,
    digest_of,
    read_archive,
    summarize,
    write_archive,
)
from cloister.kbs.database import Database, database_url, open_engine, open_existing
from cloister.kbs.migrations import SCHEMA_VERSION, migrate, schema_version
from cloister.kbs.owner_files import make_folder, read_private, write_new
from cloister.kbs.records import Base, VersionRow
from cloister.settings import KeysSettings

NOT_COPIED = frozenset({"sessions", "schema_version"})
_BATCH = 500


def back_up(
    settings: KeysSettings, target: Path, now: datetime, *, include_kek: bool = False
) -> BackupSummary:
    """Write an archive of a broker, which may run meanwhile.

    Raises:
        ConfigError: no broker there, the target exists or cannot be written, or the KEK is no file.
        AuditBroken, BadSignature: the copy's audit log does not verify; no archive is written.
    """
    open_existing(settings).dispose()
    folder = Path(settings.folder)
    files = {name: read_private(folder / name) for name in SECRET if (folder / name).exists()}
    files |= {name: (folder / name).read_bytes() for name in sorted(PUBLIC) if (folder / name).exists()}
    if include_kek:
        files[KEK] = read_private(_kek_file(settings))
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".backup-") as scratch:
        copy = Path(scratch) / DATABASE
        _copy_out(settings, copy)
        summary, versions, keks = _inspect(copy, files.get("audit.pub", b""))
        manifest = {
            "format": FORMAT,
            "created": now.isoformat(timespec="seconds"),
            "schema": SCHEMA_VERSION,
            "entries": summary.entries,
            "head": summary.head,
            "versions": versions,
            "keks": keks,
            "sha256": {DATABASE: digest_of(copy)}
            | {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        write_archive(Path(scratch) / "archive", manifest, files, copy)
        try:
            os.link(Path(scratch) / "archive", target)  # fails where the name is taken
        except OSError as error:
            raise ConfigError(f"cannot write {target}: {error.strerror}") from error
    return summarize(manifest)


def restore(settings: KeysSettings, archive: Path) -> BackupSummary:
    """Make a broker from an archive, in a state folder that has none, and in an empty database.

    Everything is checked before anything is written. What the archive was made after is gone: an audit
    checkpoint that was kept elsewhere will say so.

    Raises:
        ConfigError: there is a broker already, or something cannot be written.
        MalformedInput: not an archive of this kind, or of a later release.
        BadCiphertext: a member was changed.
        AuditBroken, BadSignature: the audit log in it does not verify.
    """
    folder = Path(settings.folder)
    taken = [name for name in (DATABASE, KEK, *SECRET, *PUBLIC) if (folder / name).exists()]
    if [name for name in taken if name != KEK]:
        raise ConfigError(f"{folder} already holds a broker: {', '.join(taken)}")
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".restore-") as scratch:
        copy = Path(scratch) / DATABASE
        manifest, files = read_archive(archive, copy)
        if KEK in files and KEK in taken:
            raise ConfigError(f"{folder / KEK} is there already, and the archive brings one too")
        _inspect(copy, files.get("audit.pub", b""))
        if settings.database:
            _copy_in(copy, settings.database)
        else:
            copy.chmod(0o600)
            copy.rename(folder / DATABASE)
        for name, data in files.items():
            write_new(folder / name, data, mode=0o644 if name in PUBLIC else 0o600)
    return summarize(manifest)


def _copy_out(settings: KeysSettings, copy: Path) -> None:
    os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    source = Database(database_url(settings))
    try:
        if source.local:
            with contextlib.closing(sqlite3.connect(copy)) as target:
                _backup_sqlite(Path(settings.folder) / DATABASE, settings, target)
        else:
            target_database = Database(f"sqlite:///{copy}")
            try:
                with source.snapshot() as here, target_database.write_connection() as there:
                    _copy_tables(here, there)
            finally:
                target_database.close()
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise ConfigError(f"cannot copy the database: {type(error).__name__}") from error
    finally:
        source.close()
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute("DELETE FROM sessions")
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.commit()


def _backup_sqlite(default: Path, settings: KeysSettings, target: sqlite3.Connection) -> None:
    engine = open_engine(database_url(settings))
    try:
        with contextlib.closing(sqlite3.connect(engine.url.database or default)) as source:
            source.backup(target)
    finally:
        engine.dispose()


def _copy_in(copy: Path, url: str) -> None:
    database = Database(url)
    source = create_engine(f"sqlite:///{copy}")
    try:
        with source.connect() as here, database.write_connection() as there:
            for table in Base.metadata.sorted_tables:
                if table.name not in NOT_COPIED and there.execute(select(table).limit(1)).first():
                    raise ConfigError(f"the database already holds a broker: {table.name} is not empty")
            migrate(here)
            _copy_tables(here, there)
            here.rollback()
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot fill the database: {type(error).__name__}") from error
    finally:
        source.dispose()
        database.close()


def _copy_tables(source: Connection, target: Connection) -> None:
    # As the source has them: a table that this release has no class for is not left behind unnoticed.
    described = MetaData()
    described.reflect(source)
    for table in Base.metadata.sorted_tables:
        if table.name in NOT_COPIED:
            continue
        for rows in _batches(source, described.tables[table.name]):
            target.execute(insert(table), rows)
        if target.dialect.name == "postgresql" and "id" in table.c and table.name != "audit_head":
            _continue_sequence(target, table)


def _continue_sequence(connection: Connection, table: Table) -> None:
    highest = connection.execute(select(func.max(table.c.id))).scalar()
    if highest is not None:
        query = "SELECT setval(pg_get_serial_sequence(:name, 'id'), :highest)"
        connection.execute(text(query), {"name": table.name, "highest": highest})


def _batches(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    result = connection.execute(select(table)).mappings()
    while rows := result.fetchmany(_BATCH):
        yield [dict(row) for row in rows]


def _inspect(copy: Path, public: bytes) -> tuple[AuditSummary, int, list[str]]:
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        try:
            (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.Error as error:
            raise BadCiphertext("the database in the archive is damaged") from error
    if verdict != "ok":
        raise BadCiphertext("the database in the archive is damaged")
    key = None
    if public:
        try:
            key = load_pem_public_key(public)
        except ValueError as error:
            raise MalformedInput("audit.pub in the archive is not a public key") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise MalformedInput("the archive holds no audit.pub to check its audit log with")
    engine = create_engine(f"sqlite:///{copy}")
    try:
        with engine.connect() as connection:
            if schema_version(connection) > SCHEMA_VERSION:
                raise MalformedInput("the archive is of a later release")
            if schema_version(connection) < 2:
                migrate(connection)
                connection.commit()
            keks = sorted(connection.execute(select(VersionRow.kek_id).distinct()).scalars())
            versions = connection.execute(select(func.count()).select_from(VersionRow)).scalar_one()
        return verify_audit(engine, key=key), versions, keks
    except SQLAlchemyError as error:
        raise BadCiphertext("the database in the archive is damaged") from error
    finally:
        engine.dispose()


def _kek_file(settings: KeysSettings) -> Path:
    uri = settings.kek or f"file:{Path(settings.folder) / KEK}"
    if not uri.startswith("file:"):
        raise ConfigError("the KEK is not in a file and stays where it is", hint="back up without it")
    return Path(uri.removeprefix("file:").removeprefix("//"))
