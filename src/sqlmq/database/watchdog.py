"""Answers of the database that do not come, so that nobody waits for ever.

A network may swallow what is sent, and a server may hang, without any error for hours. Whoever asks says so here, and a
thread, one per MQ, cuts the connection off when nothing has moved on it for too long: then it is broken, which everybody
can handle. Before that the server is asked to end the statement, because one that only waits for a lock can say so.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

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

HURRY_SECONDS = 3.0
"""For how long an answer is waited for when something is being closed."""
_LAST_SECONDS = 1.0
"""For how long when that time is over."""
_PING_SECONDS = 5.0
"""For how long the answer to a test of a connection is waited for."""
_REST_SECONDS = 1.0
"""After how long unused a connection is tested before it is used again."""
_END_SECONDS = 0.5
"""How long the server has to end a statement that it was asked to end."""
_LOOK_SECONDS = 0.2


class Watchdog:
    """Waits for answers of one database no longer than so many *seconds*. May be shared by threads.

    *line_of* gives the line of a driver's connection, if it can be cut. The thread starts with the first answer that is
    awaited, and ends with ``close``.
    """

    def __init__(self, line_of: Callable[[object], ConnectionSocket | None], where: str, seconds: float) -> None:
        self._line_of = line_of
        self._thread: threading.Thread | None
        self._rests: bool
        self._is_closing: bool
        self._hurry_at: float | None
        self._is_gone: bool
        self.where = where
        self._seconds = seconds
        self.start_over()

    def watch_engine(self, engine: Engine, *, has_line: bool) -> None:
        """Test connections of *engine* that have rested; wait no longer than has to be for new ones, if it *has_line*."""

        def test(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
            """Replace a connection that the server has closed while nobody used it, before it gets something to do."""
            returned_at = record.info.get("returned_at", time.monotonic())
            if not self.answers_after_idle(engine.dialect, connection, record.driver_connection, returned_at):
                # The others are as old, and each would have to be waited for.
                raise sa_exc.InvalidatePoolError

        event.listen(engine, "checkin", _note_return)
        event.listen(engine, "checkout", test)
        if has_line:
            event.listen(engine, "do_connect", self._connect)

    def waiting_for(
        self, connection: object, seconds: float | None = None, *, committing: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Wait in this block for what is asked on the driver's *connection*, the usual time or *seconds* for an answer.

        Raises OutcomeUnknownError if the server, *committing*, was asked to end that, and says that it is done.
        """
        line = self._line_of(connection)
        if line is None:
            return contextlib.nullcontext()
        one = _Wait(line, self._seconds if seconds is None else seconds, self._patience)
        return _WaitBlock(self, one, committing=committing)

    def register(self, one: _Wait) -> None:
        """Have the thread look after *one*, until it is left."""
        self._awaited[id(one)] = one
        if self._rests:
            self._wake()

    def unregister(self, one: _Wait) -> None:
        """*one* has had an answer, or waits for none any more."""
        self._awaited.pop(id(one), None)

    @property
    def is_gone(self) -> bool:
        """Whether the database has not answered while something was closed: nothing more is asked."""
        patience = self._patience
        return self._is_gone or (patience is not None and patience.is_gone)

    @property
    def is_given_up(self) -> bool:
        """Whether this thread tries nothing again: it is in a hurry, or something is closed, and the time is over."""
        now = time.monotonic()
        patience = self._patience
        return self.is_gone or self._is_late(now) or (patience is not None and patience.is_over(now))

    def with_budget(self, patience: WaitBudget) -> contextlib.AbstractContextManager[None]:
        """Have this thread wait as long as *patience* says, which others may cut short meanwhile."""
        return _BudgetBlock(self._of_thread, patience)

    def shortening(self, seconds: float = HURRY_SECONDS) -> contextlib.AbstractContextManager[None]:
        """Have this thread wait for no answer for longer than *seconds*, which is what closing may take."""
        patience = WaitBudget()
        patience.shorten(seconds)
        return self.with_budget(patience)

    def _is_late(self, now: float) -> bool:
        return self._hurry_at is not None and now - self._hurry_at >= HURRY_SECONDS

    @property
    def _patience(self) -> WaitBudget | None:
        return getattr(self._of_thread, "patience", None)

    def shorten(self) -> float:
        """Have nobody wait for longer than closing may take, from now on; return for how many seconds that has been so."""
        now = time.monotonic()
        if self._hurry_at is None:
            self._hurry_at = now
        return now - self._hurry_at

    def close(self) -> None:
        """End the thread, when nothing is awaited any more."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(HURRY_SECONDS if self._awaited else None)

    def start_over(self) -> None:
        """In the beginning, and in a forked child: whoever waits in the parent is the parent's."""
        self._changed = threading.Condition()
        self._awaited: dict[int, _Wait] = {}
        self._thread = None
        self._rests = True
        self._is_closing = False
        self._of_thread = threading.local()
        self._hurry_at = None
        self._is_gone = False

    def _wake(self) -> None:
        with self._changed:
            self._rests = False
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="sqlmq-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                # Before looking, or somebody who comes between would not wake us.
                self._rests = True
                self._rests = not self._awaited
                if self._rests:
                    if self._is_closing:
                        return
                    self._changed.wait()
                    continue
                self._changed.wait_for(lambda: self._is_closing and not self._awaited, _LOOK_SECONDS)
            for one in list(self._awaited.values()):
                self._look_at(one, time.monotonic())

    def _look_at(self, one: _Wait, now: float) -> None:
        if self._is_gone:
            self._cut(one)
            return
        if one.asked_at is not None:
            if now - one.asked_at >= _END_SECONDS and id(one) in self._awaited:
                self._cut(one)
            return
        most = one.most_seconds
        if self._is_late(now):
            # What began meanwhile, of a database that answers, takes less.
            most = min(most, _LAST_SECONDS)
        if now - one.began < most:
            return
        silent = one.line.silent_seconds()
        if silent is None or silent >= most:
            one.asked_at = now
            threading.Thread(
                target=one.line.request_cancel, args=(_END_SECONDS,), name="sqlmq-end", daemon=True
            ).start()

    def _cut(self, one: _Wait) -> None:
        one.line.shut_down()
        self._awaited.pop(id(one), None)
        self._is_gone = self._hurry_at is not None
        if one.patience is not None:
            one.patience.lose()
        seconds = time.monotonic() - one.began
        log.warning(
            "%s has not answered for %.0f seconds; the connection is given up.",
            self.where,
            seconds,
            extra=log_fields("connection given up", seconds=seconds),
        )

    def answers_after_idle(
        self, dialect: Dialect, connection: DBAPIConnection, driven: object, rests_since: float
    ) -> bool:
        """Whether the server still answers on a *connection* that nobody has used for some time.

        What breaks in the middle of a COMMIT has an unknown outcome; what breaks here has a known one.
        """
        if time.monotonic() - rests_since < _REST_SECONDS:
            return True
        try:
            with self.waiting_for(driven, min(_PING_SECONDS, self._seconds)):
                dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error:
            return False
        return True

    def _connect(
        self, dialect: Dialect, _record: ConnectionPoolEntry, args: list[Any], options: dict[str, Any]
    ) -> DBAPIConnection:
        """Connect in another thread, which need not be waited for."""
        return _PendingConnection(lambda: dialect.connect(*args, **options)).result(self._check_patience)

    def _check_patience(self, began: float) -> None:
        if self.is_given_up and (self.is_gone or time.monotonic() - began >= _LAST_SECONDS):
            self._is_gone = self._hurry_at is not None
            raise DatabaseUnavailableError(gone(self.where))


def gone(where: str) -> str:
    """What is said when there was little time, as while something is closed, and the database did not answer."""
    return f"{where}: no answer came in the time there was, and no more is asked for."


class WaitBudget:
    """For how long a thread waits for answers: as long as is usual, until somebody has it hurry."""

    __slots__ = ("_until", "is_gone", "most_seconds")

    def __init__(self) -> None:
        self._until = self.most_seconds = math.inf
        self.is_gone = False
        """Whether no answer has come in the time there was."""

    def shorten(self, seconds: float = HURRY_SECONDS) -> None:
        """Have no answer waited for longer than *seconds*, the one that is awaited now included."""
        self.most_seconds = seconds
        self._until = time.monotonic() + seconds

    def is_over(self, now: float) -> bool:
        """Whether the time has passed that there was."""
        return now >= self._until

    def lose(self) -> None:
        """Note that an awaited answer has not come."""
        self.is_gone = self.is_over(time.monotonic())


class _Wait:
    """Somebody who waits for an answer."""

    __slots__ = ("_seconds", "asked_at", "began", "line", "patience")

    def __init__(self, line: ConnectionSocket, seconds: float, patience: WaitBudget | None) -> None:
        self.line = line
        self._seconds = seconds
        self.patience = patience
        self.began = time.monotonic()
        self.asked_at: float | None = None
        """When the server was asked to end the statement."""

    @property
    def most_seconds(self) -> float:
        return self._seconds if self.patience is None else min(self._seconds, self.patience.most_seconds)


class _WaitBlock:
    """A block in which *one* waits."""

    __slots__ = ("_committing", "_one", "_watchdog")

    def __init__(self, answers: Watchdog, one: _Wait, *, committing: bool) -> None:
        self._watchdog = answers
        self._one = one
        self._committing = committing

    def __enter__(self) -> None:
        self._watchdog.register(self._one)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watchdog.unregister(self._one)
        if error is None and self._committing and self._one.asked_at is not None:
            # A COMMIT that waits for a synchronous standby, and is asked to end, has taken effect on the primary alone.
            # https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION-HA
            message = (
                f"{self._watchdog.where}: COMMIT was not answered in time, and ended when it was asked to: it has taken "
                "effect, but perhaps on no standby that it should have waited for. Nothing is sent again."
            )
            raise OutcomeUnknownError(message)


class _BudgetBlock:
    """A block in which its thread has *patience*."""

    __slots__ = ("_before", "_of_thread", "_patience")

    _before: WaitBudget | None

    def __init__(self, of_thread: threading.local, patience: WaitBudget) -> None:
        self._of_thread = of_thread
        self._patience = patience

    def __enter__(self) -> None:
        self._before = getattr(self._of_thread, "patience", None)
        self._of_thread.patience = self._patience

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._of_thread.patience = self._before


class _PendingConnection:
    """A connection that is being made in a thread."""

    def __init__(self, connect: Callable[[], DBAPIConnection]) -> None:
        self._connect = connect
        self._made: queue.SimpleQueue[DBAPIConnection | BaseException] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_left = False
        threading.Thread(target=self._run, name="sqlmq-connect", daemon=True).start()

    def result(self, check: Callable[[float], None]) -> DBAPIConnection:
        """Wait for it, until *check*, told when that began, raises; then it is closed when it is there."""
        began = time.monotonic()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    made = self._made.get(timeout=_LOOK_SECONDS)
                    break
                check(began)
        except BaseException:
            self._leave()
            raise
        if isinstance(made, BaseException):
            raise made
        return made

    def _run(self) -> None:
        made: DBAPIConnection | BaseException
        try:
            made = self._connect()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            made = error
        with self._lock:
            self._made.put(made)
            is_left = self._is_left
        if is_left and not isinstance(made, BaseException):
            made.close()

    def _leave(self) -> None:
        with self._lock:
            self._is_left = True
            made = None if self._made.empty() else self._made.get()
        if made is not None and not isinstance(made, BaseException):
            made.close()


def _note_return(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["returned_at"] = time.monotonic()
