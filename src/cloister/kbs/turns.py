"""One at a time among all brokers of a database, for what takes several transactions.

On PostgreSQL it is an advisory lock of a connection, on SQLite a lock on a file beside the database. Either
one ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import Engine

from cloister.errors import KeyUnavailable


@contextmanager
def one_of_many(engine: Engine, what: str) -> Iterator[None]:
    """Hold the turn for ``what`` while the block runs; does not wait for it.

    Raises:
        KeyUnavailable: somebody else has it.
    """
    held = _file if engine.dialect.name == "sqlite" else _advisory
    with held(engine, what):
        yield


@contextmanager
def _advisory(engine: Engine, what: str) -> Iterator[None]:
    number = {"lock": int.from_bytes(hashlib.sha256(f"cloister {what}".encode()).digest()[:8], signed=True)}
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), number).scalar():
            raise _taken(what)
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), number)


@contextmanager
def _file(engine: Engine, what: str) -> Iterator[None]:
    if not engine.url.database or engine.url.database == ":memory:":
        yield  # nobody else can open it
        return
    path = Path(f"{engine.url.database}.{what.replace(' ', '-')}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise _taken(what) from error
    finally:
        os.close(descriptor)


def _taken(what: str) -> KeyUnavailable:
    return KeyUnavailable(f"another {what} is under way", hint="run it again when that one has ended")
