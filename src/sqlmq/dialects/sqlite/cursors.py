"""Two ways to SQLite: the driver's cursor for what is done often, SQLAlchemy's statements where an application sees errors."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, CursorResult
    from sqlalchemy.engine.interfaces import DBAPICursor


@contextmanager
def driver_cursor(conn: Connection) -> Iterator[DBAPICursor]:
    """A cursor for a block. Through SQLAlchemy each statement takes 25 us more."""
    # Of the pool's connection, not the driver's: this runs on drivers for asyncio too.
    cursor = conn.connection.cursor()
    try:
        yield cursor
    finally:
        with suppress(sqlite3.Error):  # it has gone with its connection, after an interrupt
            cursor.close()


class SqlalchemyCursor:
    """What an append needs of a cursor, by statements of SQLAlchemy's."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._result: CursorResult[Any] | None = None

    def execute(self, statement: str, parameters: tuple[object, ...]) -> None:
        self._result = self._conn.exec_driver_sql(statement, parameters)

    def executemany(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        self._conn.exec_driver_sql(statement, rows)

    def fetchall(self) -> Sequence[Any]:
        return () if self._result is None else self._result.all()
