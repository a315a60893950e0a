"""The database of one MQ: its engine, and the only place where our own transactions begin and end.

What runs inside one is a flow, a function of a Connection. Errors of the driver are translated here, and a transaction
that failed for a passing reason before its COMMIT was sent is run again from the start.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

from sqlalchemy import URL, Engine, StaticPool, make_url
from sqlalchemy import exc as sa_exc
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from sqlmq import forks, migrate
from sqlmq.dialects import canonical, dialect_named, without_secrets
from sqlmq.errors import (
    DatabaseBusyError,
    DatabaseUnavailableError,
    ForkedError,
    InvalidURLError,
    OutcomeUnknownError,
    ReadOnlyDatabaseError,
    SqlmqError,
    TransactionError,
)
from sqlmq.logged import facts
from sqlmq.resting import Spare, heed_rest
from sqlmq.schema import REVISION
from sqlmq.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Pool

    from sqlmq.dialects import Dialect, Listening
    from sqlmq.observer import Observer

T = TypeVar("T")
log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
"""For how long closing, and a fork, wait for transactions of other threads."""

_BLOCK_SECONDS = 10.0
"""For how long a thread waits for a block of another one: as long as for another process, by the busy timeout."""

_RETRY_SECONDS = 5.0
"""For how long a transaction is tried again. A server that restarts is back within that, usually."""


class Database:
    """An engine, the dialect for it, and transactions. May be shared by threads."""

    def __init__(self, target: str | URL | Engine, schema: str | None) -> None:
        self._owns_engine = not isinstance(target, Engine)
        if isinstance(target, Engine):
            self.dialect: Dialect = dialect_named(target.dialect.name, schema)
            self.dialect.check_engine(target)
            self.engine = target
        else:
            self.dialect, self.engine = _open(target, schema)
            heed_rest(self.engine)
        self.schema = schema
        self.where = without_secrets(self.engine.url)
        self.observer: Observer | None = None  # of all that is made from the MQ
        self._transactions = self.dialect.for_transactions(self.engine)
        self._single_statements = self.dialect.for_single_statements(self.engine)
        self._spare = Spare(self.engine, self.dialect, keeps=self._owns_engine)
        self._prepared = False
        self._appends_in_one_statement = False
        self._forked = False
        self._is_closed = False
        self._identity: tuple[object, ...] | None = None
        self._make_locks()
        forks.tell(self)

    def read(self, flow: Callable[[Connection], T], *, tries_again: bool = True) -> T:
        """Run *flow*, whose statements write no row and need no common snapshot; tried again as in ``write``."""
        self.prepare()
        return self._retrying(lambda: self._read_once(flow)) if tries_again else self._read_once(flow)

    def write(self, flow: Callable[[Connection], T], *, tries_again: bool = True, goes_first: bool = False) -> T:
        """Run *flow* in a transaction of its own and commit it; tried again after a passing error, if wanted.

        *flow* may run several times, each time on a database that saw nothing of the times before. What *goes_first*
        does not queue behind those who wait already where there is one writer. Raises OutcomeUnknownError, and tries no
        more, if the connection breaks while COMMIT is on its way.
        """
        self.prepare()
        once = partial(self._write_once, flow, goes_first=goes_first)
        return self._retrying(once) if tries_again else once()

    def read_unprepared(self, flow: Callable[[Connection], T]) -> T:
        """As ``read``, whatever tables there are: for looking at the schema itself."""
        return self._retrying(lambda: self._read_once(flow))

    def write_unprepared(self, flow: Callable[[Connection], T]) -> T:
        """As ``write``, whatever tables there are: for migrations."""
        return self._retrying(lambda: self._write_once(flow))

    def append(self, flow: Callable[[Connection], T]) -> T:
        """Run *flow*, which is one appending statement, in a transaction of its own: in one round trip where possible."""
        self.prepare()
        return self._retrying(lambda: self._append_once(flow, committing=True))

    def settle(self, flow: Callable[[Connection], T]) -> T:
        """Run *flow*, which does no harm twice, in a transaction of its own; where possible each of its statements in one.

        When the connection is lost it is run again, also after it may have taken effect.
        """
        self.prepare()
        return self._retrying(lambda: self._append_once(flow, committing=False))

    def write_again(self, flow: Callable[[Connection], T]) -> T:
        """As ``write``, for a *flow* that does no harm twice: run again when the connection is lost while it commits."""
        self.prepare()
        return self._retrying(lambda: self._write_once(flow, committing=False))

    def listen(self) -> Listening:
        """Listen for notices, on a connection that is not the engine's."""
        self.prepare()
        self._check_open()
        with self.translating():
            return self.dialect.listen(self.engine)

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """Let this thread alone write, where there is one writer, for as long as a transaction of the application's lasts.

        Raises DatabaseBusyError when a block of another thread does not end, TransactionError inside one of this thread.
        """
        self.prepare()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._in_turn(writing=True))
            me = threading.get_ident()
            with self._unused:
                self._in_use += 1
                self._in_block.append(me)
            try:
                yield
            finally:
                with self._unused:
                    self._in_use -= 1
                    self._in_block.remove(me)
                    self._unused.notify_all()

    def connect(self) -> contextlib.AbstractContextManager[Connection]:
        """A connection for a block, in no transaction yet, in which positions can be read once they are locked."""
        return self._connect(self._transactions)

    def check_may_write(self) -> None:
        """Raise TransactionError if this thread, inside a block, would wait for itself."""
        if (self.one_connection or self.dialect.one_writer) and self._is_in_block():
            raise TransactionError(_IN_BLOCK)

    def check_outside_block(self, what: str) -> None:
        """Raise TransactionError if this thread is inside a block, which has to end before anybody can do *what*."""
        if self._is_in_block():
            message = f"This thread is inside a block of consumer.transaction(); leave it before you {what}."
            raise TransactionError(message)

    def _is_in_block(self) -> bool:
        return threading.get_ident() in self._in_block

    @contextlib.contextmanager
    def translating(self, *, committing: bool = False) -> Iterator[None]:
        """Raise our errors for the driver's; OutcomeUnknownError if the connection breaks while *committing*."""
        try:
            yield
        except SqlmqError:
            raise
        except Exception as error:  # noqa: BLE001 - translated, or raised as it is
            self._raise_translated(error, committing=committing)

    def prepare(self) -> None:
        """Make sure, once, that the tables are there and the right ones."""
        if self._forked:
            what = "This MQ, and the engine it was given,"
            raise ForkedError(what)
        if self._prepared:
            return
        with self._preparing:
            if not self._prepared:
                self._retrying(self._prepare_once)
                self._prepared = True

    @property
    def knows_identity(self) -> bool:
        """Whether ``identity`` need not ask."""
        return self._identity is not None

    def identity(self, *, fresh: bool) -> tuple[object, ...]:
        """What tells the database from all others, as ``Dialect.identity`` does; asked once, unless it has to be *fresh*."""
        if fresh or self._identity is None:
            self._identity = self.read(lambda conn: self.dialect.identity(conn, fresh=fresh))
        return self._identity

    def close(self) -> None:
        """Close the connections, if the engine is our own, once other threads' transactions are over."""
        with self._unused:
            self._unused.wait_for(lambda: self._in_use == 0, _CLOSE_SECONDS)
            self._is_closed = True
        self._spare.close()
        if self._owns_engine and not self._forked:
            self.engine.dispose()

    def _prepare_once(self) -> None:
        if self.dialect.creates_schema_itself:
            with self._connect(self.engine) as conn:
                found = migrate.current(conn, schema=self.schema)
            if found is None or found < REVISION:
                self._write_once(lambda conn: migrate.upgrade(conn, schema=self.schema))
        with self._connect(self._single_statements) as conn, self.translating():
            migrate.check(conn, schema=self.schema)
            self._appends_in_one_statement = self.dialect.can_append_in_one_statement(conn)

    def _read_once(self, flow: Callable[[Connection], T]) -> T:
        with self._in_turn(writing=False), self._connect(self._single_statements) as conn, self.translating():
            return flow(conn)

    def _write_once(self, flow: Callable[[Connection], T], *, goes_first: bool = False, committing: bool = True) -> T:
        with self._in_turn(writing=True, goes_first=goes_first), self._connect(self._transactions) as conn:
            with self.translating():
                self.dialect.begin(conn)
                result = flow(conn)
            with self.translating(committing=committing):
                conn.commit()
            return result

    def _append_once(self, flow: Callable[[Connection], T], *, committing: bool) -> T:
        if not self._appends_in_one_statement:
            return self._write_once(flow)
        with self._counted():
            with self.translating():
                spare = self._spare.take()
            try:
                with self.translating(committing=committing):
                    result = flow(spare.connection)
            except BaseException as error:
                with self.translating():
                    if isinstance(error, ReadOnlyDatabaseError):
                        spare.connection.invalidate()
                    spare.close()
                raise
            self._spare.give(spare)
            return result

    def _check_open(self) -> None:
        # Or a thread that was about to look would open a connection that nobody closes.
        if self._is_closed:
            message = f"{self.where}: the MQ is closed."
            raise DatabaseUnavailableError(message)

    @contextlib.contextmanager
    def _connect(self, engine: Engine) -> Iterator[Connection]:
        with self._counted():
            with self.translating():
                connection = engine.connect()
            try:
                yield connection
            except ReadOnlyDatabaseError:
                # After a failover the old primary may be a standby now; the next connection may reach the new one.
                connection.invalidate()
                raise
            finally:
                with self.translating():
                    connection.close()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Have closing wait for a connection that is in use."""
        with self._unused:
            self._check_open()
            self._in_use += 1
        try:
            yield
        finally:
            with self._unused:
                self._in_use -= 1
                self._unused.notify_all()

    @contextlib.contextmanager
    def _in_turn(self, *, writing: bool, goes_first: bool = False) -> Iterator[None]:
        """Let one thread at a time write where there is one writer, and do anything where there is one connection."""
        if not (self.one_connection or (writing and self.dialect.one_writer)):
            yield
            return
        self.check_may_write()
        while not self._turn.acquire(_BLOCK_SECONDS, goes_first=goes_first):
            if self._in_block:
                raise DatabaseBusyError(_BLOCKED)
        try:
            yield
        finally:
            self._turn.release()

    def _raise_translated(self, error: Exception, *, committing: bool) -> NoReturn:
        origin = error.orig if isinstance(error, sa_exc.DBAPIError) else None
        # The driver's error is the cause, not SQLAlchemy's, which can carry statement and parameters.
        cause = origin or error
        if committing and self.dialect.is_disconnect(error):
            message = (
                f"{self.where}: the connection was lost while COMMIT was on its way; it may have taken effect or not. "
                "Nothing is sent again: look in the log before you do."
            )
            raise OutcomeUnknownError(message) from cause
        translated = self.dialect.translate(error, self.where)
        if translated is None and isinstance(error, sa_exc.TimeoutError):
            message = f"{self.where}: no connection of the pool came free in time. Give the engine a larger pool."
            translated = DatabaseUnavailableError(message)
        if translated is None:
            raise error
        if self.dialect.quotes_rows(cause):
            raise translated from None
        raise translated from cause

    def _retrying(self, attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        except SqlmqError as error:
            if not self._is_passing(error):
                raise
            log.warning("%s (trying again for %.0f seconds)", error, _RETRY_SECONDS, extra=facts("retry", error=error))
        return Retrying(
            retry=retry_if_exception(self._is_passing),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop_after_delay(_RETRY_SECONDS),
            reraise=True,
        )(attempt)

    def _is_passing(self, error: BaseException) -> bool:
        if isinstance(error, OutcomeUnknownError) or not isinstance(error, SqlmqError):
            return False
        cause = error.__cause__
        return isinstance(cause, Exception) and self.dialect.is_passing(cause)

    def _make_locks(self) -> None:
        self._turn = Turn()
        self._preparing = threading.RLock()
        self._unused = threading.Condition()
        self._in_use = 0
        # The threads that are inside a block, each as often as it is in one.
        self._in_block: list[int] = []

    @property
    def can_notify(self) -> bool:
        """Whether processes can tell each other of new messages."""
        return self.dialect.can_notify and not self.one_connection

    @property
    def one_connection(self) -> bool:
        """Whether all threads share a single connection, as they must on a database in memory."""
        return isinstance(self.engine.pool, StaticPool)

    def before_fork(self) -> None:
        """Let no other thread be in the middle of anything where a connection is a file of this process.

        The child inherits what the process knows of its own locks on the file, and would wait for them for ever; also
        for the mutexes of the library, which a reader takes as well, and whoever opens a connection needs.
        """
        if self.dialect.one_writer:
            self._turn.acquire(threading.TIMEOUT_MAX, goes_first=True)
            self._unused.acquire()
            self._unused.wait_for(lambda: self._in_use == 0, _CLOSE_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        if self.dialect.one_writer:
            self._unused.release()
            self._turn.release()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone, and open others when they are needed.

        The connections of an engine that the user made are the user's to part with, and a database in memory has no
        others: then whatever is tried next raises ForkedError.
        """
        self._make_locks()
        if not self._owns_engine or self.one_connection:
            self._forked = True
            return
        # Kept alive, because closing the copy of a SQLite connection can damage the file.
        # https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
        self._spare.leave_fork()
        _ABANDONED.append(self.engine.pool)
        self.engine.dispose(close=False)


def roll_back_in_driver(conn: Connection) -> None:
    """Roll back what is on *conn*, whose commit has failed: SQLAlchemy does not.

    RootTransaction takes itself to be over then, after an exception in the event `commit` too, so whoever has the
    connection next would commit the application's rows.
    """
    if conn.closed or conn.invalidated:
        return
    try:
        conn.connection.rollback()
    except Exception:  # noqa: BLE001 - the connection is broken, which the error being raised tells
        conn.invalidate()


_IN_BLOCK = (
    "This thread is inside a block of consumer.transaction(), which holds the database's only writer: it would wait for "
    "itself. Give session=tx.session, to be part of the block's transaction, or do it after the block."
)
_BLOCKED = (
    f"A block of consumer.transaction() in another thread has held the database's only writer for {_BLOCK_SECONDS:.0f} "
    "seconds. Keep what is done inside it short."
)

_ABANDONED: list[Pool] = []


def _open(target: object, schema: str | None) -> tuple[Dialect, Engine]:
    if not isinstance(target, str | URL):
        message = f"MQ takes a database URL or a SQLAlchemy Engine, not {type(target).__name__}."
        raise TypeError(message)
    try:
        url = make_url(target)
    except (sa_exc.ArgumentError, ValueError):
        message = (
            "This is no database URL. It looks like sqlite:///file.db or postgresql://user:password@host/database; "
            "special characters of a password are written as %40 and the like."
        )
        raise InvalidURLError(message) from None
    url = canonical(url)
    dialect = dialect_named(url.get_backend_name(), schema)
    try:
        return dialect, dialect.create_engine(url)
    except (sa_exc.ArgumentError, ModuleNotFoundError, TypeError, ValueError) as error:
        if isinstance(error, SqlmqError):
            raise
        message = f"No engine can be made for {without_secrets(url)}: {error}"
        raise InvalidURLError(message) from None
