"""What the owner does to a broker, each act with its entry in the audit log, in one transaction.

The broker calls these once it has checked a token; the command line calls them on the broker's own machine,
where whoever can read the state folder is the owner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy.orm import Session

from cloister.errors import KeyUnavailable, MalformedInput
from cloister.kbs import documents, standing
from cloister.kbs.audit import AuditEvent, Kind, append
from cloister.kbs.database import Database
from cloister.kbs.kek import KekProvider
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.records import StoredVersion, delete_versions, list_versions, load_version, store_version
from cloister.kbs.rotation import Rewrapped, rotate_kek

LOCAL = "local"
"""Who acts on the broker's own machine; over the network it is ``role:`` and the token's role."""


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What may be told about one version."""

    version: int
    bytes: int
    created: str
    kek: str
    standing: str
    """``released``, ``old``, or ``revoked: `` and the reason."""


@dataclass(frozen=True, slots=True)
class ResourceFacts:
    """What may be told about a resource; never its content."""

    uri: str
    minimum_version: int
    versions: tuple[VersionFacts, ...]

    def to_mapping(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


class Administration:
    """Acts on one broker's database; safe to use from many threads.

    Args:
        actor: who acts, for the audit log.
    """

    def __init__(
        self,
        database: Database,
        kek: KekProvider,
        audit_key: ed25519.Ed25519PrivateKey,
        *,
        actor: str = LOCAL,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._kek = kek
        self._audit_key = audit_key
        self._actor = actor
        self._clock = clock

    def acting(self, actor: str) -> Administration:
        """The same, on behalf of somebody else."""
        return Administration(self._database, self._kek, self._audit_key, actor=actor, clock=self._clock)

    def store(self, path: ResourcePath, data: bytes) -> StoredVersion:
        """Add a version of a resource.

        Raises:
            MalformedInput: nothing to store.
        """
        if not data:
            raise MalformedInput("a resource cannot be empty")
        with self._database.write() as session:
            created = self._clock().isoformat(timespec="seconds")
            stored = store_version(session, self._kek, path, data, created=created)
            self._record(session, "stored", f"{path.path}?version={stored.version}")
        return stored

    def delete(self, path: ResourcePath) -> int:
        """Delete a resource, or the version of it that the path names; returns how many versions.

        Raises:
            KeyUnavailable: there is none.
        """
        with self._database.write() as session:
            count = delete_versions(session, path)
            if not count:
                raise KeyUnavailable(f"resource not found: {path}")
            self._record(session, "deleted", str(path))
        return count

    def resources(self) -> list[StoredVersion]:
        """Every stored version."""
        with self._database.read() as session:
            return list_versions(session)

    def show(self, path: ResourcePath) -> ResourceFacts:
        """All about one resource but its content.

        Raises:
            KeyUnavailable: there is none.
        """
        with self._database.read() as session:
            stored = [version for version in list_versions(session) if version.path == path.path]
            if not stored:
                raise KeyUnavailable(f"resource not found: {path.path}")
            minimum = standing.minimum_of(session, path)
            found = [(version, self._standing(session, path, version.version)) for version in stored]
        facts = tuple(VersionFacts(v.version, v.size, v.created, v.kek_id, held) for v, held in found)
        return ResourceFacts(f"kbs:///{path.path}", minimum, facts)

    def revoke(self, path: ResourcePath, reason: str) -> None:
        """Release a version, or without one the whole resource, to nobody from the next request on.

        Raises:
            KeyUnavailable: there is no such resource or version.
            ConfigError: no reason.
        """
        with self._database.write() as session:
            self._expect(session, path)
            standing.revoke(session, path, reason)
            self._record(session, "revoked", str(path), reason)

    def restore(self, path: ResourcePath, reason: str = "") -> None:
        """Take a revocation back.

        Raises:
            KeyUnavailable: it was not revoked.
        """
        with self._database.write() as session:
            if not standing.restore(session, path):
                raise KeyUnavailable(f"not revoked: {path}")
            self._record(session, "restored", str(path), reason)

    def set_minimum(self, path: ResourcePath, minimum: int) -> int:
        """Release no version below ``minimum``, unless a policy permits ``release-old``; returns what it was.

        Raises:
            KeyUnavailable: there is no such version, which would shut everybody out.
        """
        with self._database.write() as session:
            if minimum:
                named = ResourcePath(path.repository, path.type, path.tag, minimum)
                self._expect(session, named)
            before = standing.set_minimum(session, path, minimum)
            self._record(session, "minimum", path.path, f"from version {before} to {minimum}")
        return before

    def rotate_kek(self, *, renew: bool, retire: bool) -> Rewrapped:
        """Wrap every data key under the newest KEK; see ``cloister.kbs.rotation``."""
        done = rotate_kek(self._database, self._kek, renew=renew, retire=retire)
        with self._database.write() as session:
            self._record(session, "rotated", "", f"{done.rewrapped} data keys are now under {done.kek_id}")
        return done

    def take_key(self, path: ResourcePath, reason: str) -> bytes:
        """A resource's bytes, for the owner to seal a container anew; recorded as a release.

        Raises:
            KeyUnavailable: there is no such resource or version.
        """
        with self._database.write() as session:
            data, version = load_version(session, self._kek, path)
            self._record(session, "release", f"{path.path}?version={version}", reason)
        return data

    def put_document(self, name: str, body: str) -> int:
        """Set a policy or reference value that was checked; returns its revision."""
        with self._database.write() as session:
            revision = documents.put_document(session, name, body, self._clock())
            self._record(session, "document", "", f"{name} revision {revision}")
        return revision

    def get_document(self, name: str) -> str | None:
        """The text of a document; None if it was never set."""
        with self._database.read() as session:
            return documents.get_document(session, name)

    def documents(self, prefix: str) -> dict[str, str]:
        """Documents by the rest of their names."""
        return documents.documents_under(self._database, prefix)

    def _record(self, session: Session, kind: Kind, resource: str, reason: str = "") -> None:
        event = AuditEvent(
            kind=kind, time=self._clock(), subject=self._actor, resource=resource, reason=reason
        )
        append(session, event, self._audit_key)

    def _expect(self, session: Session, path: ResourcePath) -> None:
        there = {(version.path, version.version) for version in list_versions(session)}
        if path.version is None and path.path in {name for name, _ in there}:
            return
        if (path.path, path.version) not in there:
            raise KeyUnavailable(f"resource not found: {path}")

    def _standing(self, session: Session, path: ResourcePath, version: int) -> str:
        named = ResourcePath(path.repository, path.type, path.tag, version)
        found = standing.standing_of(session.connection(), named)
        if found.revoked is not None:
            return f"revoked: {found.revoked}"
        return "old" if found.old else "released"
