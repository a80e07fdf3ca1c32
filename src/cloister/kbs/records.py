"""The broker's database: resources with their versions, the audit log, and sessions that brokers share.

Nothing secret is stored in the clear: a version holds an envelope (see ``cloister.kbs.kek``). SQLite runs in
WAL mode with full synchronisation, so that what was acknowledged survives the process and a power failure.
Several brokers can use one PostgreSQL database. How the tables come to be: ``cloister.kbs.migrations``.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    bindparam,
    create_engine,
    event,
    select,
)
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from cloister.errors import ConfigError, KeyUnavailable, MissingDependencyError
from cloister.kbs.kek import OVERHEAD_BYTES, Envelope, KekProvider, open_envelope, seal_envelope
from cloister.kbs.migrations import migrate
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.queries import Query
from cloister.settings import KeysSettings

_BEGIN = "cloister_begin"
_BUSY_S = 30
_LONG = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Root of the mapped classes."""


class SchemaRow(Base):
    """One row: which version of this schema the tables have."""

    __tablename__ = "schema_version"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]


class ResourceRow(Base):
    """A path. It stays after its versions are deleted, so that a version number is never used twice."""

    __tablename__ = "resources"
    __table_args__ = (UniqueConstraint("repository", "type", "tag"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    repository: Mapped[str] = mapped_column(String(128))
    type: Mapped[str] = mapped_column(String(128))
    tag: Mapped[str] = mapped_column(String(128))
    last_version: Mapped[int] = mapped_column(default=0)
    versions: Mapped[list[VersionRow]] = relationship(
        back_populates="resource", cascade="all, delete-orphan", order_by="VersionRow.version"
    )


class VersionRow(Base):
    """One version of a resource, encrypted."""

    __tablename__ = "resource_versions"
    __table_args__ = (UniqueConstraint("resource_id", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    resource_id: Mapped[int] = mapped_column(ForeignKey("resources.id", ondelete="CASCADE"))
    version: Mapped[int]
    kek_id: Mapped[str] = mapped_column(String(80))
    wrapped_key: Mapped[bytes] = mapped_column(LargeBinary)
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    created: Mapped[str] = mapped_column(String(40))
    resource: Mapped[ResourceRow] = relationship(back_populates="versions")


class AuditRow(Base):
    """One audit entry as canonical JSON, and its hash."""

    __tablename__ = "audit_entries"
    sequence: Mapped[int] = mapped_column(_LONG, primary_key=True, autoincrement=False)
    body: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64))


class AuditHeadRow(Base):
    """One row: the last audit entry, signed, so that entries cut off at the end are missed."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(_LONG)
    hash: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))


class AuditCheckpointRow(Base):
    """The audit log's length and last hash at some time, signed: see ``cloister.kbs.checkpoints``."""

    __tablename__ = "audit_checkpoints"
    sequence: Mapped[int] = mapped_column(_LONG, primary_key=True, autoincrement=False)
    time: Mapped[str] = mapped_column(String(40))
    hash: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))


class SessionRow(Base):
    """A session that several brokers share, sealed: see ``cloister.kbs.shared_sessions``."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires: Mapped[int] = mapped_column(BigInteger, index=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)


class StandingRow(Base):
    """What holds for a path besides its versions (``cloister.kbs.standing``); it outlives them."""

    __tablename__ = "resource_standing"
    repository: Mapped[str] = mapped_column(String(128), primary_key=True)
    type: Mapped[str] = mapped_column(String(128), primary_key=True)
    tag: Mapped[str] = mapped_column(String(128), primary_key=True)
    minimum_version: Mapped[int] = mapped_column(default=0)
    revoked: Mapped[str | None] = mapped_column(Text, default=None)


class RevokedVersionRow(Base):
    """One version that is not released any more, and why."""

    __tablename__ = "revoked_versions"
    repository: Mapped[str] = mapped_column(String(128), primary_key=True)
    type: Mapped[str] = mapped_column(String(128), primary_key=True)
    tag: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reason: Mapped[str] = mapped_column(Text)


class DocumentRow(Base):
    """A policy or reference value that was set through the broker's administration."""

    __tablename__ = "documents"
    name: Mapped[str] = mapped_column(String(160), primary_key=True)
    revision: Mapped[int]
    body: Mapped[str] = mapped_column(Text)
    updated: Mapped[str] = mapped_column(String(40))


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """What may be told about a stored version."""

    path: str
    version: int
    size: int
    """Bytes of the resource itself."""
    created: str
    kek_id: str


class Transaction:
    """One that is open, to be ended by whichever thread comes to it; nobody else writes until then."""

    def __init__(self, connection: Connection, writing: threading.Lock) -> None:
        self.connection = connection
        self._writing = writing

    def commit(self) -> None:
        """Make it durable.

        Raises:
            KeyUnavailable: the database failed; nothing was written.
        """
        try:
            with translated(), self.connection:
                self.connection.commit()
        finally:
            self._writing.release()

    def roll_back(self) -> None:
        """As if it had not been."""
        try:
            with contextlib.suppress(SQLAlchemyError, sqlite3.Error):
                self.connection.close()
        finally:
            self._writing.release()


class Database:
    """Opens the database and hands out transactions; safe to use from many threads."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._reader: Connection | None = None
        self._writer = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        self.local = self.engine.dialect.name == "sqlite"
        """Whether the database is a file of this machine, with this broker for its only one."""
        with self.write_connection() as connection:
            migrate(connection)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads.

        Raises:
            KeyUnavailable: the database does not answer.
        """
        with translated(), Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed when the block ends, rolled back when it raises.

        SQLite has one writer at a time; waiting here is cheap, waiting in SQLite polls.

        Raises:
            KeyUnavailable: the database does not answer; nothing was written.
        """
        opened = Session(self._writer, expire_on_commit=False)
        with translated(), self._writing, opened as session, session.begin():
            yield session

    @contextmanager
    def read_connection(self) -> Iterator[Connection]:
        """As ``read``, without the mapped classes."""
        with translated(), self.engine.connect() as connection:
            yield connection

    def rows(self, query: Query, values: Mapping[str, Any]) -> Sequence[Any]:
        """Every row of one query that stands alone; a local database keeps a connection for these.

        Raises:
            KeyUnavailable: the database does not answer.
        """
        if not self.local:
            with self.read_connection() as connection:
                return query.rows(connection, values)
        with translated(), self._reading:
            if self._reader is None:
                self._reader = self.engine.connect()
            return query.rows(self._reader, values)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """As ``read_connection``: everything that is read is of one moment, whatever is written meanwhile."""
        with translated(), self.engine.connect() as connection:
            if not self.local:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def write_connection(self) -> Iterator[Connection]:
        """As ``write``, without the mapped classes."""
        with translated(), self._writing, self._writer.connect() as connection, connection.begin():
            yield connection

    def begin_at_once(self) -> Transaction | None:
        """A writing transaction of a local database, if nobody else is writing; waits for nothing.

        Raises:
            KeyUnavailable: the database does not answer.
        """
        if not self._writing.acquire(blocking=False):
            return None
        try:
            with translated():
                connection = self._writer.connect()
                try:
                    driver: Any = connection.connection.driver_connection
                    driver.execute("PRAGMA busy_timeout=0")
                    try:
                        connection.begin()
                    finally:
                        driver.execute(f"PRAGMA busy_timeout={_BUSY_S * 1000}")
                except OperationalError:  # another process writes
                    connection.close()
                    self._writing.release()
                    return None
        except BaseException:
            self._writing.release()
            raise
        return Transaction(connection, self._writing)

    def close(self) -> None:
        """Close every connection."""
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        self.engine.dispose()


def open_engine(url: str) -> Engine:
    """An engine for the URL, with SQLite set up for durability.

    Raises:
        ConfigError: not a database URL, or it cannot be opened.
        MissingDependencyError: its driver is not installed.
    """
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = (
            {"connect_args": {"timeout": _BUSY_S}} if sqlite else {"pool_pre_ping": True}
        )
        engine = create_engine(parsed, pool_size=8, max_overflow=56, hide_parameters=True, **options)
        if sqlite:
            event.listen(engine, "connect", _sqlite_connect)
            event.listen(engine, "begin", _sqlite_begin)
        with engine.connect():
            return engine
    except ImportError as error:
        raise MissingDependencyError(
            f"no driver for this database: {_first_line(error)}", hint="pip install 'cloister[postgres]'"
        ) from error
    except ArgumentError as error:
        raise ConfigError(f"database URL is not usable: {_first_line(error)}") from error
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot open the database: {_first_line(error)}") from error


def database_url(settings: KeysSettings) -> str:
    """The URL that the settings name, or that of the SQLite file in the state folder."""
    if settings.database:
        return settings.database
    file = Path(settings.folder) / "kbs.sqlite"
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def open_existing(settings: KeysSettings) -> Engine:
    """The database of a broker that has been started before, to look at.

    Raises:
        ConfigError: there is none.
    """
    if not settings.database and not (Path(settings.folder) / "kbs.sqlite").is_file():
        raise ConfigError(f"no key broker has been started in {settings.folder}")
    return open_engine(database_url(settings))


def list_resources(settings: KeysSettings) -> list[dict[str, Any]]:
    """Every stored version as ``uri``, ``version``, ``bytes``, ``created``; never its content."""
    engine = open_existing(settings)
    try:
        with Session(engine) as session:
            return [
                {"uri": f"kbs:///{v.path}", "version": v.version, "bytes": v.size, "created": v.created}
                for v in list_versions(session)
            ]
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot read the database: {_first_line(error)}") from error
    finally:
        engine.dispose()


def store_version(
    session: Session, kek: KekProvider, path: ResourcePath, data: bytes, *, created: str
) -> StoredVersion:
    """Add a version to a resource; the newest one is what TEEs get unless they name another."""
    row = _resource(session, path, lock=True)
    if row is None:
        row = ResourceRow(repository=path.repository, type=path.type, tag=path.tag, last_version=0)
        session.add(row)
    row.last_version += 1
    envelope = seal_envelope(kek, data, context_of(path, row.last_version))
    row.versions.append(
        VersionRow(
            version=row.last_version,
            kek_id=envelope.kek_id,
            wrapped_key=envelope.wrapped_key,
            ciphertext=envelope.ciphertext,
            created=created,
        )
    )
    return StoredVersion(path.path, row.last_version, len(data), created, envelope.kek_id)


@dataclass(frozen=True, slots=True)
class SealedVersion:
    """One version as it is stored."""

    id: int
    version: int
    envelope: Envelope


def find_version(connection: Connection, path: ResourcePath) -> SealedVersion:
    """The newest version of a resource, or the one that the path names.

    Raises:
        KeyUnavailable: no such resource, or no such version.
    """
    rows = (_SEALED if path.version is None else _SEALED_VERSION).rows(connection, _names(path))
    if not rows:
        raise KeyUnavailable(f"resource not found: {path}")
    identity, version, kek_id, wrapped_key, ciphertext = rows[0]
    return SealedVersion(identity, version, Envelope(wrapped_key, ciphertext, kek_id))


def open_version(kek: KekProvider, path: ResourcePath, found: SealedVersion) -> bytes:
    """The bytes of a version.

    Raises:
        BadCiphertext: the record was changed at rest.
    """
    return open_envelope(kek, found.envelope, context_of(path, found.version))


def load_version(session: Session, kek: KekProvider, path: ResourcePath) -> tuple[bytes, int]:
    """The resource's bytes and its version.

    Raises:
        KeyUnavailable: no such resource, or no such version.
        BadCiphertext: the record was changed at rest.
    """
    found = find_version(session.connection(), path)
    return open_version(kek, path, found), found.version


def delete_versions(session: Session, path: ResourcePath) -> int:
    """Delete every version of a resource, or the one named. Returns how many there were."""
    rows = session.scalars(_versions_of(path)).all()
    doomed = [row for row in rows if path.version in (None, row.version)]
    for row in doomed:
        session.delete(row)
    return len(doomed)


def list_versions(session: Session) -> list[StoredVersion]:
    """Every stored version, by path."""
    query = (
        select(ResourceRow, VersionRow)
        .join(ResourceRow.versions)
        .order_by(ResourceRow.repository, ResourceRow.type, ResourceRow.tag, VersionRow.version)
    )
    return [
        StoredVersion(
            f"{r.repository}/{r.type}/{r.tag}",
            v.version,
            len(v.ciphertext) - OVERHEAD_BYTES,
            v.created,
            v.kek_id,
        )
        for r, v in session.execute(query)
    ]


def context_of(path: ResourcePath, version: int) -> str:
    """What the envelope of a version is bound to."""
    return f"{path.path}?version={version}"


def _resource(session: Session, path: ResourcePath, *, lock: bool) -> ResourceRow | None:
    query = select(ResourceRow).where(
        ResourceRow.repository == path.repository, ResourceRow.type == path.type, ResourceRow.tag == path.tag
    )
    return session.scalars(query.with_for_update() if lock else query).first()


def _versions_of(path: ResourcePath) -> Any:
    return (
        select(VersionRow)
        .join(VersionRow.resource)
        .where(
            ResourceRow.repository == path.repository,
            ResourceRow.type == path.type,
            ResourceRow.tag == path.tag,
        )
    )


def _names(path: ResourcePath) -> dict[str, Any]:
    names: dict[str, Any] = {"repository": path.repository, "type": path.type, "tag": path.tag}
    return names if path.version is None else {**names, "number": path.version}


# Made once: these run for every release.
_NEWEST = (
    select(
        VersionRow.id, VersionRow.version, VersionRow.kek_id, VersionRow.wrapped_key, VersionRow.ciphertext
    )
    .join(VersionRow.resource)
    .where(
        ResourceRow.repository == bindparam("repository"),
        ResourceRow.type == bindparam("type"),
        ResourceRow.tag == bindparam("tag"),
    )
    .order_by(VersionRow.version.desc())
    .limit(1)
)
_SEALED = Query(_NEWEST)
_SEALED_VERSION = Query(_NEWEST.where(VersionRow.version == bindparam("number")))


@contextmanager
def translated() -> Iterator[None]:
    """What a database driver raises, as KeyUnavailable."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise KeyUnavailable(f"the broker's database failed: {type(error).__name__}") from error


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own transactions begin too late; see _sqlite_begin
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
