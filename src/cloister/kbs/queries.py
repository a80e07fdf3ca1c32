"""Statements that run for every release: compiled once, and on SQLite handed to the driver as they are.

SQLAlchemy's way to the driver takes longer than SQLite takes to answer. On other databases the wait is the
network's, and the statement goes the usual way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection


class Query:
    """One statement over columns of numbers, text and bytes, with named parameters."""

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        compiled = statement.compile(dialect=sqlite.dialect(paramstyle="named"))  # type: ignore[attr-defined]
        self._text = str(compiled)
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}

    def rows(self, connection: Connection, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Every row, as a tuple in the order of the columns; within the transaction if there is one."""
        given = {**self._fixed, **(values or {})}
        if connection.dialect.name == "sqlite":
            return _driver(connection).execute(self._text, given).fetchall()
        return connection.execute(self._statement, values).all()

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement without result, once for each set of values."""
        if connection.dialect.name == "sqlite":
            _driver(connection).executemany(self._text, [{**self._fixed, **row} for row in rows])
        else:
            connection.execute(self._statement, list(rows))


def _driver(connection: Connection) -> sqlite3.Connection:
    driver: Any = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        raise TypeError("not SQLite's own driver")
    return driver
