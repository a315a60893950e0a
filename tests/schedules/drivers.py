"""Connections of both drivers that ask the conductor before each statement, and how to see who waits for whom."""

from __future__ import annotations

import sqlite3
import threading
import time
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from tests.schedules.conductor import PATIENCE_SECONDS, current

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from psycopg.abc import PQGen

    from sqlmq import MQ
    from tests.schedules.conductor import Session

T = TypeVar("T")
RV = TypeVar("RV")

CONNECTIONS = 3
"""So many of each queue are opened before anybody is conducted, so that all schedules meet the same."""


def conduct(mq: MQ) -> None:
    """Have the statements of *mq* wait for their turn in the threads of sessions, and nothing of it run by itself."""
    engine = mq.engine
    connect = _connect_postgres if engine.dialect.name == "postgresql" else _connect_sqlite
    if engine.dialect.name == "postgresql":
        # The queue's own way to connect, which comes first: an event of the dialect's can't be put before others.
        event.remove(engine, "do_connect", mq._database.watchdog._connect)
    event.listen(engine, "do_connect", connect)
    if engine.dialect.name == "sqlite":
        # What a crash of the machine would do is not looked at here.
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous = OFF"))
    for thread in (
        mq._background.heartbeat,
        mq._background.housekeeping,
        mq._background.scheduler,
        mq._background.retention,
    ):
        setattr(thread, "run", lambda: None)  # noqa: B010 - for mypy
    connections = [engine.connect() for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.close()


# Postgres.


class ConductedPostgres(psycopg.Connection[Any]):
    """A connection whose every round trip is a step of the session."""

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        session = current()
        if session is None or not self._sends_something(gen):
            return super().wait(gen, interval, timeout)
        session.pid = self.pgconn.backend_pid
        session.pause(_statement(gen))
        try:
            return super().wait(gen, interval, timeout)
        finally:
            session.has_ended_transaction |= self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE

    def _sends_something(self, gen: PQGen[Any]) -> bool:
        name = _code(gen).__name__
        is_idle = self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        return not name.startswith("_set_") and not (is_idle and name in ("_commit_gen", "_rollback_gen"))


def _statement(gen: PQGen[Any]) -> str:
    """What the generator of the driver is about to send; that is in its frame alone."""
    frame = _code(gen).gi_frame
    query = frame.f_locals.get("query") if frame else None
    if query is None:
        return _code(gen).__name__.strip("_").removesuffix("_gen")
    return _short(query.decode() if isinstance(query, bytes) else str(query))


def _code(gen: PQGen[Any]) -> GeneratorType[Any, Any, Any]:
    assert isinstance(gen, GeneratorType)
    return gen


def _connect_postgres(
    _dialect: object, _record: object, cargs: list[Any], cparams: dict[str, Any]
) -> ConductedPostgres:
    return ConductedPostgres.connect(*cargs, **cparams)


class Eye:
    """Looks at a database from outside, each time at what is committed at that moment."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, isolation_level="AUTOCOMMIT")
        self._connection = self.engine.connect()

    def ask(self, query: str, **parameters: object) -> list[tuple[Any, ...]]:
        result = self._connection.execute(text(query), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []

    def close(self) -> None:
        self._connection.close()
        self.engine.dispose()


class EyeOnPostgres(Eye):
    def blocked(self, pids: Collection[int]) -> set[int]:
        """Those of the server's processes *pids* that wait for a lock of another process."""
        query = "SELECT pid FROM unnest(CAST(:pids AS int[])) pid WHERE cardinality(pg_blocking_pids(pid)) > 0"
        return {pid for (pid,) in self.ask(query, pids=list(pids))}

    def open_transactions(self) -> list[str]:
        """The transactions in which anybody else is."""
        query = """
            SELECT state || ' after ' || query FROM pg_stat_activity WHERE datname = current_database()
            AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'
        """
        return [told for (told,) in self.ask(query)]


# SQLite.


class ConductedSqlite(sqlite3.Connection):
    """A connection whose every statement is a step of the session; it does not wait for the file, but for the conductor."""

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or ConductedCursor)

    def commit(self) -> None:
        step(self, "COMMIT", super().commit) if self.in_transaction else super().commit()

    def rollback(self) -> None:
        step(self, "ROLLBACK", super().rollback) if self.in_transaction else super().rollback()


class ConductedCursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = ()) -> Self:
        step(self.connection, sql, lambda: sqlite3.Cursor.execute(self, sql, parameters))
        return self

    def executemany(self, sql: str, parameters: Any) -> Self:
        rows = list(parameters)
        step(self.connection, sql, lambda: sqlite3.Cursor.executemany(self, sql, rows))
        return self


def step(connection: sqlite3.Connection, statement: str, act: Callable[[], T]) -> T:
    """Do *act* when it is this session's turn; again and again, as long as another one has the file to itself."""
    session = current()
    if session is not None:
        session.pause(_short(statement))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        was_in_transaction = connection.in_transaction
        try:
            return act()
        except sqlite3.OperationalError as error:
            # One whose snapshot is an old one is not kept waiting by SQLite either.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            _wait_for_file(session)
        finally:
            if session is not None and was_in_transaction and not connection.in_transaction:
                session.has_ended_transaction = True


def _wait_for_file(session: Session | None) -> None:
    if session is None:
        threading.Event().wait(0.001)
    else:
        session.refuse()


def _connect_sqlite(_dialect: object, _record: object, cargs: list[Any], cparams: dict[str, Any]) -> sqlite3.Connection:
    connection: ConductedSqlite = sqlite3.connect(*cargs, **{**cparams, "timeout": 0, "factory": ConductedSqlite})
    return connection


class EyeOnSqlite(Eye):
    def blocked(self, pids: Collection[int]) -> set[int]:
        """Nobody waits inside SQLite: whoever is refused tells the conductor himself."""
        del pids
        return set()

    def open_transactions(self) -> list[str]:
        """Whether anybody has the file to himself."""
        try:
            self.ask("BEGIN IMMEDIATE")
        except OperationalError as error:
            return [str(error)]
        self.ask("ROLLBACK")
        return []


def _short(statement: str) -> str:
    return " ".join(statement.split())[:90]
