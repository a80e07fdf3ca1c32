"""Several brokers on one PostgreSQL database."""

from __future__ import annotations

import base64
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import create_engine, inspect, text

from cloister.attest.simulated import SimulatedPlatform
from cloister.crypto.keys import SecretKey
from cloister.errors import CloisterError, ConfigError, KeyUnavailable
from cloister.kbs.audit import AuditEvent, begin_log, read_audit_log, verify_audit, verify_audit_log
from cloister.kbs.backup import back_up, restore
from cloister.kbs.client import BrokerClient
from cloister.kbs.database import Database
from cloister.kbs.journal import Journal
from cloister.kbs.kek import FileKek, WrappedKey
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.records import Base, load_version, store_version
from cloister.kbs.rotation import rotate_kek
from cloister.kbs.state import open_state
from cloister.settings import KeysSettings
from tests.kbs.broker_process import Run, RunningBroker, Tee
from tests.kbs.broker_subprocess import BrokerProcess
from tests.kbs.conftest import SECRET
from tests.kbs.postgres_server import dump, running_server

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
URI = "kbs:///models/key/digits"
Pair = tuple[RunningBroker, RunningBroker]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server for this module."""
    with running_server() as address:
        yield address


@pytest.fixture
def database_name(server: str) -> str:
    """A new database."""
    name = f"keys{next(NUMBERS)}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return name


@pytest.fixture
def url(server: str, database_name: str) -> str:
    """Its URL."""
    return f"{server}/{database_name}"


def test_brokers_that_start_together_make_one_schema(url: str) -> None:
    """Eight first starts at once: the steps are taken once, the log begins once."""
    key = Ed25519PrivateKey.generate()

    def start(_number: int) -> None:
        database = Database(url)
        with database.write() as session:
            begin_log(session, key)
        database.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(8)))
    database = Database(url)
    found = inspect(database.engine)
    for table in Base.metadata.sorted_tables:
        described = {c["name"]: (str(c["type"]), c["nullable"]) for c in found.get_columns(table.name)}
        dialect = database.engine.dialect
        assert described == {c.name: (c.type.compile(dialect), c.nullable) for c in table.columns}
    database.close()


def test_many_brokers_make_one_chain(url: str) -> None:
    """Entries of four brokers get one order without gaps."""
    key = Ed25519PrivateKey.generate()
    databases = [Database(url) for _ in range(4)]
    with databases[0].write() as session:
        begin_log(session, key)
    journals = [Journal(database, key) for database in databases]
    event = AuditEvent(kind="release", time=NOW, resource="a/b/c")
    waiting = [journals[n % 4].submit(lambda _c, n=n: (event, n)) for n in range(200)]
    assert [future.result(60) for future in waiting] == list(range(200))
    for journal in journals:
        journal.close()
    assert verify_audit(databases[0].engine, key=key.public_key()).entries == 200
    for database in databases:
        database.close()


@pytest.fixture
def brokers(url: str, platform: SimulatedPlatform, tmp_path: Path) -> Iterator[Pair]:
    """Two brokers with one state folder and one database."""
    keys = str(tmp_path / "keys")
    pair = tuple(RunningBroker(tmp_path / n, platform, folder=keys, database=url) for n in ("one", "two"))
    pair[0].put(URI, SECRET)
    yield pair[0], pair[1]
    for broker in pair:
        broker.stop()


def test_a_session_goes_on_at_the_other_broker(brokers: Pair) -> None:
    """Challenge at one, evidence at the other, release at the first: by cookie, and by token."""
    one, two = brokers
    with one.http() as here, two.http() as there:
        run = Run(one, here)
        assert run.auth().status_code == 200
        there.cookies.set("kbs-session-id", here.cookies["kbs-session-id"])
        answer = there.post("/kbs/v0/attest", json=run.body())
        assert answer.status_code == 200
        assert run.key.decrypt(run.get("models/key/digits").json()) == SECRET
        assert run.attest(run.body()).status_code == 401
        here.cookies.clear()
        assert run.key.decrypt(run.get("models/key/digits", answer.json()["token"]).json()) == SECRET
    assert verify_audit_log(one.settings).releases == 2

    assert {
        len(row["evidence_digest"]) for row in read_audit_log(one.settings) if row["kind"] == "release"
    } == {64}


def test_what_one_broker_deletes_the_other_does_not_release(
    brokers: Pair,
) -> None:
    """Nothing is remembered of a key between two requests."""
    one, two = brokers
    with two.client() as client:
        assert client.get_resource(URI) == SECRET
        with one.admin() as admin:
            admin.delete_resource(URI)
        with pytest.raises(CloisterError, match="not found"):
            client.get_resource(URI)


def test_nothing_secret_is_in_a_dump(brokers: Pair, server: str, database_name: str) -> None:
    """After a release neither the key nor the KEK is in the database's dump, in any form."""
    with brokers[1].client() as client:
        assert client.get_resource(URI) == SECRET
    content = dump(server, database_name)
    assert "resource_versions" in content
    for secret in (
        SECRET,
        (brokers[0].state / "kek").read_bytes(),
        (brokers[0].state / "session.key").read_bytes(),
    ):
        forms = [
            secret.hex(),
            base64.b64encode(secret).decode(),
            base64.urlsafe_b64encode(secret).decode()[:40],
        ]
        assert not any(form in content for form in forms)
    assert SECRET[:10].decode() not in content


def test_backup_from_postgresql_to_both(brokers: Pair, server: str, tmp_path: Path) -> None:
    """A backup of the running pair becomes a broker on SQLite, and one on another PostgreSQL database."""
    settings = brokers[0].settings
    archive = tmp_path / "backup.tar"
    assert back_up(settings, archive, NOW, include_kek=True).entries == 1
    name = f"restored{next(NUMBERS)}"
    database = Database(f"{server}/postgres")
    with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    database.close()
    for number, target in enumerate(("", f"{server}/{name}")):
        made = KeysSettings(folder=str(tmp_path / f"new{number}"), database=target)
        restore(made, archive)
        state = open_state(made, datetime.now(UTC))
        with state.database.write() as session:
            assert load_version(session, state.kek, ResourcePath.from_uri(URI))[0] == SECRET
        state.administration().store(ResourcePath.from_uri("kbs:///models/key/new"), b"x")
        state.close()
        assert verify_audit_log(made).entries == 2
    with pytest.raises(ConfigError, match="already holds"):
        restore(KeysSettings(folder=str(tmp_path / "new2"), database=settings.database), archive)


def test_one_of_two_brokers_killed_under_load(url: str, platform: SimulatedPlatform, tmp_path: Path) -> None:
    """``kill -9`` while eight clients ask: not one release fails, and the audit chain is whole."""
    keys = str(tmp_path / "keys")
    one = BrokerProcess(tmp_path / "one", platform, folder=keys, database=url)
    two = BrokerProcess(tmp_path / "two", platform, folder=keys, database=url)
    with one.admin() as admin:
        admin.put_resource(URI, SECRET)
    ended = threading.Event()
    released: list[int] = []
    failures: list[str] = []

    def ask(number: int) -> None:
        first, second = (one, two) if number % 2 else (two, one)
        count = 0
        while not ended.is_set():
            with first.client(second.url) as client:
                for _ in range(5):
                    try:
                        assert client.get_resource(URI) == SECRET
                    except CloisterError as error:
                        failures.append(str(error))
                    count += 1
        released.append(count)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    one.kill()
    time.sleep(2.0)
    ended.set()
    for thread in threads:
        thread.join(120)
    two.assert_running()
    two.stop()
    assert failures == []
    assert len(released) == 8
    assert verify_audit_log(two.settings).releases >= sum(released)


def test_one_of_two_brokers_stopped_under_load(brokers: Pair) -> None:
    """An orderly stop, as in an upgrade, is no failed release either."""
    one, two = brokers
    stop = threading.Timer(0.5, one.stop)
    with BrokerClient(f"{one.url},{two.url}", attester=Tee(one.platform), ca=one.ca) as client:
        stop.start()
        for _ in range(60):
            assert client.get_resource(URI) == SECRET
    stop.join()


def test_two_brokers_that_rotate_at_once(brokers: Pair) -> None:
    """Each rotation either happens or is refused as one too many; no key is lost, and one KEK is left."""
    one, two = brokers
    uris = [f"kbs:///models/key/r{number}" for number in range(60)]
    for uri in uris[:55]:
        one.put(uri, uri.encode())
    outcomes: list[str] = []
    begin = threading.Barrier(3)

    def rotate(broker: RunningBroker) -> None:
        with broker.admin() as admin:
            begin.wait()
            for _ in range(4):
                try:
                    admin.rotate_kek()
                    outcomes.append("done")
                except CloisterError as error:
                    outcomes.append(str(error))

    def store() -> None:
        begin.wait()
        for uri in uris[55:]:
            two.put(uri, uri.encode())

    threads = [threading.Thread(target=rotate, args=(broker,)) for broker in brokers]
    threads.append(threading.Thread(target=store))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert "done" in outcomes
    refused = [outcome for outcome in outcomes if outcome != "done"]
    assert all("another rotation" in reason or "run the rotation again" in reason for reason in refused)
    with one.admin() as admin:
        admin.rotate_kek()
    assert (one.state / "kek").stat().st_size == 32
    with one.client() as here, two.client() as there:
        for uri in uris:
            assert here.get_resource(uri) == there.get_resource(uri) == uri.encode()


def test_a_rotation_that_ends_while_a_key_is_stored(url: str, tmp_path: Path) -> None:
    """A key that was wrapped before the old KEK was forgotten, and written after, opens all the same."""
    databases = Database(url), Database(url)
    keks = FileKek(tmp_path / "kek"), FileKek(tmp_path / "kek")

    class Slow(FileKek):
        """Wraps, and then takes its time."""

        rotated = False

        def wrap(self, key: SecretKey, resource: str) -> WrappedKey:
            wrapped = super().wrap(key, resource)
            if not self.rotated:
                self.rotated = True
                rotate_kek(databases[1], keks[1], renew=True, retire=True)
            return wrapped

    path = ResourcePath("a", "b", "c")
    with databases[0].write() as session:
        store_version(session, Slow(tmp_path / "kek"), path, SECRET, created="2026")
    with databases[0].read() as session:
        assert load_version(session, keks[0], path)[0] == SECRET
    for database in databases:
        database.close()


def test_a_second_rotation_is_refused(url: str, tmp_path: Path) -> None:
    """While one broker rotates another one is told so, at once, and nothing changes."""
    databases = Database(url), Database(url)
    kek = FileKek(tmp_path / "kek")
    before = kek.key_id
    with databases[0].alone("rotation"), pytest.raises(KeyUnavailable, match="another rotation"):
        rotate_kek(databases[1], kek, renew=True, retire=True)
    assert kek.key_id == before
    assert rotate_kek(databases[1], kek, renew=True, retire=True).kek_id != before
    for database in databases:
        database.close()


def test_text_that_postgresql_cannot_hold(url: str, platform: SimulatedPlatform, tmp_path: Path) -> None:
    """NUL in reasons, policies and ids is replaced or refused before the database sees it."""
    broker = RunningBroker(tmp_path, platform, database=url, policy="")
    broker.put(URI, SECRET)
    try:
        with broker.admin() as admin:
            with pytest.raises(CloisterError, match="without NUL"):
                admin.set_policy("// \0\npermit (principal, action, resource);")
            admin.revoke(URI, "lost\0laptop")
            assert admin.show_resource(URI)["versions"][0]["standing"] == "revoked: lost laptop"
        token = (broker.state / "admin.token").read_text()
        with broker.http() as http:
            path, headers = "/kbs/v0/reference-value/a%00b", {"Authorization": f"Bearer {token}"}
            assert http.get(path, headers=headers).status_code == 404
    finally:
        broker.stop()


def test_a_database_that_is_away_is_no_refusal(
    url: str, database_name: str, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    """While the database is away everything that needs it is 503, and afterwards the broker goes on."""
    broker = RunningBroker(tmp_path, platform, database=url, policy="")
    broker.put(URI, SECRET)
    token = (broker.state / "admin.token").read_text()
    try:
        with broker.http() as http:
            run = Run(broker, http)
            run.auth()
            run.attest(run.body())
            with away(url, database_name):
                for path in (f"resource/{URI.removeprefix('kbs:///')}", "resource"):
                    headers = {} if "/" in path else {"Authorization": f"Bearer {token}"}
                    answer = http.get(f"/kbs/v0/{path}", headers=headers)
                    assert answer.status_code == 503, answer.text
                    assert "postgres" not in answer.text
                run.auth()
                assert run.attest(run.body()).status_code == 503
        with broker.client() as client, broker.admin() as admin:
            admin.set_policy('permit (principal, action == Action::"release", resource);')
            assert client.get_resource(URI) == SECRET
    finally:
        broker.stop()


@contextmanager
def away(url: str, name: str) -> Iterator[None]:
    """The database takes no connections, and has none."""
    engine = create_engine(url.rpartition("/")[0] + "/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
        connection.execute(text(ended), {"name": name})
        yield
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    engine.dispose()


def test_the_driver_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver the error says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError) as caught:
        Database("postgresql+psycopg://cloister@127.0.0.1:1/x")
    shown: Any = caught.value
    assert "cloister[postgres]" in shown.hint
