"""Rotation of the key-encrypting key: every data key is wrapped anew, no resource and no container changes.

1. The provider begins a new generation; from now on everything is wrapped under it (``renew``).
2. Every record that is wrapped under another KEK is wrapped anew, a batch per transaction, so that releases
   go on in between.
3. With every writer locked out, there is no record under another KEK left; only then is the older generation
   forgotten (``retire``).

It may be interrupted anywhere and run again. A record that does not open stops it before step 3. Among all
brokers on the database one rotates at a time: two that begin a generation each would lose one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from cloister.errors import KeyUnavailable
from cloister.kbs.database import Database
from cloister.kbs.kek import Envelope, KekProvider
from cloister.kbs.kek.envelope import rewrap_envelope
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.records import ResourceRow, VersionRow, context_of

BATCH = 50


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """What a rotation did."""

    kek_id: str
    """The KEK that everything is under now."""
    rewrapped: int
    retired: bool
    """Whether older generations were forgotten."""


def rotate_kek(database: Database, kek: KekProvider, *, renew: bool, retire: bool) -> Rewrapped:
    """Wrap everything under the newest KEK.

    Args:
        kek: its ring has every KEK that records are under (``keys.kek``, ``keys.previous_keks``).
        renew: begin a new generation first; not needed where ``keys.kek`` names another KEK than before.
        retire: forget older generations. Backups that were made before then need a copy of the older KEK.
    Raises:
        BadCiphertext: a record was changed, or is under a KEK that is not there.
        ConfigError: the provider has no generations.
        KeyUnavailable: provider or database do not answer, or another one rotates; run it again.
    """
    with database.alone("rotation"):
        return _rotate(database, kek, renew=renew, retire=retire)


def _rotate(database: Database, kek: KekProvider, *, renew: bool, retire: bool) -> Rewrapped:
    kek_id = kek.renew() if renew else kek.key_id
    done = 0
    while count := _rewrap_batch(database, kek, kek_id):
        done += count
    if retire:
        with database.write() as session:
            _lock_out_writers(session)
            left = session.scalar(select(func.count()).where(VersionRow.kek_id != kek_id))
            if left:
                raise KeyUnavailable(f"{left} records were written under another KEK; run the rotation again")
            kek.retire()
    return Rewrapped(kek_id, done, retire)


def _rewrap_batch(database: Database, kek: KekProvider, kek_id: str) -> int:
    query = (
        select(VersionRow, ResourceRow)
        .join(VersionRow.resource)
        .where(VersionRow.kek_id != kek_id)
        .order_by(VersionRow.id)
        .limit(BATCH)
        .with_for_update(of=VersionRow)
    )
    with database.write() as session:
        rows = session.execute(query).all()
        for version, resource in rows:
            path = ResourcePath(resource.repository, resource.type, resource.tag)
            old = Envelope(version.wrapped_key, version.ciphertext, version.kek_id)
            new = rewrap_envelope(kek, old, context_of(path, version.version))
            if new.kek_id == version.kek_id:
                raise KeyUnavailable(f"KEK {new.kek_id} is no newer than the records' own")
            version.wrapped_key, version.kek_id = new.wrapped_key, new.kek_id
    return len(rows)


def _lock_out_writers(session: Session) -> None:
    # SQLite's writing transaction is alone already; PostgreSQL's is not.
    if session.connection().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE resource_versions IN SHARE ROW EXCLUSIVE MODE"))
