"""Rotation of the KEK: every record moves, no content changes, and nothing is lost on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from cloister.errors import BadCiphertext, ConfigError, KeyUnavailable
from cloister.kbs.database import Database
from cloister.kbs.kek import FileKek, KekProvider, KekRing, open_kek, open_ring
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.records import VersionRow, load_version, store_version
from cloister.kbs.rotation import BATCH, rotate_kek

RECORDS = BATCH + 7


@pytest.fixture
def kek(tmp_path: Path) -> FileKek:
    """A KEK in a new file."""
    return FileKek(tmp_path / "kek")


@pytest.fixture
def database(tmp_path: Path, kek: FileKek) -> Iterator[Database]:
    """More records than one batch takes."""
    opened = Database(f"sqlite:///{tmp_path}/kbs.sqlite")
    for number in range(RECORDS):
        put(opened, kek, number)
    yield opened
    opened.close()


def put(database: Database, kek: KekProvider, number: int) -> None:
    """Store one resource."""
    with database.write() as session:
        path = ResourcePath("a", "b", str(number))
        store_version(session, kek, path, b"secret %d" % number, created="2026")


def read(database: Database, kek: KekProvider, number: int) -> bytes:
    """Open one resource."""
    with database.read() as session:
        return load_version(session, kek, ResourcePath("a", "b", str(number)))[0]


def ciphertexts(database: Database) -> dict[int, bytes]:
    """What is stored of every record."""
    with database.read() as session:
        return {row.id: row.ciphertext for row in session.scalars(select(VersionRow))}


def test_every_record_moves_and_no_content_changes(database: Database, kek: FileKek, tmp_path: Path) -> None:
    """After a rotation the new KEK alone opens everything, and no ciphertext was touched."""
    before, old = ciphertexts(database), kek.newest()
    done = rotate_kek(database, kek, renew=True, retire=True)
    assert (done.rewrapped, done.retired, done.kek_id) == (RECORDS, True, kek.key_id)
    assert ciphertexts(database) == before
    assert kek.newest() != old
    assert (tmp_path / "kek").stat().st_size == 32
    assert read(database, open_kek(f"file:{tmp_path / 'kek'}"), RECORDS - 1) == b"secret %d" % (RECORDS - 1)


def test_the_old_kek_opens_nothing_any_more(database: Database, kek: FileKek, tmp_path: Path) -> None:
    """A copy of the KEK from before the rotation is worth nothing."""
    (tmp_path / "copy").touch(0o600)
    (tmp_path / "copy").write_bytes((tmp_path / "kek").read_bytes())
    rotate_kek(database, kek, renew=True, retire=True)
    with pytest.raises(BadCiphertext, match="wrapped under KEK"):
        read(database, FileKek(tmp_path / "copy"), 0)


def test_a_running_broker_follows(database: Database, kek: FileKek, tmp_path: Path) -> None:
    """Another process's provider, opened before, reads and writes through the whole rotation."""
    running = FileKek(tmp_path / "kek")
    kek.renew()
    assert read(database, running, 0) == b"secret 0"
    put(database, running, 1000)
    rotate_kek(database, kek, renew=False, retire=True)
    assert read(database, running, 1000) == b"secret 1000"
    assert running.key_id == kek.key_id


def test_writers_during_a_rotation_lose_nothing(database: Database, kek: FileKek, tmp_path: Path) -> None:
    """Keys that are stored while the KEK is rotated, twice, are all there afterwards."""
    running, stop, stored = FileKek(tmp_path / "kek"), threading.Event(), []

    def write() -> None:
        while not stop.is_set() and len(stored) < 200:
            put(database, running, 10_000 + len(stored))
            stored.append(10_000 + len(stored))

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(2):
        rotate_kek(database, kek, renew=True, retire=True)
    stop.set()
    thread.join()
    assert stored
    assert [read(database, kek, number) for number in stored] == [b"secret %d" % number for number in stored]


def test_a_second_rotation_is_refused(database: Database, kek: FileKek, tmp_path: Path) -> None:
    """While one rotation runs another one of the same database is told so, and nothing changes."""
    other, before = Database(f"sqlite:///{tmp_path}/kbs.sqlite"), kek.key_id
    with database.alone("rotation"), pytest.raises(KeyUnavailable, match="another rotation"):
        rotate_kek(other, kek, renew=True, retire=True)
    assert kek.key_id == before
    rotate_kek(other, kek, renew=True, retire=True)
    other.close()


def test_a_move_to_another_provider(database: Database, kek: FileKek, tmp_path: Path) -> None:
    """A ring with the old KEK behind the new one moves everything to the new one."""
    ring = open_ring(f"file:{tmp_path / 'new'}", [f"file:{tmp_path / 'kek'}"])
    assert read(database, ring, 3) == b"secret 3"
    assert rotate_kek(database, ring, renew=False, retire=True).rewrapped == RECORDS
    assert read(database, FileKek(tmp_path / "new"), 3) == b"secret 3"
    assert rotate_kek(database, ring, renew=False, retire=True).rewrapped == 0


def test_a_damaged_record_stops_before_anything_is_forgotten(database: Database, kek: FileKek) -> None:
    """One record that does not open: the rotation says so, and the older KEK stays."""
    with database.write() as session:
        session.execute(update(VersionRow).where(VersionRow.id == 5).values(wrapped_key=b"damaged"))
    with pytest.raises(BadCiphertext):
        rotate_kek(database, kek, renew=True, retire=True)
    assert read(database, kek, RECORDS - 1) == b"secret %d" % (RECORDS - 1)
    with database.write() as session:
        session.execute(update(VersionRow).where(VersionRow.id == 5).values(kek_id="file:unknown"))
    with pytest.raises(BadCiphertext, match="file:unknown"):
        rotate_kek(database, kek, renew=False, retire=True)


def test_old_generations_may_stay(database: Database, kek: FileKek, tmp_path: Path) -> None:
    """Without retirement the file keeps both, for older backups."""
    rotate_kek(database, kek, renew=True, retire=False)
    assert (tmp_path / "kek").stat().st_size == 64
    assert read(database, kek, 0) == b"secret 0"


def test_previous_keks_are_never_made(tmp_path: Path) -> None:
    """A mistyped previous KEK is an error, not a new file."""
    with pytest.raises(ConfigError, match="no KEK in"):
        open_ring(f"file:{tmp_path / 'kek'}", [f"file:{tmp_path / 'typo'}"])
    assert not (tmp_path / "typo").exists()
    assert KekRing(FileKek(tmp_path / "kek")).local


@pytest.mark.parametrize("size", [0, 31, 33, 32 * 17])
def test_kek_files_of_other_lengths_are_refused(tmp_path: Path, size: int) -> None:
    """A file holds one to sixteen whole KEKs."""
    (tmp_path / "kek").touch(0o600)
    (tmp_path / "kek").write_bytes(bytes(size))
    with pytest.raises(ConfigError):
        FileKek(tmp_path / "kek")
