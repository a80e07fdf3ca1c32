"""What holds for a resource besides its bytes: what was revoked, and the oldest version that is released.

Both are looked up for every release, so a change takes effect on the next request. They belong to the path
and outlive its versions: deleting a revoked resource and storing it again does not bring it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam, func, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from cloister.errors import ConfigError
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.queries import Query
from cloister.kbs.records import ResourceRow, RevokedVersionRow, StandingRow, VersionRow

MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Standing:
    """How a version stands that was asked for, or that would be released as the newest one."""

    version: int
    """0 if there is none."""
    minimum: int
    revoked: str | None
    """Why it is not released any more; None if it is."""

    @property
    def old(self) -> bool:
        """Whether it is older than the oldest that is released without further ado."""
        return 0 < self.version < self.minimum


def standing_of(connection: Connection, path: ResourcePath) -> Standing:
    """The standing of the version that ``path`` names, or of the newest. One query."""
    names = {"repository": path.repository, "type": path.type, "tag": path.tag, "number": path.version}
    ((newest, minimum, revoked, reason),) = _STANDING.rows(connection, names)
    version = newest if path.version is None else path.version
    return Standing(int(version or 0), int(minimum or 0), revoked if revoked is not None else reason)


def revoke(session: Session, path: ResourcePath, reason: str) -> None:
    """Release the named version, or without one any version of the resource, to nobody any more.

    Raises:
        ConfigError: no reason, or one that is too long.
    """
    reason = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    if not reason or len(reason) > MAX_REASON_CHARACTERS:
        raise ConfigError(f"a revocation needs a reason of at most {MAX_REASON_CHARACTERS} characters")
    if path.version is None:
        _standing_row(session, path).revoked = reason
    else:
        session.merge(RevokedVersionRow(**_key(path), version=path.version, reason=reason))


def restore(session: Session, path: ResourcePath) -> bool:
    """Take a revocation back. Returns whether there was one."""
    if path.version is None:
        row = session.get(StandingRow, _identity(path))
        found = row is not None and row.revoked is not None
        if row is not None:
            row.revoked = None
        return found
    revoked = session.get(RevokedVersionRow, (*_identity(path), path.version))
    if revoked is not None:
        session.delete(revoked)
    return revoked is not None


def set_minimum(session: Session, path: ResourcePath, minimum: int) -> int:
    """Release no version below ``minimum`` unless a policy permits ``release-old``. Returns what it was."""
    row = _standing_row(session, path)
    before, row.minimum_version = row.minimum_version, minimum
    return before


def minimum_of(session: Session, path: ResourcePath) -> int:
    """The oldest version that is released; 0 if none was ever set."""
    row = session.get(StandingRow, _identity(path))
    return 0 if row is None else row.minimum_version


def _standing_row(session: Session, path: ResourcePath) -> StandingRow:
    row = session.get(StandingRow, _identity(path), with_for_update=True)
    if row is None:
        row = StandingRow(**_key(path), minimum_version=0, revoked=None)
        session.add(row)
    return row


def _key(path: ResourcePath) -> dict[str, str]:
    return {"repository": path.repository, "type": path.type, "tag": path.tag}


def _identity(path: ResourcePath) -> tuple[str, str, str]:
    return path.repository, path.type, path.tag


_HERE = [
    (column.repository == bindparam("repository"))
    & (column.type == bindparam("type"))
    & (column.tag == bindparam("tag"))
    for column in (ResourceRow, StandingRow, RevokedVersionRow)
]
_NEWEST = select(func.max(VersionRow.version)).join(VersionRow.resource).where(_HERE[0]).scalar_subquery()
_ASKED: ColumnElement[int] = func.coalesce(bindparam("number"), _NEWEST)
_STANDING = Query(
    select(
        _NEWEST.label("newest"),
        select(StandingRow.minimum_version).where(_HERE[1]).scalar_subquery().label("minimum"),
        select(StandingRow.revoked).where(_HERE[1]).scalar_subquery().label("revoked"),
        select(RevokedVersionRow.reason)
        .where(_HERE[2], RevokedVersionRow.version == _ASKED)
        .scalar_subquery()
        .label("reason"),
    )
)
