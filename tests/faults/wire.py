"""Connections whose n-th step fails as a real one does: the server says no, or the connection is gone.

On Postgres nothing is made up: the server raises the SQLSTATE, ends the session, or the socket is shut down before or
after the statement, and psycopg makes of it what it makes of such things. On SQLite the error is one of sqlite3's own
class with its code, and the transaction is rolled back where SQLite would have done that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import psycopg
from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from psycopg.abc import Params

What = Literal["connect", "statement", "commit", "rollback"]

BACKGROUND = (
    "sqlmq-heartbeats",
    "sqlmq-housekeeping",
    "sqlmq-scheduler",
    "sqlmq-retention",
    "sqlmq-listener",
    "sqlmq-notifier",
    "sqlmq-poller",
)
"""The threads that work for an MQ whatever the application does."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which a step fails."""

    name: str
    sqlstate: str | None = None
    """What the server says."""
    code: int | None = None
    """What SQLite says."""
    says: str = ""
    rolls_back: bool = False
    """Whether SQLite ends the transaction then, by itself."""

    @property
    def is_cut(self) -> bool:
        return self.name in ("cut before", "cut after")

    @property
    def is_interrupt(self) -> bool:
        return self.name in ("interrupt before", "interrupt after")

    def fits(self, what: What, *, on_postgres: bool) -> bool:
        """Whether a step of that kind can fail in this way."""
        if what == "connect":
            return self.is_interrupt or self.name in ("cut before", "53300", "cantopen")
        if what == "rollback":
            return self.is_cut or self.is_interrupt
        if self.is_cut and not on_postgres:
            return False
        return self.name != "cantopen"


CUT_BEFORE, CUT_AFTER = Fault("cut before"), Fault("cut after")
LOST_BY_POOLER = Fault("08P01", sqlstate="08P01")
INTERRUPTS = (Fault("interrupt before"), Fault("interrupt after"))

POSTGRES_FAULTS = (
    CUT_BEFORE,
    CUT_AFTER,
    Fault("terminated", sqlstate="57P01"),
    *(
        Fault(state, sqlstate=state)
        for state in ("40001", "40P01", "55P03", "57014", "53100", "53300", "25006", "XX001")
    ),
    LOST_BY_POOLER,
)

SQLITE_FAULTS = (
    Fault("busy", code=sqlite3.SQLITE_BUSY, says="database is locked"),
    Fault("snapshot", code=sqlite3.SQLITE_BUSY_SNAPSHOT, says="database is locked"),
    Fault("locked", code=sqlite3.SQLITE_LOCKED, says="database table is locked"),
    Fault("full", code=sqlite3.SQLITE_FULL, says="database or disk is full", rolls_back=True),
    Fault("ioerr", code=sqlite3.SQLITE_IOERR_WRITE, says="disk I/O error", rolls_back=True),
    Fault("readonly", code=sqlite3.SQLITE_READONLY, says="attempt to write a readonly database"),
    Fault("corrupt", code=sqlite3.SQLITE_CORRUPT, says="database disk image is malformed"),
    Fault("cantopen", code=sqlite3.SQLITE_CANTOPEN, says="unable to open database file"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """What was about to be done when the fault came."""

    what: What
    sql: str
    thread: str
    is_alone: bool
    """Whether the statement is a transaction by itself."""

    def __str__(self) -> str:
        return f"{self.what} {' '.join(self.sql.split())[:70]!r} of {self.thread}"


@dataclass(slots=True)
class Plan:
    """Which steps fail, of which threads, and how."""

    numbers: frozenset[int]
    fault: Fault
    counts: Callable[[threading.Thread], bool]
    seen: int = 0
    failed: list[Step] = field(default_factory=list)

    @property
    def is_reached(self) -> bool:
        """Whether there were as many steps as that."""
        return self.seen >= min(self.numbers)


class Wire:
    """What all connections ask before each step. There is one, for connections are made deep inside of SQLAlchemy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plan: Plan | None = None

    @contextlib.contextmanager
    def failing(
        self, numbers: int | frozenset[int], fault: Fault, counts: Callable[[threading.Thread], bool]
    ) -> Iterator[Plan]:
        """Have the steps with these *numbers*, from 1 on, of the threads that count fail inside the block."""
        plan = Plan(frozenset({numbers}) if isinstance(numbers, int) else numbers, fault, counts)
        with self._lock:
            self._plan = plan
        try:
            yield plan
        finally:
            with self._lock:
                self._plan = None

    def step(self, what: What, query: object, *, is_alone: bool = False, on_postgres: bool = True) -> Fault | None:
        """How the step that is about to be done has to fail, if it has to."""
        thread = threading.current_thread()
        with self._lock:
            plan = self._plan
            if plan is None or not plan.counts(thread):
                return None
            plan.seen += 1
            if plan.seen not in plan.numbers or not plan.fault.fits(what, on_postgres=on_postgres):
                return None
            sql = query.decode(errors="replace") if isinstance(query, bytes) else str(query)
            plan.failed.append(Step(what, sql, thread.name, is_alone))
            return plan.fault


WIRE = Wire()


def of_callers(thread: threading.Thread) -> bool:
    """Whoever does what the application asked for."""
    return thread.name not in BACKGROUND


def of_everybody(thread: threading.Thread) -> bool:
    """Each thread there is."""
    return thread is not None


# --- Postgres ---


def _raising(sqlstate: str) -> bytes:
    return f"DO $$BEGIN RAISE EXCEPTION 'told to fail' USING ERRCODE = '{sqlstate}'; END$$".encode()


_END_SESSION = b"SELECT pg_terminate_backend(pg_backend_pid())"


def _cut(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    with contextlib.suppress(OSError, psycopg.Error):
        one = socket.socket(fileno=os.dup(connection.pgconn.socket))
        with contextlib.closing(one):
            one.shutdown(socket.SHUT_RDWR)


def _instead(fault: Fault) -> bytes:
    return _END_SESSION if fault.name == "terminated" else _raising(fault.sqlstate or "")


class _Cursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, params: Params | None = None, **options: Any) -> _Cursor:
        connection = self.connection
        fault = WIRE.step("statement", query, is_alone=connection.autocommit)
        _fail(connection, fault, lambda: super(_Cursor, self).execute(query, params, **options))
        return self

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        fault = WIRE.step("statement", query, is_alone=self.connection.autocommit)
        _fail(self.connection, fault, lambda: super(_Cursor, self).executemany(query, params_seq, **options))

    @contextlib.contextmanager
    def copy(self, statement: Any, *arguments: Any, **options: Any) -> Iterator[psycopg.Copy]:
        fault = WIRE.step("statement", statement, is_alone=self.connection.autocommit)
        _fail(self.connection, fault, lambda: None)
        with super().copy(statement, *arguments, **options) as copy:
            yield copy


def _fail(connection: psycopg.Connection[Any], fault: Fault | None, run: Callable[[], object]) -> None:
    if fault is None:
        run()
    elif fault.is_interrupt:
        if fault.name == "interrupt after":
            run()
        raise KeyboardInterrupt
    elif fault.is_cut:
        if fault.name == "cut after":
            run()
        _cut(connection)
        run() if fault.name == "cut before" else psycopg.Cursor(connection).execute(b"SELECT 1")
    else:
        psycopg.Cursor(connection).execute(_instead(fault), prepare=False)


class FailingPostgres(psycopg.Connection[Any]):
    """A connection of psycopg's that asks the wire."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = _Cursor

    def commit(self) -> None:
        fault = self._step("commit")
        if fault is None or fault.is_cut or fault.is_interrupt or fault.name == "terminated":
            _fail(self, fault, super().commit)
            return
        try:
            _fail(self, fault, super().commit)
        finally:
            # A COMMIT that the server refuses has rolled back.
            super().rollback()

    def rollback(self) -> None:
        _fail(self, self._step("rollback"), super().rollback)

    def _step(self, what: What) -> Fault | None:
        idle = psycopg.pq.TransactionStatus.IDLE
        return None if self.closed or self.info.transaction_status == idle else WIRE.step(what, what.upper())


class _AsyncCursor(psycopg.AsyncCursor[Any]):
    async def execute(self, query: Any, params: Params | None = None, **options: Any) -> _AsyncCursor:
        fault = WIRE.step("statement", query, is_alone=self.connection.autocommit)
        await _fail_async(self.connection, fault, lambda: super(_AsyncCursor, self).execute(query, params, **options))
        return self

    async def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        fault = WIRE.step("statement", query, is_alone=self.connection.autocommit)
        await _fail_async(
            self.connection, fault, lambda: super(_AsyncCursor, self).executemany(query, params_seq, **options)
        )


async def _fail_async(
    connection: psycopg.AsyncConnection[Any], fault: Fault | None, run: Callable[[], Awaitable[object]]
) -> None:
    if fault is None:
        await run()
    elif fault.is_interrupt:
        raise NotImplementedError
    elif fault.is_cut:
        if fault.name == "cut after":
            await run()
        _cut(connection)
        await (run() if fault.name == "cut before" else psycopg.AsyncCursor(connection).execute(b"SELECT 1"))
    else:
        await psycopg.AsyncCursor(connection).execute(_instead(fault), prepare=False)


class FailingAsyncPostgres(psycopg.AsyncConnection[Any]):
    """A connection of psycopg's for asyncio that asks the wire."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = _AsyncCursor

    async def commit(self) -> None:
        fault = self._step("commit")
        if fault is None or fault.is_cut or fault.name == "terminated":
            await _fail_async(self, fault, super().commit)
            return
        try:
            await _fail_async(self, fault, super().commit)
        finally:
            await super().rollback()

    async def rollback(self) -> None:
        await _fail_async(self, self._step("rollback"), super().rollback)

    def _step(self, what: What) -> Fault | None:
        idle = psycopg.pq.TransactionStatus.IDLE
        return None if self.closed or self.info.transaction_status == idle else WIRE.step(what, what.upper())


# --- SQLite ---


class _SQLiteCursor(sqlite3.Cursor):
    def execute(self, sql: str, *arguments: Any) -> _SQLiteCursor:
        _fail_in_sqlite(self.connection, self._step(sql), lambda: super(_SQLiteCursor, self).execute(sql, *arguments))
        return self

    def executemany(self, sql: str, *arguments: Any) -> _SQLiteCursor:
        fault = self._step(sql)
        _fail_in_sqlite(self.connection, fault, lambda: super(_SQLiteCursor, self).executemany(sql, *arguments))
        return self

    def _step(self, sql: str) -> Fault | None:
        return WIRE.step("statement", sql, is_alone=not self.connection.in_transaction, on_postgres=False)


def _fail_in_sqlite(connection: sqlite3.Connection, fault: Fault | None, run: Callable[[], object]) -> None:
    if fault is None:
        run()
        return
    if fault.is_interrupt:
        if fault.name == "interrupt after":
            run()
        raise KeyboardInterrupt
    if fault.rolls_back:
        sqlite3.Connection.rollback(connection)
    _raise_of_sqlite(fault)


def _raise_of_sqlite(fault: Fault) -> NoReturn:
    kind = sqlite3.DatabaseError if fault.name == "corrupt" else sqlite3.OperationalError
    error = kind(fault.says)
    assert fault.code is not None
    error.sqlite_errorcode = fault.code
    raise error


class FailingSQLite(sqlite3.Connection):
    """A connection of sqlite3's that asks the wire."""

    def cursor(self, factory: Any = _SQLiteCursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, *arguments: Any) -> Any:
        # By our cursor: sqlite3's own takes none of the connection's.
        return self.cursor().execute(sql, *arguments)

    def commit(self) -> None:
        _fail_in_sqlite(self, self._step("commit"), super().commit)

    def rollback(self) -> None:
        _fail_in_sqlite(self, self._step("rollback"), super().rollback)

    def _step(self, what: What) -> Fault | None:
        return WIRE.step(what, what.upper(), on_postgres=False) if self.in_transaction else None


# --- Every connection of SQLAlchemy's ---


@contextlib.contextmanager
def wired() -> Iterator[None]:
    """Have each connection that any engine makes inside the block ask the wire."""
    event.listen(Engine, "do_connect", _connect)
    try:
        yield
    finally:
        event.remove(Engine, "do_connect", _connect)


def _connect(dialect: Any, _record: object, arguments: Any, options: dict[str, Any]) -> Any:
    on_postgres = dialect.name == "postgresql"
    fault = WIRE.step("connect", "connect", on_postgres=on_postgres)
    if fault is not None:
        _fail_to_connect(fault, dialect, options)
    match dialect.name, dialect.is_async:
        case "postgresql", False:
            return FailingPostgres.connect(*arguments, **options)
        case "postgresql", True:
            options["async_creator_fn"] = FailingAsyncPostgres.connect
        case _, False:
            return sqlite3.connect(*arguments, **options, factory=FailingSQLite)
        case _:
            options["factory"] = FailingSQLite
    return None


def _fail_to_connect(fault: Fault, dialect: Any, options: dict[str, Any]) -> None:
    if fault.is_interrupt:
        raise KeyboardInterrupt
    if fault.name == "53300":
        # Of what goes wrong before there is a session libpq gives the text alone.
        message = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: FATAL:  sorry, too many clients already'
        raise psycopg.OperationalError(message)
    if fault.is_cut and dialect.name == "postgresql":
        psycopg.connect(**options | {"host": "127.0.0.1", "port": 1, "connect_timeout": 2})
    _raise_of_sqlite(fault)
