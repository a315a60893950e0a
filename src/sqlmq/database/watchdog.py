"""Bounds how long a thread waits for a response of the database.

A network may drop what is sent, and a server may hang, without any error for hours. So each wait for a response is
registered here, and a thread, one per MQ, shuts down a connection on which nothing has moved for too long. The waiting
thread then gets an ordinary error: the connection is broken. Before that the watchdog asks the server to cancel the
statement, because a statement that only waits for a lock can report that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy import event
from sqlalchemy import exc as sa_exc

from sqlmq.errors import DatabaseUnavailableError, OutcomeUnknownError
from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
    from sqlalchemy.pool import ConnectionPoolEntry

    from sqlmq.dialects import ConnectionSocket

log = logging.getLogger("sqlmq.database")

SHORT_SECONDS = 3.0
"""How long a response may take while something is being closed."""
_LATE_SECONDS = 1.0
"""How long it may take after that time is over."""
_PING_SECONDS = 5.0
"""How long the response to the test of an idle connection may take."""
_IDLE_SECONDS = 1.0
"""After how long unused a connection is tested before it is used again."""
_CANCEL_SECONDS = 0.5
"""How long the server has to cancel a statement when asked to."""
_CHECK_SECONDS = 0.2
"""How often the watchdog checks the waits."""


class Watchdog:
    """Bounds each wait for a response of one database by *seconds*. Thread-safe.

    *socket_of* returns the socket of a driver's connection, None if it has none that can be shut down. The thread starts
    with the first wait, and ends with ``close``.
    """

    def __init__(self, socket_of: Callable[[object], ConnectionSocket | None], where: str, seconds: float) -> None:
        self._socket_of = socket_of
        self.where = where
        self.seconds = seconds
        self.start_over()

    def start_over(self) -> None:
        """Set the state that belongs to one process: at construction, and in a forked child."""
        self._changed = threading.Condition()
        self._waits: dict[int, ref[_Wait]] = {}
        """The waits under way, weakly: one whose block an interrupt has ended, at any point, is over as well."""
        self._thread: threading.Thread | None = None
        self._is_idle = True
        """Whether the thread waits to be notified of the next wait."""
        self._is_closing = False
        self._thread_local = threading.local()
        """Holds the budget of each thread."""
        self._shortened_at: float | None = None
        self._is_gone = False

    def watch_engine(self, engine: Engine, *, has_socket: bool) -> None:
        """Test connections of *engine* after idle time. Bound the time to open one, if the database *has_socket*."""

        def test(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
            """Replace a connection that the server closed while it was unused, before it gets something to do."""
            returned_at = record.info.get("returned_at", time.monotonic())
            if not self.answers_after_idle(engine.dialect, connection, record.driver_connection, returned_at):
                # The other connections are as old, and each would have to be waited for.
                raise sa_exc.InvalidatePoolError

        event.listen(engine, "checkin", _note_return)
        event.listen(engine, "checkout", test)
        if has_socket:
            event.listen(engine, "do_connect", self._connect)

    def waiting_for(
        self, connection: object, seconds: float | None = None, *, committing: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Return a block in which each response on the driver's *connection* has to come within *seconds*.

        None is the usual time. Raises OutcomeUnknownError at the end of the block if the server, *committing*, was asked
        to cancel that, and reports that it has committed.
        """
        socket = self._socket_of(connection)
        if socket is None:
            return contextlib.nullcontext()
        wait = _Wait(socket, self.seconds if seconds is None else seconds, self._budget)
        return _WaitBlock(self, wait, committing=committing)

    def register(self, wait: _Wait) -> None:
        """Watch *wait* until ``unregister``."""
        self._waits[id(wait)] = ref(wait)
        if self._is_idle:
            try:
                self._wake()
            except BaseException:
                self.unregister(wait)
                raise

    def unregister(self, wait: _Wait) -> None:
        """Stop watching *wait*: the response has come, or is no longer waited for."""
        self._waits.pop(id(wait), None)

    @property
    def is_gone(self) -> bool:
        """Whether the database did not respond while something was closed: nothing more is sent to it."""
        budget = self._budget
        return self._is_gone or (budget is not None and budget.is_gone)

    @property
    def is_given_up(self) -> bool:
        """Whether the calling thread should retry nothing: its time, or that of a close, is over."""
        now = time.monotonic()
        budget = self._budget
        return self.is_gone or self._is_late(now) or (budget is not None and budget.is_over(now))

    def with_budget(self, budget: WaitBudget) -> contextlib.AbstractContextManager[None]:
        """Return a block in which the calling thread waits as long as *budget* allows; others may shorten it meanwhile."""
        return _BudgetBlock(self._thread_local, budget)

    def shortening(self, seconds: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Return a block in which the calling thread waits at most *seconds*; by default as long as closing may take."""
        budget = WaitBudget()
        budget.shorten(seconds)
        return self.with_budget(budget)

    def shorten(self) -> float:
        """Limit the waits of all threads to what closing may take; return how long ago the first call was."""
        now = time.monotonic()
        if self._shortened_at is None:
            self._shortened_at = now
        return now - self._shortened_at

    def close(self) -> None:
        """End the thread when the last wait has ended."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(SHORT_SECONDS)

    def answers_after_idle(
        self, dialect: Dialect, connection: DBAPIConnection, driven: object, idle_since: float
    ) -> bool:
        """Whether the server still responds on a *connection* that was not used for some time.

        A connection that breaks in the middle of a COMMIT leaves the outcome unknown; one that breaks here does not.
        """
        if time.monotonic() - idle_since < _IDLE_SECONDS:
            return True
        try:
            with self.waiting_for(driven, min(_PING_SECONDS, self.seconds)):
                dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error:
            return False
        return True

    @property
    def _budget(self) -> WaitBudget | None:
        return getattr(self._thread_local, "budget", None)

    def _is_late(self, now: float) -> bool:
        return self._shortened_at is not None and now - self._shortened_at >= SHORT_SECONDS

    def _wake(self) -> None:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="sqlmq-watchdog", daemon=True)
                self._thread.start()
            self._is_idle = False  # not before: if no thread can be started, the next wait tries again
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                # Set before the waits are read, or a wait that is registered in between would wake no one.
                self._is_idle = True
                self._is_idle = not self._waits
                if self._is_idle:
                    if self._is_closing:
                        return
                    self._changed.wait()
                    continue
                self._changed.wait_for(self._may_end, _CHECK_SECONDS)
            for key, reference in list(self._waits.items()):
                wait = reference()
                if wait is None:
                    self._waits.pop(key, None)
                else:
                    self._check(wait, time.monotonic())
                del wait

    def _may_end(self) -> bool:
        return self._is_closing and not self._waits

    def _check(self, wait: _Wait, now: float) -> None:
        """Ask the server to cancel the statement of *wait* if it takes too long; shut down the connection after that."""
        if self._is_gone:
            self._shut_down(wait)
            return
        if wait.cancelled_at is not None:
            if now - wait.cancelled_at >= _CANCEL_SECONDS and id(wait) in self._waits:
                self._shut_down(wait)
            return
        most = wait.most_seconds
        if self._is_late(now):
            # A wait that began after the close did, of a database that responds, takes less.
            most = min(most, _LATE_SECONDS)
        if now - wait.began < most:
            return
        silent = wait.socket.silent_seconds()
        if silent is None or silent >= most:
            wait.cancelled_at = now
            # Without a thread for it, the connection is shut down next.
            with contextlib.suppress(RuntimeError):
                threading.Thread(
                    target=wait.socket.request_cancel, args=(_CANCEL_SECONDS,), name="sqlmq-cancel", daemon=True
                ).start()

    def _shut_down(self, wait: _Wait) -> None:
        # The thread that waits logs it: a handler may take long, or wait for a response itself, and this thread must go on.
        wait.given_up_seconds = time.monotonic() - wait.began
        wait.socket.shut_down()
        self._waits.pop(id(wait), None)
        self._is_gone = self._shortened_at is not None
        if wait.budget is not None:
            wait.budget.lose()

    def _connect(
        self, dialect: Dialect, _record: ConnectionPoolEntry, args: list[Any], options: dict[str, Any]
    ) -> DBAPIConnection:
        """Connect in another thread, which this one can leave behind."""
        return _PendingConnection(partial(dialect.connect, *args, **options)).result(self._check_connecting)

    def _check_connecting(self, began: float) -> None:
        """Raise DatabaseUnavailableError if the time of the calling thread, which connects since *began*, is over."""
        if self.is_given_up and (self.is_gone or time.monotonic() - began >= _LATE_SECONDS):
            self._is_gone = self._shortened_at is not None
            raise DatabaseUnavailableError(gone(self.where))


def gone(where: str) -> str:
    """Return the message of an error: there was little time, as during a close, and the database did not respond."""
    return f"{where}: the database did not respond in time, so nothing more is sent to it."


class WaitBudget:
    """How long a thread waits for responses: the usual time, until another thread shortens it."""

    __slots__ = ("_until", "is_gone", "most_seconds")

    def __init__(self) -> None:
        self._until = self.most_seconds = math.inf
        self.is_gone = False
        """Whether no response came in that time."""

    def shorten(self, seconds: float | None = None) -> None:
        """Limit each wait, the present one included, to *seconds*; by default to what closing may take."""
        self.most_seconds = SHORT_SECONDS if seconds is None else seconds
        self._until = time.monotonic() + self.most_seconds

    def is_over(self, now: float) -> bool:
        """Whether the time is over."""
        return now >= self._until

    def lose(self) -> None:
        """Note that a response has not come."""
        self.is_gone = self.is_over(time.monotonic())


class _Wait:
    """The wait of a thread for a response."""

    __slots__ = ("__weakref__", "_seconds", "began", "budget", "cancelled_at", "given_up_seconds", "socket")

    def __init__(self, socket: ConnectionSocket, seconds: float, budget: WaitBudget | None) -> None:
        self.socket = socket
        self._seconds = seconds
        self.budget = budget
        self.began = time.monotonic()
        self.cancelled_at: float | None = None
        """When the server was asked to cancel the statement."""
        self.given_up_seconds: float | None = None
        """How long it had lasted when the connection was shut down."""

    @property
    def most_seconds(self) -> float:
        return self._seconds if self.budget is None else min(self._seconds, self.budget.most_seconds)


class _WaitBlock:
    """A block in which a thread waits."""

    # No generator: this is on the way of every statement.
    __slots__ = ("_committing", "_wait", "_watchdog")

    def __init__(self, watchdog: Watchdog, wait: _Wait, *, committing: bool) -> None:
        self._watchdog = watchdog
        self._wait = wait
        self._committing = committing

    def __enter__(self) -> None:
        self._watchdog.register(self._wait)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watchdog.unregister(self._wait)
        if (seconds := self._wait.given_up_seconds) is not None:
            log.warning(
                "%s has not answered for %.0f seconds; the connection is given up.",
                self._watchdog.where,
                seconds,
                extra=log_fields("connection given up", seconds=seconds),
            )
        if error is None and self._committing and self._wait.cancelled_at is not None:
            # A COMMIT that waits for a synchronous standby, and is cancelled, has taken effect on the primary alone.
            # https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION-HA
            message = (
                f"{self._watchdog.where}: COMMIT was not answered in time, and ended when it was asked to: it has taken "
                "effect, but perhaps on no standby that it should have waited for. Nothing is sent again."
            )
            raise OutcomeUnknownError(message)


class _BudgetBlock:
    """A block in which its thread has a budget."""

    __slots__ = ("_before", "_budget", "_thread_local")

    _before: WaitBudget | None

    def __init__(self, thread_local: threading.local, budget: WaitBudget) -> None:
        self._thread_local = thread_local
        self._budget = budget

    def __enter__(self) -> None:
        self._before = getattr(self._thread_local, "budget", None)
        self._thread_local.budget = self._budget

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread_local.budget = self._before


class _PendingConnection:
    """A connection that is being opened in a thread."""

    def __init__(self, connect: Callable[[], DBAPIConnection]) -> None:
        self._connect = connect
        self._opened: queue.SimpleQueue[DBAPIConnection | BaseException] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_left = False
        try:
            threading.Thread(target=self._run, name="sqlmq-connect", daemon=True).start()
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            # At the end of the process, when some versions of Python start no thread, other threads still go on. The driver's
            # own limit has to do.
            self._run()

    def result(self, check: Callable[[float], None]) -> DBAPIConnection:
        """Wait for the connection until *check*, called with the start of the wait, raises.

        Then the connection is closed once it is open.
        """
        began = time.monotonic()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    opened = self._opened.get(timeout=_CHECK_SECONDS)
                    break
                check(began)
        except BaseException:
            self._leave()
            raise
        if isinstance(opened, BaseException):
            raise opened
        return opened

    def _run(self) -> None:
        opened: DBAPIConnection | BaseException
        try:
            opened = self._connect()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            opened = error
        with self._lock:
            self._opened.put(opened)
            is_left = self._is_left
        if is_left and not isinstance(opened, BaseException):
            opened.close()

    def _leave(self) -> None:
        with self._lock:
            self._is_left = True
            opened = None if self._opened.empty() else self._opened.get()
        if opened is not None and not isinstance(opened, BaseException):
            opened.close()


def _note_return(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["returned_at"] = time.monotonic()
