"""SQLite, embedded: one file, any number of threads and processes, one writer at a time.

Our own transactions begin IMMEDIATE. One that reads first and writes later fails at once, without waiting, if another
connection wrote in between. https://www.sqlite.org/lang_transaction.html
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    StaticPool,
    create_engine,
    event,
    func,
    literal,
    literal_column,
    true,
    type_coerce,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sqlmq.dialects.base import (
    Dialect,
    LockedRow,
    PartitionSlice,
    Position,
    TopicGrownError,
    closed_on_error,
    most_partitions,
)
from sqlmq.dialects.sqlite import errors, file, health
from sqlmq.dialects.sqlite.cursors import SqlalchemyCursor, driver_cursor
from sqlmq.errors import InvalidURLError, MissingDependencyError, UnknownTopicError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.message import microseconds_since_1970, moment_at

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import URL, Connection, Engine, Insert, Select, Table
    from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

    from sqlmq.errors import SqlmqError
    from sqlmq.model.message import LogRow, RecordBatch
    from sqlmq.reports.doctor import DatabaseStatus

_BUSY_TIMEOUT_SECONDS = 10
_BUSY_TIMEOUT_MS = 33
"""The sum of SQLite's first pauses for the writer's lock, 1, 2, 5, 10 and 15 ms. Later ones would be longer."""

NOW_US = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
"""The current time in microseconds since 1970, exact to a millisecond, in every SQLite since 3.8."""


class Sqlite(Dialect):
    """SQLite 3.35 and later."""

    name: ClassVar[str] = "sqlite"
    creates_schema_itself: ClassVar[bool] = True
    one_writer: ClassVar[bool] = True
    has_change_token: ClassVar[bool] = True

    def __init__(self, schema: str | None) -> None:
        if schema is not None:
            message = "schema= is for Postgres; SQLite has no schemas. Leave it out, or use another file."
            raise InvalidURLError(message)
        super().__init__(schema)

    def create_engine(self, url: URL) -> Engine:
        if (url.drivername.partition("+")[2] or "pysqlite") != "pysqlite":
            message = f"On SQLite, sqlmq works with Python's own driver: sqlite:///file.db, not {url.drivername}://"
            raise InvalidURLError(message)
        in_memory = is_in_memory(url)
        if not in_memory and not (url.database or "").startswith("file:"):
            url = url.set(database=str(Path(url.database or "").absolute()))
        engine = create_engine(
            url,
            hide_parameters=True,
            connect_args={"timeout": _BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
            # A database in memory belongs to its connection, and every other connection is another database.
            **({"poolclass": StaticPool} if in_memory else {"max_overflow": 15}),
        )
        event.listen(engine, "connect", partial(_set_up_connection, url.database))
        self.release_invalidated(engine)
        return engine

    def create_async_engine(self, url: URL) -> AsyncEngine:
        from sqlalchemy.ext.asyncio import create_async_engine

        try:
            engine = create_async_engine(
                url.set(drivername="sqlite+aiosqlite"),
                hide_parameters=True,
                connect_args={"timeout": _BUSY_TIMEOUT_SECONDS},
                max_overflow=15,
            )
        except ModuleNotFoundError as error:
            raise MissingDependencyError("aiosqlite", "aiosqlite") from error
        event.listen(engine.sync_engine, "connect", partial(_set_up_connection, url.database))
        self.release_invalidated(engine.sync_engine)
        return engine

    def release_invalidated(self, engine: Engine) -> None:
        if not event.contains(engine, "invalidate", _roll_back):
            event.listen(engine, "invalidate", _roll_back)

    def blocking_url(self, url: URL) -> URL:
        return url.set(drivername="sqlite") if url.drivername == "sqlite+aiosqlite" else url

    def database_status(self, conn: Connection) -> DatabaseStatus:
        return health.database_status(conn)

    def is_private(self, url: URL) -> bool:
        return is_in_memory(url)

    def check_engine(self, engine: Engine) -> None:
        if engine.dialect.driver != "pysqlite":
            message = f"On SQLite, sqlmq works with Python's own driver pysqlite, not {engine.dialect.driver!r}."
            raise InvalidURLError(message)

    def for_transactions(self, engine: Engine) -> Engine:
        return engine

    def for_single_statements(self, engine: Engine) -> Engine:
        return engine

    def begin(self, conn: Connection) -> None:
        if not conn.in_transaction():
            conn.begin()
        # An event of the user's engine may have begun a transaction. The UPDATE of an append makes that the writer.
        is_begun = _in_transaction(conn)
        if not is_begun:
            _begin_immediately(conn)
        file.check(conn, has_read=not is_begun)

    def check_in_place(self, conn: Connection) -> None:
        file.check(conn, has_read=False)

    def is_autocommit(self, conn: Connection) -> bool:
        # Many engines set the driver to autocommit and begin by an event. https://docs.sqlalchemy.org/en/20/dialects/sqlite.html
        asked_for = conn.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        set_up = conn.dialect.detect_autocommit_setting(_dbapi_connection(conn)) and not _in_transaction(conn)
        return asked_for or set_up

    def lock_and_watch(
        self, conn: Connection, wanted: Select[Any], *, quiet_seconds: float, vanished_seconds: float
    ) -> LockedRow:
        # Only processes of this machine lock the file. Their locks end with them, so no limit is needed.
        del quiet_seconds, vanished_seconds
        # Changes nothing. Makes a transaction that began as a reader the writer, while it has not read anything.
        conn.exec_driver_sql("UPDATE sqlmq_claim SET epoch = epoch WHERE group_id = -1")
        conn.exec_driver_sql(f"SAVEPOINT {_HELD}")
        return LockedRow(conn.execute(wanted).first(), None)

    def is_same_transaction(self, token: str | None) -> ColumnElement[bool]:
        del token
        return true()

    def release_savepoint(self, conn: Connection) -> bool:
        # The savepoint is gone if a statement of the user's, or on a full disk SQLite itself, ended the transaction.
        try:
            conn.exec_driver_sql(f"RELEASE {_HELD}")
        except DBAPIError as error:
            if "no such savepoint" in str(error.orig):
                return False
            raise
        return True

    def lock_schema(self, conn: Connection, version_table: str) -> None:
        del version_table
        self.begin(conn)

    def now(self) -> ColumnElement[object]:
        return literal_column(NOW_US)

    def seconds_from_now(self, seconds: float) -> ColumnElement[object]:
        moment: ColumnElement[object] = literal_column(NOW_US) + literal(round(seconds * 1e6), BigInteger)
        return moment

    def moment(self, at: datetime) -> ColumnElement[object]:
        return literal(microseconds_since_1970(at), BigInteger)

    def microseconds(self, moment: ColumnElement[object]) -> ColumnElement[int]:
        return type_coerce(moment, BigInteger)

    def moment_of(self, stored: int) -> datetime:
        return moment_at(stored)

    def moment_shown(self, shown: str | None) -> datetime | None:
        return None if shown is None else datetime.fromisoformat(shown)

    def random_bits(self, bits: int) -> ColumnElement[int]:
        return literal_column(f"(random() & {(1 << bits) - 1})", BigInteger)

    def age_seconds(self, moment: ColumnElement[object]) -> ColumnElement[float]:
        return type_coerce((literal_column(NOW_US) - type_coerce(moment, Float)) / 1e6, Float)

    def insert_new(self, table: Table, unique: Sequence[str]) -> Insert:
        return sqlite.insert(table).on_conflict_do_nothing(index_elements=unique)

    def insert_or_update(
        self, table: Table, unique: Sequence[str], changed: Sequence[str], kept: Sequence[str] = ()
    ) -> Insert:
        new = sqlite.insert(table)
        columns: dict[str, ColumnElement[Any]] = {name: new.excluded[name] for name in changed}
        columns |= {name: func.coalesce(table.c[name], new.excluded[name]) for name in kept}
        return new.on_conflict_do_update(index_elements=unique, set_=columns)

    def append(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        with driver_cursor(conn) as cursor:
            return self._append(cursor, parts, contents)

    def publish(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int] | None:
        # By SQLAlchemy, so that the application gets the same errors as for its own statements.
        return self._append(SqlalchemyCursor(conn), parts, contents)

    def _append(
        self, cursor: DBAPICursor | SqlalchemyCursor, parts: Sequence[PartitionSlice], contents: RecordBatch
    ) -> list[int]:
        headers = [None if raw is None else raw.decode() for raw in contents.headers]
        columns = iter(contents.keys), iter(contents.values), iter(headers)
        bases = []
        for part in parts:
            # Changes nothing. Makes this transaction the writer, so that no other changes what it reads next.
            cursor.execute(_LOCK_SQL, (part.partition_id,))
            locked = cursor.fetchall()
            if not locked:
                raise UnknownTopicError(part.topic)
            if locked[0][0] != part.topic_partitions:
                raise TopicGrownError
        failpoint("append.locked")
        for part in parts:
            cursor.execute(_BASE_SQL, (part.partition_id,))
            ((base,),) = cursor.fetchall()
            places = repeat(part.partition_id), range(base, base + part.messages)
            cursor.executemany(_INSERT_SQL, list(zip(*places, *columns, strict=False)))
            bases.append(base)
        return bases

    def identify(self, conn: Connection) -> tuple[object, ...]:
        file.check(conn, has_read=False)
        opened = file.of(conn)
        # A database in memory belongs to its connection.
        return ("memory", id(conn.connection.driver_connection)) if opened is None else ("file", opened.number)

    def read_small(self, conn: Connection, positions: Sequence[Position], limit: int, small: int) -> list[LogRow]:
        rows: list[LogRow] = []
        with driver_cursor(conn) as cursor:
            ready = _ready(cursor, positions, most_partitions(limit))
            for position in ready:
                cursor.execute(_READ_SMALL_SQL, (small, *position, max(1, limit // len(ready))))
                rows += cursor.fetchall()
        return rows

    def read_within(self, conn: Connection, positions: Sequence[Position], limit: int, max_bytes: int) -> list[LogRow]:
        rows: list[LogRow] = []
        with driver_cursor(conn) as cursor:
            ready = _ready(cursor, positions, most_partitions(limit))
            for position in ready:
                before = 0
                cursor.execute(_READ_SQL, (*position, max(1, limit // len(ready))))
                while (row := cursor.fetchone()) is not None:
                    if before and before + len(row[3]) > max_bytes // len(ready):
                        break
                    before += len(row[3])
                    rows.append(row)
        return rows

    def ready(self, conn: Connection, positions: Collection[Position]) -> set[Position]:
        wanted = list(positions)
        found = set()
        for first in range(0, len(wanted), _PROBES):
            some = wanted[first : first + _PROBES]
            sql = _READY_SQL.format(", ".join(["(?, ?)"] * len(some)))
            parameters = tuple(number for position in some for number in position)
            found |= {Position(id_, offset) for id_, offset in conn.exec_driver_sql(sql, parameters)}
        return found

    def change_token(self, conn: Connection) -> int:
        file.check(conn, has_read=False)
        number: int = _connection(conn).execute("PRAGMA data_version").fetchone()[0]
        return number

    def translate(self, error: Exception, where: str) -> SqlmqError | None:
        return errors.translate(error, where)

    def is_transient(self, error: Exception) -> bool:
        return errors.is_transient(error)

    def is_disconnect(self, error: Exception) -> bool:
        return errors.is_moved(error)


_HELD = "sqlmq_held"

_LOCK_SQL = "UPDATE sqlmq_partition SET start_offset = start_offset WHERE id = ? AND topic_id IS NOT NULL RETURNING topic_partitions"
_BASE_SQL = """
    SELECT max(p.start_offset, coalesce((
        SELECT m.msg_offset + 1 FROM sqlmq_message m
        WHERE m.partition_id = p.id AND m.msg_offset >= p.start_offset ORDER BY m.msg_offset DESC LIMIT 1
    ), 0))
    FROM sqlmq_partition p WHERE p.id = ?
"""
_INSERT_SQL = "INSERT INTO sqlmq_message (partition_id, msg_offset, key, value, headers) VALUES (?, ?, ?, ?, ?)"
# Excludes deleted topics, whose messages may be deleted in part.
_PROBE_SQL = """
    SELECT 1 FROM sqlmq_partition p JOIN sqlmq_message m ON m.partition_id = p.id
    WHERE p.id = ? AND p.topic_id IS NOT NULL AND m.msg_offset >= ? LIMIT 1
"""
# CROSS JOIN keeps this order. https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join
_READY_SQL = """
    WITH wanted (id, position) AS (VALUES {})
    SELECT w.id, w.position FROM wanted w CROSS JOIN sqlmq_partition p ON p.id = w.id AND p.topic_id IS NOT NULL
    WHERE EXISTS (SELECT 1 FROM sqlmq_message m WHERE m.partition_id = w.id AND m.msg_offset >= w.position)
"""
_PROBES = 1_000
"""How many positions one statement asks about. Each takes two parameters, and SQLite allows 32,766."""
_READ_SQL = """
    SELECT partition_id, msg_offset, key, value, headers, created_at FROM sqlmq_message
    WHERE partition_id = ? AND msg_offset >= ? ORDER BY msg_offset LIMIT ?
"""
# length() does not read the value: SQLite stores it in the row's header.
_READ_SMALL_SQL = _READ_SQL.replace(" value,", " CASE WHEN length(value) <= ? THEN value END,")


def is_in_memory(url: URL) -> bool:
    """Whether *url* names a database without a file."""
    return url.database in (None, "", ":memory:") or "mode=memory" in (url.database or "")


def _set_up_connection(path: str | None, connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    with closed_on_error(connection):
        cursor = connection.cursor()
        file.remember(record.info, cursor, path)
        # In WAL, readers and the writer do not block each other. The file keeps the mode, so the first connection sets it.
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone() not in (("wal",), ("memory",)):
            cursor.execute("PRAGMA journal_mode = WAL")
        # With NORMAL, a power failure can lose an acknowledged commit.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()


def _roll_back(connection: DBAPIConnection, _record: object, _error: object) -> None:
    # A connection that is closed with an unfinished statement, for example after Ctrl-C, or when a task was cancelled,
    # keeps its lock on the file as long as anything refers to the statement, and the traceback does: in a task, until the
    # garbage collector comes. https://www.sqlite.org/c3ref/close.html
    driven = getattr(connection, "driver_connection", connection)
    with suppress(sqlite3.Error, SQLAlchemyError):
        if isinstance(driven, sqlite3.Connection):
            driven.rollback()
        else:
            # By aiosqlite, in the thread that runs the statement. Outside of the event loop, this raises.
            connection.rollback()


def _begin_immediately(conn: Connection) -> None:
    """Begin as the writer. Waits as long as the connection's timeout, but tries more often than SQLite does.

    SQLite's pauses grow to 100 ms, so it rarely tries in the short gap between two transactions of a busy writer.
    https://www.sqlite.org/c3ref/busy_timeout.html
    """
    with driver_cursor(conn) as cursor:
        cursor.execute("PRAGMA busy_timeout")
        (timeout_ms,) = cursor.fetchone() or (0,)
        cursor.execute(f"PRAGMA busy_timeout = {min(_BUSY_TIMEOUT_MS, timeout_ms)}")
        try:
            for attempts_left in reversed(range(max(1, timeout_ms // _BUSY_TIMEOUT_MS))):
                try:
                    cursor.execute("BEGIN IMMEDIATE")
                except sqlite3.Error as error:
                    if not attempts_left or not errors.is_busy(error):
                        raise
                else:
                    return
        finally:
            with suppress(sqlite3.Error):  # after an interrupt the connection is closed
                cursor.execute(f"PRAGMA busy_timeout = {timeout_ms}")


def _ready(cursor: DBAPICursor, positions: Sequence[Position], at_most: int) -> list[Position]:
    """Return the first *at_most* of *positions* that have a message at or after them."""
    ready = []
    for position in positions:
        cursor.execute(_PROBE_SQL, position)
        if cursor.fetchone():
            ready.append(position)
            if len(ready) == at_most:
                break
    return ready


def _in_transaction(conn: Connection) -> bool:
    # The driver is sqlite3 or aiosqlite. The pool no longer knows a detached connection, so ask SQLAlchemy's dialect.
    connection: Any = conn.dialect.get_driver_connection(_dbapi_connection(conn))
    return bool(connection.in_transaction)


def _dbapi_connection(conn: Connection) -> DBAPIConnection:
    connection = conn.connection.dbapi_connection
    assert connection is not None  # noqa: S101 - a connection in use has one
    return connection


def _connection(conn: Connection) -> sqlite3.Connection:
    connection = conn.connection.driver_connection
    assert isinstance(connection, sqlite3.Connection)  # noqa: S101 - check_engine ensures it
    return connection
