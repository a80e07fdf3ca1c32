"""The broker's database: resources with their versions, the audit log, and the version of this schema.

Nothing secret is stored in the clear: a version holds an envelope (see ``cloister.kbs.kek``). SQLite runs in
WAL mode with full synchronisation, so that what was acknowledged survives the process and a power failure.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ForeignKey,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    select,
)
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from cloister.errors import ConfigError, KeyUnavailable
from cloister.kbs.kek import OVERHEAD_BYTES, Envelope, KekProvider, open_envelope, seal_envelope
from cloister.kbs.protocol import ResourcePath
from cloister.settings import KeysSettings

SCHEMA_VERSION = 1
_BEGIN = "cloister_begin"


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
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64))


class AuditHeadRow(Base):
    """One row: the last audit entry, signed, so that entries cut off at the end are missed."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int]
    hash: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """What may be told about a stored version."""

    path: str
    version: int
    size: int
    """Bytes of the resource itself."""
    created: str
    kek_id: str


class Database:
    """Opens the database and hands out transactions; safe to use from many threads."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._writing = threading.Lock()
        self._writer = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        with self.write() as session:
            Base.metadata.create_all(session.connection())
            _check_schema(session)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads.

        Raises:
            KeyUnavailable: the database does not answer.
        """
        with _translated(), Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed when the block ends, rolled back when it raises.

        SQLite has one writer at a time; waiting here is cheap, waiting in SQLite polls.

        Raises:
            KeyUnavailable: the database does not answer; nothing was written.
        """
        opened = Session(self._writer, expire_on_commit=False)
        with _translated(), self._writing, opened as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_engine(url: str) -> Engine:
    """An engine for the URL, with SQLite set up for durability.

    Raises:
        ConfigError: not a database URL, no driver for it, or it cannot be opened.
    """
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"connect_args": {"timeout": 30}} if sqlite else {"pool_pre_ping": True}
        engine = create_engine(parsed, pool_size=8, max_overflow=56, hide_parameters=True, **options)
        if sqlite:
            event.listen(engine, "connect", _sqlite_connect)
            event.listen(engine, "begin", _sqlite_begin)
        with engine.connect():
            return engine
    except (ArgumentError, ImportError) as error:
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


def load_version(session: Session, kek: KekProvider, path: ResourcePath) -> tuple[bytes, int]:
    """The resource's bytes and its version.

    Raises:
        KeyUnavailable: no such resource, or no such version.
        BadCiphertext: the record was changed at rest.
    """
    query = _versions_of(path).order_by(VersionRow.version.desc()).limit(1)
    if path.version is not None:
        query = query.where(VersionRow.version == path.version)
    row = session.scalars(query).first()
    if row is None:
        raise KeyUnavailable(f"resource not found: {path}")
    envelope = Envelope(row.wrapped_key, row.ciphertext, row.kek_id)
    return open_envelope(kek, envelope, context_of(path, row.version)), row.version


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


def _check_schema(session: Session) -> None:
    row = session.get(SchemaRow, 1)
    if row is None:
        session.add(SchemaRow(id=1, version=SCHEMA_VERSION))
    elif row.version != SCHEMA_VERSION:
        raise ConfigError(f"database has schema version {row.version}, this broker needs {SCHEMA_VERSION}")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise KeyUnavailable(f"the broker's database failed: {type(error).__name__}") from error


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own transactions begin too late; see _sqlite_begin
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
