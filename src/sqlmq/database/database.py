"""The database of one MQ: its engine, and the only place where our own transactions begin and end.

An operation, a function of a Connection and a Dialect, runs inside a transaction. Errors of the driver are translated
here. A transaction that fails for a transient reason before its COMMIT was sent runs again from the start.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import URL, Engine, StaticPool

from sqlmq import migrate
from sqlmq.database import fork_hooks, retrying
from sqlmq.database.append_connection import AppendConnection
from sqlmq.database.drain import DrainGate
from sqlmq.database.engines import BesidePool, keep_open, open_engine, provide_for_handlers
from sqlmq.database.watchdog import Watchdog, gone
from sqlmq.database.writer_lock import WriterLock
from sqlmq.dialects import dialect_named, without_secrets
from sqlmq.errors import (
    DatabaseBusyError,
    DatabaseUnavailableError,
    ForkedError,
    IsolationError,
    OutcomeUnknownError,
    ReadOnlyDatabaseError,
    SessionError,
    SqlmqError,
)
from sqlmq.hooks.clock import SYSTEM
from sqlmq.hooks.failpoints import failpoint
from sqlmq.hooks.log_hold import WITH_RECORDS, LogHold, emit_held_records, hold_records_of
from sqlmq.schema import REVISION, with_own_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect, Listening
    from sqlmq.hooks.clock import Clock
    from sqlmq.hooks.observer import Observer

    P = ParamSpec("P")
    T = TypeVar("T")
    Operation: TypeAlias = Callable[Concatenate[Connection, Dialect, P], T]
log = logging.getLogger("sqlmq.database")

_CLOSE_SECONDS = 5.0
"""How long closing, and a fork, wait for transactions of other threads."""

_FORK_SECONDS = 1.0
"""How long a fork waits for a block of another thread, which is the application's and may last: it may wait for the fork."""

_BLOCK_SECONDS = 10.0
"""How long a thread waits for a block of another one: as long as the busy timeout for another process."""

_TURN_SECONDS = 60.0
"""How long a thread waits for others to write, each of which needs milliseconds."""


class _Mode(NamedTuple):
    """How a transaction is run."""

    is_idempotent: bool = False
    """Whether it may run again after a COMMIT whose outcome is unknown."""
    has_priority: bool = False
    """Whether it goes before other waiting threads where the database has one writer."""
    is_slow: bool = False
    """Whether its statements may take longer than ``response_timeout_seconds``."""


_ORDINARY = _Mode()
_IDEMPOTENT = _Mode(is_idempotent=True)
_WITH_PRIORITY = _Mode(has_priority=True)
_MIGRATION = _Mode(is_slow=True)


class Database:
    """An engine, its dialect, and transactions. Threads may share it."""

    def __init__(
        self,
        target: str | URL | Engine,
        schema: str | None,
        response_timeout_seconds: float = 30.0,
        clock: Clock = SYSTEM,
    ) -> None:
        self.clock = clock  # for everything made from the MQ
        self._owns_engine = not isinstance(target, Engine)
        if isinstance(target, Engine):
            self.dialect: Dialect = dialect_named(target.dialect.name, schema)
            self.dialect.check_engine(target)
            self.engine = target
        else:
            self.dialect, self.engine = open_engine(target, schema)
        self.schema = schema
        self.one_connection = isinstance(self.engine.pool, StaticPool)
        """Whether all threads share one connection, as a database in memory requires."""
        self._takes_turns = self.one_connection or self.dialect.one_writer
        """Whether one thread writes at a time."""
        self.where = without_secrets(self.engine.url)
        self.watchdog = Watchdog(self.dialect.connection_socket, self.where, response_timeout_seconds)
        self._translating = retrying.TranslateErrors(self.dialect, self.where, committing=False)
        self._translating_commit = retrying.TranslateErrors(self.dialect, self.where, committing=True)
        hold_records_of("psycopg", self.engine.logger, self.engine.pool.logger)
        if self._owns_engine:
            self.watchdog.watch_engine(self.engine, has_socket=self.dialect.has_socket)
        self.observer: Observer | None = None  # for everything made from the MQ
        self._own_engine = with_own_names(self.engine)
        self._transactions = self.dialect.for_transactions(self._own_engine)
        self._single_statements = self.dialect.for_single_statements(self._own_engine)
        self._blocks = self.dialect.for_transactions(self.engine)
        self._beside_pool = BesidePool(self._transactions)
        self._append_connection = AppendConnection(
            self._own_engine, self.dialect, self.watchdog, keeps=self._owns_engine
        )
        self._prepared = False
        self._appends_in_one_statement = False
        self._has_written = False
        self._forked = False
        self._forking = 0
        """The thread that forks; 0 if none does."""
        self._is_closed = False
        self._identity: tuple[object, ...] | None = None
        self._make_locks()
        fork_hooks.register(self)

    def read(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation*, which writes no row and needs no common snapshot. Retried like ``write``."""
        self.prepare()
        return self._retry(partial(self._read_once, operation, *args, **kwargs))

    def read_once(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation* like ``read``, without retries: for a caller that comes again by itself."""
        self.prepare()
        return self._read_once(operation, *args, **kwargs)

    def write(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``operation(conn, dialect, *args, **kwargs)`` in a transaction of its own, and commit.

        *operation* runs again after a transient error, each time on a database that saw nothing of the attempts before.
        Raises OutcomeUnknownError, without another attempt, if the connection breaks while COMMIT is on its way.
        """
        self.prepare()
        return self._retry(partial(self._write_once, _ORDINARY, operation, *args, **kwargs))

    def write_once(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation* like ``write``, without retries: for a caller that comes again by itself."""
        self.prepare()
        return self._write_once(_ORDINARY, operation, *args, **kwargs)

    def write_with_priority(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation* like ``write``, before other threads: those that wait for the only writer, or for the pool.

        For one thread at a time, which is that of heartbeats.
        """
        self.prepare()
        return self._retry(partial(self._write_once, _WITH_PRIORITY, operation, *args, **kwargs))

    def write_idempotent(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation* like ``write``, also again after a connection that broke during COMMIT."""
        self.prepare()
        return self._retry(partial(self._write_once, _IDEMPOTENT, operation, *args, **kwargs))

    def write_idempotent_statement(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation* like ``write_idempotent``; where possible, each of its statements is its own transaction."""
        self.prepare()
        return self._retry(partial(self._append_once, _IDEMPOTENT, operation, *args, **kwargs))

    def append(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation*, one appending statement, in a transaction of its own: in one round trip where possible."""
        self.prepare()
        return self._retry(partial(self._append_once, _ORDINARY, operation, *args, **kwargs))

    def read_unprepared(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run *function* like ``read``, whatever tables exist: for functions of ``migrate`` that read."""
        return self._retry(partial(self._read_once, lambda conn, _dialect: function(conn, *args, **kwargs)))

    def write_unprepared(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run *function* like ``write``, whatever tables exist: for migrations, whose statements may take long."""
        return self._retry(
            partial(self._write_once, _MIGRATION, lambda conn, _dialect: function(conn, *args, **kwargs))
        )

    def listen(self) -> Listening:
        """Listen for notifications, on a connection outside the engine's pool."""
        self.prepare()
        self._check_open()
        with self.translating():
            return self.dialect.listen(self.engine, self.watchdog.waiting_for)

    @contextlib.contextmanager
    def reserve_writer(self) -> Iterator[None]:
        """Reserve the only writer, where there is one, for an application's transaction in this thread.

        Raises DatabaseBusyError if a block of another thread does not end, SessionError inside a block of this
        thread.
        """
        self.prepare()
        with contextlib.ExitStack() as stack:
            if self._takes_turns:
                stack.enter_context(self._exclusive())
            stack.enter_context(self._drain_gate)
            me = threading.get_ident()
            self._in_block.append(me)
            try:
                yield
            finally:
                self._in_block.remove(me)

    def connect(self) -> contextlib.AbstractContextManager[Connection]:
        """Open a connection for a block of the application, in no transaction yet."""
        return self._connect(self._blocks, is_slow=True)

    def provide_for_handlers(self, handlers: int, *, beside: Engine | None = None, is_ours: bool = False) -> None:
        """Expect *handlers* in transactions at the same time, each with a connection of the engine's pool.

        Their sessions may have another engine, *beside* that of the MQ. *is_ours* is whether we have made that one.
        """
        if self.dialect.one_writer:
            return  # they take turns
        if beside is None:
            provide_for_handlers(self.engine, handlers, is_ours=self._owns_engine)
        else:
            provide_for_handlers(beside, handlers, is_ours=is_ours)

    def limit_silence(
        self, conn: Connection, seconds: float | None = None, *, committing: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Limit, for a block, how long the database may be silent on *conn*: as usual, or for *seconds*.

        *committing* means that the block sends COMMIT: if that is cut off, OutcomeUnknownError is raised.
        """
        if not self.dialect.has_socket or conn.closed or conn.invalidated:
            return contextlib.nullcontext()
        return self.watchdog.waiting_for(conn.connection.driver_connection, seconds, committing=committing)

    def check_may_write(self) -> None:
        """Raise SessionError if this thread, inside a block or interrupted while it writes, would wait for itself."""
        if self._takes_turns:
            self.check_may_submit()
            if self._writer_lock.is_mine:
                raise SessionError(_IN_WRITE)

    def check_may_submit(self) -> None:
        """Raise SessionError if this thread is inside a block, for whose end another thread would wait with its write."""
        if self._takes_turns and self._is_in_block():
            raise SessionError(_IN_BLOCK)

    def check_outside_block(self, what: str) -> None:
        """Raise SessionError if this thread is inside a block, which must end before *what* can happen."""
        if self._is_in_block():
            message = f"This thread is inside a block of consumer.transaction(); leave it before you {what}."
            raise SessionError(message)

    def _is_in_block(self) -> bool:
        return threading.get_ident() in self._in_block

    def translating(self, *, committing: bool = False) -> retrying.TranslateErrors:
        """Translate the driver's errors in a block; a lost connection while *committing* is OutcomeUnknownError."""
        return self._translating_commit if committing else self._translating

    def prepare(self) -> None:
        """Check once that the tables exist in the right version; create them where the dialect does that."""
        if self._forked:
            what = "This MQ, and the engine it was given,"
            raise ForkedError(what)
        if self._prepared:
            return
        with LogHold(), self._preparing:
            self._check_not_forking()
            if not self._prepared:
                self._retry(self._prepare_once)
                self._prepared = True

    @property
    def was_used(self) -> bool:
        """Whether it has connected to the database, and may have connections."""
        return self._prepared

    @property
    def knows_identity(self) -> bool:
        """Whether ``identity`` is cached."""
        return self._identity is not None

    def identity(self, *, fresh: bool) -> tuple[object, ...]:
        """Return a value that no other database has, like ``Dialect.identity``: cached, unless *fresh*."""
        if fresh or self._identity is None:
            self._identity = self.read(_identity, fresh=fresh)
        return self._identity

    def close(self) -> None:
        """Close the connections of an engine of ours, after transactions of other threads have ended."""
        self._check_not_forking()
        left = _CLOSE_SECONDS - self.watchdog.shorten()
        self._drain_gate.drain(max(0.0, left), self._note_closed)
        self._append_connection.close()
        self._beside_pool.dispose()
        self.watchdog.close()
        if self._owns_engine and not self._forked:
            self.engine.dispose()

    def _prepare_once(self) -> None:
        if self.dialect.creates_schema_itself:
            with self._connect(self._own_engine) as conn, self.translating():
                found = migrate.current(conn, schema=self.schema)
            if found is None or found < REVISION:
                self._write_once(_MIGRATION, _upgrade, self.schema)
        with self._connect(self._single_statements) as conn, self.translating():
            migrate.check(conn, schema=self.schema)
            self._appends_in_one_statement = self.dialect.can_append_in_one_statement(conn)

    def _read_once(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self.one_connection:
            return self._read(operation, *args, **kwargs)
        with LogHold(), self._exclusive():
            return self._read(operation, *args, **kwargs)

    def _read(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._connect(self._single_statements) as conn, self.translating():
            return operation(conn, self.dialect, *args, **kwargs)

    def _write_once(self, mode: _Mode, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._takes_turns:
            with LogHold():  # rows are locked
                return self._transact(mode, operation, *args, **kwargs)
        # As `_exclusive`, which would take 1 us more of each message.
        self.check_may_write()
        release = self._writer_lock.release
        try:
            self._wait_for_turn(priority=mode.has_priority)
            return self._transact(mode, operation, *args, **kwargs)
        finally:
            try:  # noqa: SIM105 - as there
                release()
            except RuntimeError:
                pass
            if WITH_RECORDS:
                emit_held_records()

    def _transact(self, mode: _Mode, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        engine = self._beside_pool.engine() if mode.has_priority else self._transactions
        with self._connect(engine, is_slow=mode.is_slow, committing=not mode.is_idempotent) as conn:
            with self.translating():
                failpoint("begin.before")
                self.dialect.begin(conn)
                failpoint("begin.after")
                result = operation(conn, self.dialect, *args, **kwargs)
                failpoint("commit.before")
            with self.translating(committing=not mode.is_idempotent):
                try:
                    conn.commit()
                except BaseException:
                    retrying.roll_back_in_driver(conn)
                    raise
            failpoint("commit.after")
            self._has_written = True
            return result

    def _append_once(self, mode: _Mode, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._appends_in_one_statement:
            try:
                return self._append_in_one_statement(mode, operation, *args, **kwargs)
            except IsolationError:
                # The default level of new sessions was raised since. A transaction names its own.
                self._appends_in_one_statement = False
        return self._write_once(_ORDINARY, operation, *args, **kwargs)

    def _append_in_one_statement(self, mode: _Mode, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        committing = not mode.is_idempotent
        with self._drain_gate:
            with self.translating():
                append_connection = self._append_connection.take()
            try:
                failpoint("statement.before")
                with (
                    self.translating(committing=committing),
                    self.watchdog.waiting_for(append_connection.driven, committing=committing),
                ):
                    result = operation(append_connection.connection, self.dialect, *args, **kwargs)
                failpoint("statement.after")
            except BaseException as error:
                with self.translating():
                    if isinstance(error, SqlmqError) and self._is_unusable_after(error):
                        append_connection.connection.invalidate()
                    append_connection.close()
                raise
            self._append_connection.give(append_connection)
        self._has_written = True
        return result

    def _check_not_forking(self) -> None:
        if self._forking == threading.get_ident():
            raise SessionError(_IN_FORK)

    def _note_closed(self) -> None:
        self._is_closed = True

    def _check_open(self) -> None:
        # Without this check, a polling thread could open a connection after close(), which would never be closed.
        if self._is_closed or self.watchdog.is_gone:
            message = f"{self.where}: the MQ is closed." if self._is_closed else gone(self.where)
            raise DatabaseUnavailableError(message)

    @contextlib.contextmanager
    def _connect(self, engine: Engine, *, is_slow: bool = False, committing: bool = False) -> Iterator[Connection]:
        """Open a connection. Unless *is_slow*, limit how long the database may be silent in the block."""
        with self._drain_gate:
            with self.translating():
                connection = engine.connect()
            try:
                with contextlib.nullcontext() if is_slow else self.limit_silence(connection, committing=committing):
                    yield connection
            except SqlmqError as error:
                if self._is_unusable_after(error):
                    connection.invalidate()
                    self._forget_file()
                raise
            finally:
                with self.translating():
                    connection.close()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Return a block that has the turn at writing, or at using the only connection."""
        self.check_may_write()
        release = self._writer_lock.release
        try:
            self._wait_for_turn()
            yield
        finally:
            # No flag tells whether it was acquired: an interrupt could come between the lock and the flag.
            try:  # noqa: SIM105 - with a block around it, an interrupt could come before the release
                release()
            except RuntimeError:
                pass

    def _wait_for_turn(self, *, priority: bool = False) -> None:
        """Acquire the writer's lock. Raises DatabaseBusyError if another thread, or its block, keeps it."""
        waited = 0.0
        while not self._writer_lock.acquire(_BLOCK_SECONDS, priority=priority):
            if self._in_block:
                raise DatabaseBusyError(_BLOCKED)
            waited += _BLOCK_SECONDS
            if waited >= _TURN_SECONDS:
                raise DatabaseBusyError(_STALLED)

    def _retry(self, attempt: Callable[[], T]) -> T:
        return retrying.retry(attempt, self._is_transient, self.clock)

    def _is_transient(self, error: BaseException) -> bool:
        if isinstance(error, OutcomeUnknownError) or not isinstance(error, SqlmqError) or self.watchdog.is_given_up:
            return False
        if isinstance(error, ReadOnlyDatabaseError) and not self._has_written:
            return False  # the URL leads to a standby; a primary that became one would have been written to
        cause = error.__cause__
        return isinstance(cause, Exception) and self.dialect.is_transient(cause)

    def _is_unusable_after(self, error: SqlmqError) -> bool:
        """Whether the connection must be replaced: it is lost, or it leads to a standby since a failover."""
        cause = error.__cause__
        is_lost = isinstance(cause, Exception) and self.dialect.is_disconnect(cause)
        return is_lost or isinstance(error, ReadOnlyDatabaseError | OutcomeUnknownError)

    def _forget_file(self) -> None:
        """Where a connection is a file, open it anew from now on: another one may be in its place, or none."""
        if self.dialect.creates_schema_itself:
            self._prepared = False
            if self._owns_engine and not self.one_connection:
                self.engine.dispose()

    def _make_locks(self) -> None:
        # The threads inside a block. A thread in nested blocks is listed several times.
        self._in_block: list[int] = []
        self._writer_lock = WriterLock(self.clock, exempt=self._in_block)
        self._preparing = threading.RLock()
        self._drain_gate = DrainGate(self.clock, self._check_open)

    @property
    def can_notify(self) -> bool:
        """Whether processes can notify each other of new messages."""
        return self.dialect.can_notify and not self.one_connection

    def before_fork(self) -> fork_hooks.ForkHold:
        """Keep other threads out of the database before a fork, if a connection is a file of this process.

        The child inherits this process's record of its own locks on the file, and would wait for them without end. It
        also inherits mutexes of the SQLite library, which readers and new connections need too.

        Hooks of the application that were registered before ours run after this, and in the child before ``after_fork``,
        when the connections are still the parent's. They get SessionError.
        """
        has_turn = has_gate = False
        if self.dialect.one_writer:
            # At once in the thread that has the turn.
            is_others = bool(self._in_block) and not self._writer_lock.is_mine
            seconds = _FORK_SECONDS if is_others else _CLOSE_SECONDS
            has_turn = self._writer_lock.acquire(seconds, priority=True)
            has_gate = self._drain_gate.close_and_wait(_CLOSE_SECONDS if has_turn else 0.0)
        has_barrier = self._prepared and self._preparing.acquire(timeout=_FORK_SECONDS)
        if has_barrier:
            self._forking = threading.get_ident()
            self._prepared = False  # so that every call asks
        return fork_hooks.ForkHold(has_turn, has_gate, has_barrier)

    def after_fork_in_parent(self, held: fork_hooks.ForkHold) -> None:
        """Release the locks of ``before_fork``."""
        self._end_fork(held)
        if held.has_gate:
            self._drain_gate.release()
        if held.has_turn:
            self._writer_lock.release()

    def _end_fork(self, held: fork_hooks.ForkHold) -> None:
        if held.has_barrier:
            self._forking = 0
            self._prepared = True
            self._preparing.release()

    def after_fork(self, held: fork_hooks.ForkHold) -> None:
        """Leave the parent's connections alone in a forked child, which opens new ones when it needs them.

        An engine that the user made keeps its connections, and a database in memory has no others: every later call
        raises ForkedError. So it does if a thread was using SQLite, as that of a log handler or an event that forks: the
        library goes on waiting for its end, or takes its locks for its own.
        """
        self._end_fork(held)
        was_used = self.dialect.one_writer and (bool(self._in_block) or not self._drain_gate.is_empty)
        self._make_locks()
        self.watchdog.start_over()
        self._beside_pool.leave_fork()
        if not self._owns_engine or self.one_connection:
            self._forked = True
            return
        self._forked = self._forked or was_used
        self._append_connection.leave_fork()
        keep_open(self.engine.pool)
        self.engine.dispose(close=False)


def _identity(conn: Connection, dialect: Dialect, *, fresh: bool) -> tuple[object, ...]:
    return dialect.identity(conn, fresh=fresh)


def _upgrade(conn: Connection, _dialect: Dialect, schema: str | None) -> None:
    migrate.upgrade(conn, schema=schema)


_IN_BLOCK = (
    "This thread is inside a block of consumer.transaction(), which holds the database's only writer, so it would wait for "
    "itself. Give session=tx.session to join the block's transaction, or do it after the block."
)
_IN_WRITE = (
    "This thread was interrupted in the middle of a write of its own, by a signal handler, a finalizer, a log handler or an "
    "event of the engine, and would wait for itself: the database has one writer. Do it later, in another thread, or use "
    "submit(), which does not wait."
)
_IN_FORK = (
    "This is a hook of os.register_at_fork, where the connections are still those of the parent. Import sqlmq before you "
    "register the hook, or do it after the fork."
)
_BLOCKED = (
    f"A block of consumer.transaction() in another thread has held the database's only writer for {_BLOCK_SECONDS:.0f} "
    "seconds. Keep such blocks short."
)
_STALLED = (
    f"Other threads have kept the database's only writer for {_TURN_SECONDS:.0f} seconds. One of them may be waiting in an event "
    "of the engine, or in a log handler."
)
