"""The schema of the broker's database, one numbered step after the other.

A step describes its tables as they were when it was written, so that a database of any age arrives at the
same schema. A new step is added at the end of ``MIGRATIONS``, never changed once it was released; the mapped
classes (``cloister.kbs.records``) describe where the last one ends, and a test compares the two. All steps
that a database lacks are taken in one transaction, while no other broker takes any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    text,
)
from sqlalchemy.engine import Connection

from cloister.errors import ConfigError

_LOCK = 0x636C6F6973746572
"""Name of PostgreSQL's advisory lock for migrations: ``cloister`` in ASCII."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from the version before it."""

    version: int
    about: str
    apply: Callable[[Connection], None]


def migrate(connection: Connection) -> int:
    """Bring the database to the newest schema within the caller's transaction; returns its version.

    Raises:
        ConfigError: the database is of a later release.
    """
    one_at_a_time(connection)
    found = schema_version(connection)
    newest = MIGRATIONS[-1].version
    if found > newest:
        raise ConfigError(f"database has schema version {found}, this broker needs {newest}")
    for migration in MIGRATIONS:
        if migration.version > found:
            migration.apply(connection)
    if found < newest:
        connection.execute(text("DELETE FROM schema_version"))
        connection.execute(
            text("INSERT INTO schema_version (id, version) VALUES (1, :version)"), {"version": newest}
        )
    return newest


def one_at_a_time(connection: Connection) -> None:
    """Wait until no other broker sets the database up; holds until the caller's transaction ends.

    SQLite has one writer at a time anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def schema_version(connection: Connection) -> int:
    """Which version the database has; 0 for an empty one."""
    if not inspect(connection).has_table("schema_version"):
        return 0
    found = connection.execute(text("SELECT version FROM schema_version WHERE id = 1")).scalar()
    return 0 if found is None else int(found)


def _first(connection: Connection) -> None:
    metadata = MetaData()
    Table(
        "schema_version",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("version", Integer, nullable=False),
    )
    Table(
        "resources",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("repository", String(128), nullable=False),
        Column("type", String(128), nullable=False),
        Column("tag", String(128), nullable=False),
        Column("last_version", Integer, nullable=False),
        UniqueConstraint("repository", "type", "tag"),
    )
    Table(
        "resource_versions",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("resource_id", ForeignKey("resources.id", ondelete="CASCADE"), nullable=False),
        Column("version", Integer, nullable=False),
        Column("kek_id", String(80), nullable=False),
        Column("wrapped_key", LargeBinary, nullable=False),
        Column("ciphertext", LargeBinary, nullable=False),
        Column("created", String(40), nullable=False),
        UniqueConstraint("resource_id", "version"),
    )
    Table(
        "audit_entries",
        metadata,
        Column("sequence", Integer, primary_key=True, autoincrement=False),
        Column("body", Text, nullable=False),
        Column("hash", String(64), nullable=False),
    )
    Table(
        "audit_head",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("sequence", Integer, nullable=False),
        Column("hash", String(64), nullable=False),
        Column("signature", String(128), nullable=False),
    )
    metadata.create_all(connection)


def _checkpoints_and_sessions(connection: Connection) -> None:
    long = BigInteger().with_variant(Integer, "sqlite")
    metadata = MetaData()
    Table(
        "audit_checkpoints",
        metadata,
        Column("sequence", long, primary_key=True, autoincrement=False),
        Column("time", String(40), nullable=False),
        Column("hash", String(64), nullable=False),
        Column("signature", String(128), nullable=False),
    )
    Table(
        "sessions",
        metadata,
        Column("id", String(64), primary_key=True),
        Column("expires", BigInteger, nullable=False, index=True),
        Column("state", LargeBinary, nullable=False),
    )
    metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        # Half a year of full load would use up 31 bits. SQLite's integers have 64 anyway.
        for table in ("audit_entries", "audit_head"):
            connection.execute(text(f"ALTER TABLE {table} ALTER COLUMN sequence TYPE BIGINT"))


def _standing_and_documents(connection: Connection) -> None:
    metadata = MetaData()
    Table(
        "resource_standing",
        metadata,
        Column("repository", String(128), primary_key=True),
        Column("type", String(128), primary_key=True),
        Column("tag", String(128), primary_key=True),
        Column("minimum_version", Integer, nullable=False),
        Column("revoked", Text, nullable=True),
    )
    Table(
        "revoked_versions",
        metadata,
        Column("repository", String(128), primary_key=True),
        Column("type", String(128), primary_key=True),
        Column("tag", String(128), primary_key=True),
        Column("version", Integer, primary_key=True, autoincrement=False),
        Column("reason", Text, nullable=False),
    )
    Table(
        "documents",
        metadata,
        Column("name", String(160), primary_key=True),
        Column("revision", Integer, nullable=False),
        Column("body", Text, nullable=False),
        Column("updated", String(40), nullable=False),
    )
    metadata.create_all(connection)


MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "resources, their versions, the audit log", _first),
    Migration(2, "audit checkpoints; sessions that several brokers share", _checkpoints_and_sessions),
    Migration(3, "revocations, minimum versions, documents", _standing_and_documents),
)
SCHEMA_VERSION = MIGRATIONS[-1].version
