"""The broker's database: resources with their versions, the audit log, and sessions that brokers share.

Nothing secret is stored in the clear: a version holds an envelope (see ``cloister.kbs.kek``). Connections and
transactions: ``cloister.kbs.database``; how the tables come to be: ``cloister.kbs.migrations``.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    select,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from cloister.errors import ConfigError, KeyUnavailable
from cloister.kbs.database import first_line, open_existing
from cloister.kbs.kek import OVERHEAD_BYTES, Envelope, KekProvider, open_envelope, seal_envelope
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.queries import Query
from cloister.settings import KeysSettings

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
        raise ConfigError(f"cannot read the database: {first_line(error)}") from error
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
    version = VersionRow(
        version=row.last_version,
        kek_id=envelope.kek_id,
        wrapped_key=envelope.wrapped_key,
        ciphertext=envelope.ciphertext,
        created=created,
    )
    row.versions.append(version)
    session.flush()
    # A rotation forgets a KEK only while nobody writes (``cloister.kbs.rotation``), so from here on it waits
    # for this transaction. One that ended between the wrapping and the writing did not.
    if envelope.kek_id != kek.key_id:
        envelope = seal_envelope(kek, data, context_of(path, row.last_version))
        version.kek_id, version.wrapped_key = envelope.kek_id, envelope.wrapped_key
        version.ciphertext = envelope.ciphertext
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
