"""The database over its life: migrations, group commit, backups."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import sqlite3
import stat
import tarfile
import threading
import time
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import MetaData, create_engine, inspect, text
from sqlalchemy.engine import Connection

from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import BadCiphertext, ConfigError, KeyUnavailable, MalformedInput, VerificationError
from cloister.kbs.audit import AuditBroken, AuditEvent, append, begin_log, verify_audit
from cloister.kbs.backup import back_up, restore
from cloister.kbs.database import Database
from cloister.kbs.journal import Journal
from cloister.kbs.migrations import MIGRATIONS, SCHEMA_VERSION, migrate, schema_version
from cloister.kbs.records import Base
from cloister.settings import KeysSettings
from tests.kbs.broker_process import RunningBroker
from tests.kbs.conftest import SECRET

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
EVENT = AuditEvent(kind="release", time=NOW, resource="a/b/c?version=1")


def columns(connection: Connection) -> dict[str, dict[str, tuple[str, bool]]]:
    """Every table's columns: type and whether NULL is allowed."""
    found = inspect(connection)
    return {
        table: {c["name"]: (str(c["type"]), bool(c["nullable"])) for c in found.get_columns(table)}
        for table in found.get_table_names()
    }


def test_migrations_end_where_the_mapped_classes_are(tmp_path: Path) -> None:
    """A database that took every step has exactly the tables and columns that the code expects."""
    stepped = create_engine(f"sqlite:///{tmp_path / 'a'}")
    made = create_engine(f"sqlite:///{tmp_path / 'b'}")
    with stepped.begin() as connection:
        assert migrate(connection) == SCHEMA_VERSION
        after_steps = columns(connection)
    with made.begin() as connection:
        Base.metadata.create_all(connection)
        assert columns(connection) == after_steps
    stepped.dispose()
    made.dispose()


def test_migrations_are_numbered_without_gaps() -> None:
    """Each step follows the one before it."""
    assert [migration.version for migration in MIGRATIONS] == list(range(1, SCHEMA_VERSION + 1))


def test_a_database_of_the_first_release_is_brought_up_to_date(tmp_path: Path) -> None:
    """What an old database holds is there after the migration, and the log goes on."""
    engine = create_engine(f"sqlite:///{tmp_path / 'old'}")
    with engine.begin() as connection:
        MIGRATIONS[0].apply(connection)
        connection.execute(text("INSERT INTO schema_version VALUES (1, 1)"))
        connection.execute(text("INSERT INTO resources VALUES (7, 'a', 'b', 'c', 3)"))
        assert schema_version(connection) == 1
    engine.dispose()
    database = Database(f"sqlite:///{tmp_path / 'old'}")
    with database.write() as session:
        begin_log(session, KEY)
        append(session, EVENT, KEY)
        assert session.execute(text("SELECT last_version FROM resources WHERE id = 7")).scalar() == 3
        assert session.execute(text("SELECT version FROM schema_version")).scalar() == SCHEMA_VERSION
    assert verify_audit(database.engine, key=KEY.public_key()).entries == 1
    database.close()


def test_a_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are one transaction: after a failure the database is what it was."""

    def fail(_connection: Connection) -> None:
        raise ConfigError("no")

    broken = (MIGRATIONS[0], type(MIGRATIONS[0])(2, "fails", fail))
    monkeypatch.setattr("cloister.kbs.migrations.MIGRATIONS", broken)
    with pytest.raises(ConfigError, match="no"):
        Database(f"sqlite:///{tmp_path / 'x'}")
    monkeypatch.undo()
    with sqlite3.connect(tmp_path / "x") as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


@pytest.fixture
def database(tmp_path: Path) -> Any:
    """A database with an empty log."""
    opened = Database(f"sqlite:///{tmp_path / 'kbs.sqlite'}")
    with opened.write() as session:
        begin_log(session, KEY)
    yield opened
    opened.close()


def test_the_journal_writes_many_entries_in_few_transactions(database: Database) -> None:
    """What comes in together is committed together, in one chain, and each caller gets its own answer."""
    journal = Journal(database, KEY)
    waiting: list[Future[int]] = []
    for number in range(200):
        waiting.append(journal.submit(lambda _c, n=number: (EVENT, n)))
    assert [future.result(20) for future in waiting] == list(range(200))
    journal.close()
    assert journal.entries == 200
    assert journal.batches < 200
    assert verify_audit(database.engine, key=KEY.public_key()).entries == 200


def test_one_failure_in_a_batch_is_not_the_others(database: Database) -> None:
    """A decision that raises has no entry; its neighbours have theirs."""
    journal = Journal(database, KEY)

    def fail(_connection: Connection) -> tuple[AuditEvent, int]:
        raise ZeroDivisionError

    good, bad = journal.submit(lambda _c: (EVENT, 1)), journal.submit(fail)
    refused = journal.record(EVENT, KeyUnavailable("no"))
    assert good.result(20) == 1
    with pytest.raises(ZeroDivisionError):
        bad.result(20)
    with pytest.raises(KeyUnavailable, match="no"):
        refused.result(20)
    journal.close()
    assert verify_audit(database.engine, key=KEY.public_key()).entries == 2


def test_no_answer_without_a_commit(database: Database) -> None:
    """A transaction that cannot be committed answers nobody."""
    journal = Journal(database, KEY)
    with database.write() as session:
        session.execute(text("DROP TABLE audit_entries"))
    with pytest.raises(KeyUnavailable):
        journal.submit(lambda _c: (EVENT, "secret")).result(20)
    journal.close()
    with pytest.raises(KeyUnavailable, match="stopping"):
        journal.submit(lambda _c: (EVENT, 1)).result(20)


def test_a_log_that_goes_back_under_a_running_broker_stops_it(database: Database) -> None:
    """An older copy of the log with its own valid head is not gone on with."""
    journal = Journal(database, KEY)
    journal.submit(lambda _c: (EVENT, 1)).result(20)
    with database.read() as session:
        older = session.execute(text("SELECT sequence, hash, signature FROM audit_head")).one()._asdict()
    journal.submit(lambda _c: (EVENT, 1)).result(20)
    with database.write() as session:
        session.execute(text("DELETE FROM audit_entries WHERE sequence = 2"))
        session.execute(
            text("UPDATE audit_head SET sequence=:sequence, hash=:hash, signature=:signature"), older
        )
    with pytest.raises(AuditBroken, match="went back"):
        journal.submit(lambda _c: (EVENT, 1)).result(20)
    journal.close()


def test_a_forged_head_is_not_gone_on_with(database: Database) -> None:
    """A log that was cut short in the database is not made good by its next entry."""
    journal = Journal(database, KEY)
    for _ in range(2):
        journal.submit(lambda _c: (EVENT, 1)).result(20)
    with database.write() as session:
        session.execute(text("DELETE FROM audit_entries WHERE sequence = 2"))
        session.execute(
            text("UPDATE audit_head SET sequence=1, hash=(SELECT hash FROM audit_entries WHERE sequence=1)")
        )
    with pytest.raises(VerificationError):
        journal.submit(lambda _c: (EVENT, 1)).result(20)
    journal.close()


def test_an_event_loop_writes_and_a_thread_commits(database: Database) -> None:
    """Attached to a loop the journal makes the same chain, and what waits at the end is written too."""
    journal = Journal(database, KEY)

    async def load() -> list[Future[int]]:
        journal.attach(asyncio.get_running_loop().call_soon_threadsafe)
        first = [journal.submit(lambda _c, n=n: (EVENT, n)) for n in range(100)]
        assert [await asyncio.wrap_future(future) for future in first] == list(range(100))
        last = [journal.submit(lambda _c, n=n: (EVENT, n)) for n in range(50)]
        journal.close()
        return last

    assert [future.result(0) for future in asyncio.run(load())] == list(range(50))
    assert journal.batches < journal.entries == 150
    assert verify_audit(database.engine, key=KEY.public_key()).entries == 150


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_event_loop_never_waits_for_another_writer(
    database: Database, tmp_path: Path, elsewhere: bool
) -> None:
    """While another thread or process writes, the loop goes on, and the entry is written afterwards."""
    journal = Journal(database, KEY)
    released = threading.Event()
    holding = threading.Event()

    def hold() -> None:
        other = sqlite3.connect(tmp_path / "kbs.sqlite", isolation_level=None)
        with contextlib.nullcontext() if elsewhere else database.write():
            if elsewhere:
                other.execute("BEGIN IMMEDIATE")
            holding.set()
            released.wait(20)
        other.close()

    async def ask() -> int:
        journal.attach(asyncio.get_running_loop().call_soon_threadsafe)
        began = time.monotonic()
        future = journal.submit(lambda _c: (EVENT, 7))
        assert time.monotonic() - began < 1.0
        assert not future.done()
        released.set()
        return await asyncio.wrap_future(future)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(20)
    assert asyncio.run(ask()) == 7
    thread.join()
    journal.close()


def test_a_failed_transaction_of_the_loop_answers_everybody(database: Database) -> None:
    """What cannot be written in the loop is an error for its requests, and the next ones are served."""
    journal = Journal(database, KEY)

    async def ask() -> None:
        journal.attach(asyncio.get_running_loop().call_soon_threadsafe)
        with database.write() as session:
            session.execute(text("ALTER TABLE audit_head RENAME TO elsewhere"))
        with pytest.raises(KeyUnavailable):
            await asyncio.wrap_future(journal.submit(lambda _c: (EVENT, 1)))
        with database.write() as session:
            session.execute(text("ALTER TABLE elsewhere RENAME TO audit_head"))
        assert await asyncio.wrap_future(journal.submit(lambda _c: (EVENT, 2))) == 2

    asyncio.run(ask())
    journal.close()


@pytest.fixture
def backed_up(own_broker: RunningBroker, tmp_path: Path) -> tuple[RunningBroker, Path]:
    """A running broker after a release, and a backup of it without the KEK."""
    with own_broker.client() as client:
        assert client.get_resource("kbs:///models/key/digits") == SECRET
    archive = tmp_path / "backup.tar"
    summary = back_up(own_broker.settings, archive, NOW)
    assert (summary.entries, summary.versions, summary.has_kek) == (2, 1, False)
    return own_broker, archive


def test_a_backup_holds_no_secret_in_the_clear_and_no_kek(backed_up: tuple[RunningBroker, Path]) -> None:
    """The archive is owner-only, and neither a resource nor the KEK is in it."""
    broker, archive = backed_up
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    raw = archive.read_bytes()
    for secret in (SECRET, (broker.state / "kek").read_bytes()):
        assert secret not in raw
        assert secret.hex().encode() not in raw
    with pytest.raises(ConfigError, match="cannot write"):
        back_up(broker.settings, archive, NOW)


@pytest.mark.parametrize("with_kek", [False, True])
def test_a_restored_broker_goes_on(
    own_broker: RunningBroker, platform: SimulatedPlatform, tmp_path: Path, with_kek: bool
) -> None:
    """Keys, certificate and audit log are the same; without the KEK in the archive it is put beside it."""
    archive = tmp_path / "backup.tar"
    back_up(own_broker.settings, archive, NOW, include_kek=with_kek)
    folder = tmp_path / "new" / "keys"
    if not with_kek:
        folder.mkdir(parents=True, mode=0o700)
        (folder / "kek").write_bytes((own_broker.state / "kek").read_bytes())
        (folder / "kek").chmod(0o600)
    summary = restore(KeysSettings(folder=str(folder)), archive)
    assert summary.entries == 1
    assert (folder / "tls.pem").read_bytes() == own_broker.ca.read_bytes()
    assert all(stat.S_IMODE(f.stat().st_mode) & 0o77 in (0, 0o44) for f in folder.iterdir())
    other = RunningBroker(tmp_path / "new", platform)
    try:
        with other.client() as client:
            assert client.get_resource("kbs:///models/key/digits") == SECRET
    finally:
        other.stop()
    with pytest.raises(ConfigError, match="already holds a broker"):
        restore(other.settings, archive)


def rewritten(archive: Path, change: dict[str, bytes | None]) -> Path:
    """A copy of an archive with members replaced, added, or (None) left out."""
    target = archive.with_name("changed.tar")
    with tarfile.open(archive) as source, tarfile.open(target, "w") as made:
        members = {m.name: source.extractfile(m).read() for m in source.getmembers()}  # type: ignore[union-attr]
        for name, data in {**members, **change}.items():
            if data is not None:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))
    return target


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"audit.key": b"x"}, BadCiphertext),
        ({"kbs.sqlite": b"x"}, BadCiphertext),
        ({"tls.key": None}, BadCiphertext),
        ({"kek": b"x" * 32}, BadCiphertext),
        ({"../evil": b"x"}, MalformedInput),
        ({"manifest.json": None}, MalformedInput),
        ({"manifest.json": b"[]"}, MalformedInput),
        ({"manifest.json": b"{"}, MalformedInput),
    ],
)
def test_a_changed_archive_is_refused_before_anything_is_written(
    backed_up: tuple[RunningBroker, Path], change: dict[str, bytes | None], error: type[Exception]
) -> None:
    """A member that was changed, added or left out is found, and the folder stays without a broker."""
    _, archive = backed_up
    folder = archive.parent / "target"
    with pytest.raises(error):
        restore(KeysSettings(folder=str(folder)), rewritten(archive, change))
    assert list(folder.iterdir()) == []


def test_a_forged_database_in_an_archive_is_refused(backed_up: tuple[RunningBroker, Path]) -> None:
    """Fitting digests do not help: the audit log inside is signed."""
    _, archive = backed_up
    with tarfile.open(archive) as source:
        manifest = json.load(source.extractfile("manifest.json"))  # type: ignore[arg-type]
        database = archive.parent / "forged.sqlite"
        database.write_bytes(source.extractfile("kbs.sqlite").read())  # type: ignore[union-attr]
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE audit_entries SET body = replace(body, 'tdx', 'snp')")
    connection.close()
    raw = database.read_bytes()
    manifest["sha256"]["kbs.sqlite"] = hashlib.sha256(raw).hexdigest()
    forged = rewritten(archive, {"kbs.sqlite": raw, "manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(AuditBroken):
        restore(KeysSettings(folder=str(archive.parent / "target")), forged)


def test_nothing_to_back_up(tmp_path: Path) -> None:
    """A folder without a broker, and a file that is no archive, are one-line errors."""
    with pytest.raises(ConfigError, match="no key broker"):
        back_up(KeysSettings(folder=str(tmp_path / "absent")), tmp_path / "x.tar", NOW)
    with pytest.raises(ConfigError):
        restore(KeysSettings(folder=str(tmp_path / "a")), tmp_path / "absent.tar")
    (tmp_path / "no.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(MalformedInput):
        restore(KeysSettings(folder=str(tmp_path / "b")), tmp_path / "no.tar")


def test_reflection_sees_every_table(database: Database) -> None:
    """Every table of the database has a mapped class, so a backup leaves none out."""
    described = MetaData()
    described.reflect(database.engine)
    assert set(described.tables) == set(Base.metadata.tables)
