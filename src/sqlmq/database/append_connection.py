"""A connection that stays out of the pool between appends.

An append is one statement, and to check a connection out of the pool takes twice the time of everything else that is
done for it here: 40 us of 60. So the last one is kept, as long as the engine is our own: on an application's engine,
other threads may wait for it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sqlmq.database.watchdog import Watchdog
    from sqlmq.dialects import Dialect


class AutocommitConnection:
    """A connection of the pool, on which statements that the driver alone sees commit by themselves."""

    __slots__ = ("_stack", "connection", "driven", "idle_since")

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        with ExitStack() as stack:
            self.connection: Connection = stack.enter_context(engine.connect())
            stack.enter_context(dialect.autocommitting(self.connection))
            self._stack = stack.pop_all()
        self.driven = self.connection.connection.driver_connection
        self.idle_since = math.inf

    def put_back(self) -> None:
        """End what SQLAlchemy takes for a transaction: the connection is not used for now."""
        if self.connection.in_transaction():
            self.connection.rollback()
        self.idle_since = time.monotonic()

    def is_ready(self, watchdog: Watchdog) -> bool:
        """Whether it can be used after its idle time; if not, it is invalid from now on."""
        used = self.connection.connection.dbapi_connection
        assert used is not None  # noqa: S101 - it was used
        if watchdog.answers_after_idle(self.connection.dialect, used, self.driven, self.idle_since):
            return True
        self.connection.invalidate()
        return False

    def close(self) -> None:
        """Return it to the pool."""
        self._stack.close()

    def end(self) -> None:
        """Close it for good."""
        self.connection.detach()
        self.close()


class AppendConnection:
    """Takes connections out of the pool of *engine*, and *keeps* one of them between appends.

    Thread-safe without a lock: a signal handler that produces may interrupt any of these steps in the same thread.
    """

    def __init__(self, engine: Engine, dialect: Dialect, watchdog: Watchdog, *, keeps: bool) -> None:
        self._engine = engine
        self._dialect = dialect
        self._watchdog = watchdog
        self._keeps = keeps
        self._start_over()
        if keeps:
            event.listen(engine, "engine_disposed", self._on_disposed)

    def _start_over(self) -> None:
        self._kept: deque[AutocommitConnection] = deque()
        """One connection at most, or one for each of several threads that returned theirs in the same moment."""

    def take(self) -> AutocommitConnection:
        """Return a connection. It belongs to the caller until ``give``, or until it is closed."""
        kept = self._pop()
        if kept is not None:
            if kept.is_ready(self._watchdog):
                return kept
            kept.close()
        return AutocommitConnection(self._engine, self._dialect)

    def give(self, connection: AutocommitConnection) -> None:
        """Return a connection from ``take`` after everything went well."""
        connection.put_back()
        keeps = self._keeps
        if not keeps or self._kept:
            connection.close()
            return
        self._kept.append(connection)
        if not self._keeps:
            self.drop()  # closed in between

    def close(self) -> None:
        """Keep no connection any more."""
        self._keeps = False
        self.drop()

    def drop(self) -> None:
        """Close the connection that is kept. A pool that is disposed of would neither miss it nor close it."""
        while (kept := self._pop()) is not None:
            kept.end()

    def leave_fork(self) -> None:
        """Leave the parent's connection alone. Called in a forked child."""
        _ABANDONED.extend(self._kept)
        self._start_over()

    def _pop(self) -> AutocommitConnection | None:
        try:
            return self._kept.pop()
        except IndexError:
            return None

    def _on_disposed(self, _engine: Engine) -> None:
        self.drop()


_ABANDONED: list[AutocommitConnection] = []
"""Connections of the parent, kept alive in a forked child, where the garbage collector would roll back on them."""
