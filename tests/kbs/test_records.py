"""The database: versions, and nothing readable without the KEK."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from cloister.errors import BadCiphertext, ConfigError, KeyUnavailable
from cloister.kbs.database import Database
from cloister.kbs.kek import KekProvider, open_kek
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.records import delete_versions, list_resources, list_versions, load_version, store_version
from cloister.settings import KeysSettings

PATH = ResourcePath("models", "key", "digits")
SECRET = b"CANARY-" + bytes(range(25))


@pytest.fixture
def kek(tmp_path: Path) -> KekProvider:
    """A new KEK."""
    return open_kek(f"file:{tmp_path / 'kek'}")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A new database in a file."""
    return Database(f"sqlite:///{tmp_path / 'kbs.sqlite'}")


def put(database: Database, kek: KekProvider, data: bytes = SECRET) -> int:
    """Store one version; returns its number."""
    with database.write() as session:
        return store_version(session, kek, PATH, data, created="2026-11-20T00:00:00+00:00").version


def get(database: Database, kek: KekProvider, version: int | None = None) -> bytes:
    """Load a version."""
    with database.read() as session:
        return load_version(session, kek, ResourcePath("models", "key", "digits", version))[0]


def test_newest_version_by_default_and_older_by_number(database: Database, kek: KekProvider) -> None:
    """Versions count from one; without a number the newest is given."""
    assert [put(database, kek, data) for data in (b"one", b"two")] == [1, 2]
    assert get(database, kek) == b"two"
    assert get(database, kek, 1) == b"one"
    with pytest.raises(KeyUnavailable, match="not found"):
        get(database, kek, 3)
    database.close()


def test_version_numbers_are_never_used_again(database: Database, kek: KekProvider) -> None:
    """Deleting everything does not let version 1 mean something else."""
    put(database, kek)
    with database.write() as session:
        assert delete_versions(session, PATH) == 1
    with pytest.raises(KeyUnavailable):
        get(database, kek)
    assert put(database, kek) == 2
    database.close()


def test_one_version_can_be_deleted(database: Database, kek: KekProvider) -> None:
    """Deleting a named version leaves the others."""
    put(database, kek, b"one")
    put(database, kek, b"two")
    with database.write() as session:
        assert delete_versions(session, ResourcePath("models", "key", "digits", 2)) == 1
        assert delete_versions(session, ResourcePath("models", "key", "digits", 9)) == 0
    assert get(database, kek) == b"one"
    database.close()


def test_nothing_secret_is_on_disk(database: Database, kek: KekProvider, tmp_path: Path) -> None:
    """Neither the resource nor its hexadecimal is in any file, the write-ahead log included."""
    put(database, kek)
    for file in tmp_path.iterdir():
        raw = file.read_bytes()
        assert SECRET not in raw
        assert SECRET.hex().encode() not in raw
    database.close()


def test_swapped_rows_do_not_open(database: Database, kek: KekProvider, tmp_path: Path) -> None:
    """An older version's ciphertext under a newer version's number is refused."""
    put(database, kek, b"one")
    put(database, kek, b"two")
    with database.write() as session:
        session.execute(
            text(
                "UPDATE resource_versions SET wrapped_key=(SELECT wrapped_key FROM resource_versions WHERE"
                " version=1), ciphertext=(SELECT ciphertext FROM resource_versions WHERE version=1)"
                " WHERE version=2"
            )
        )
    with pytest.raises(BadCiphertext):
        get(database, kek)
    database.close()


def test_sqlite_is_durable_and_checks_references(database: Database) -> None:
    """WAL, full synchronisation and foreign keys are on in every connection."""
    with database.read() as session:
        found = [session.execute(text(f"PRAGMA {p}")).scalar() for p in ("journal_mode", "synchronous")]
        assert found == ["wal", 2]
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.close()


def test_another_schema_version_is_refused(database: Database, tmp_path: Path) -> None:
    """A database of a later release is not touched."""
    database.close()
    with sqlite3.connect(tmp_path / "kbs.sqlite") as connection:
        connection.execute("UPDATE schema_version SET version=99")
    connection.close()
    with pytest.raises(ConfigError, match="schema version 99"):
        Database(f"sqlite:///{tmp_path / 'kbs.sqlite'}")


@pytest.mark.parametrize("url", ["nonsense", "oracle://x", "sqlite:////nonexistent/folder/x.sqlite"])
def test_unusable_urls_are_configuration_errors(url: str) -> None:
    """A bad database URL is one line, not a traceback of the driver."""
    with pytest.raises(ConfigError):
        Database(url)


def test_listing_tells_names_and_sizes_only(database: Database, kek: KekProvider, tmp_path: Path) -> None:
    """What is stored can be listed without the KEK, for the command line too."""
    put(database, kek)
    with database.read() as session:
        assert [(v.path, v.version, v.size) for v in list_versions(session)] == [(PATH.path, 1, 32)]
    database.close()
    rows = list_resources(KeysSettings(folder=str(tmp_path)))
    assert rows == [
        {
            "uri": "kbs:///models/key/digits",
            "version": 1,
            "bytes": 32,
            "created": "2026-11-20T00:00:00+00:00",
        }
    ]
    with pytest.raises(ConfigError, match="no key broker"):
        list_resources(KeysSettings(folder=str(tmp_path / "absent")))
