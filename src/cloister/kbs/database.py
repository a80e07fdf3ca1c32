"""Connections and transactions of the broker's database: SQLite by default, PostgreSQL for several brokers.

SQLite runs in WAL mode with full synchronisation, so that what was acknowledged survives the process and a
power failure. What is in the tables: ``cloister.kbs.records``; how they came to be: ``migrations``.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from cloister.errors import ConfigError, KeyUnavailable, MissingDependencyError
from cloister.kbs.migrations import migrate
from cloister.kbs.queries import Query
from cloister.kbs.turns import one_of_many
from cloister.settings import KeysSettings

_BEGIN = "cloister_begin"
_BUSY_S = 30


class DatabaseFailed(KeyUnavailable):
    """The database does not answer, or not now: nobody has refused anything."""


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

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Do something that only one thread of one broker on this database may do at a time.

        Raises:
            KeyUnavailable: another one does it now, or the database does not answer.
        """
        with translated(), one_of_many(self.engine, what):
            yield

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
            f"no driver for this database: {first_line(error)}", hint="pip install 'cloister[postgres]'"
        ) from error
    except ArgumentError as error:
        raise ConfigError(f"database URL is not usable: {first_line(error)}") from error
    except SQLAlchemyError as error:
        raise ConfigError(f"cannot open the database: {first_line(error)}") from error


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


@contextmanager
def translated() -> Iterator[None]:
    """What a database driver raises, as DatabaseFailed."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise DatabaseFailed(f"the broker's database failed: {type(error).__name__}") from error


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own transactions begin too late; see _sqlite_begin
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def first_line(error: BaseException) -> str:
    """The first line of an error's text; drivers add the statement, and hints, below it."""
    return (str(error).splitlines() or [type(error).__name__])[0]
