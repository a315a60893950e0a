"""Two ways to run statements: the driver's cursor for the hot ones, SQLAlchemy where an application sees errors."""

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
    """Open a cursor of the driver for a block. Through SQLAlchemy, each statement takes 25 us more."""
    # From the pool's connection, not the driver's, because this runs on drivers for asyncio too.
    cursor = conn.connection.cursor()
    try:
        yield cursor
    finally:
        with suppress(sqlite3.Error):  # after an interrupt it was closed with its connection
            cursor.close()


class SqlalchemyCursor:
    """The methods of a cursor that an append needs, run by SQLAlchemy."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._result: CursorResult[Any] | None = None

    def execute(self, statement: str, parameters: tuple[object, ...]) -> None:
        self._result = self._conn.exec_driver_sql(statement, parameters)

    def executemany(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        self._conn.exec_driver_sql(statement, rows)

    def fetchall(self) -> Sequence[Any]:
        return () if self._result is None else self._result.all()
