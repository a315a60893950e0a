"""A connection that rests at hand, and does not go back to the pool for that.

An append is one statement, and to have a connection of the pool for that takes twice the time of everything else that
is done for it here: 40 us of 60. So the last one is kept at hand, as long as the engine is our own: on an application's,
others may wait for it.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.engine.interfaces import Dialect as EngineDialect

    from sqlmq.dialects import Dialect

    ComesAfterRest: TypeAlias = Callable[[EngineDialect, DBAPIConnection, object, float], bool]


class AutocommitConnection:
    """A connection of the pool, on which statements that the driver alone sees commit by themselves."""

    __slots__ = ("_stack", "connection", "driven", "rests_since")

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        with ExitStack() as stack:
            self.connection: Connection = stack.enter_context(engine.connect())
            stack.enter_context(dialect.autocommitting(self.connection))
            self._stack = stack.pop_all()
        self.driven = self.connection.connection.driver_connection
        self.rests_since = math.inf

    def put_back(self) -> None:
        """End what SQLAlchemy takes for a transaction; nobody uses it for now."""
        if self.connection.in_transaction():
            self.connection.rollback()
        self.rests_since = time.monotonic()

    def is_ready(self, comes: ComesAfterRest) -> bool:
        """Whether it can be used after its rest."""
        used = self.connection.connection.dbapi_connection
        assert used is not None  # noqa: S101 - it was used
        if comes(self.connection.dialect, used, self.driven, self.rests_since):
            return True
        self.connection.invalidate()
        return False

    def close(self) -> None:
        """Give it back to the pool."""
        self._stack.close()

    def end(self) -> None:
        """Close it for good."""
        self.connection.detach()
        self.close()


class AppendConnection:
    """Takes connections out of the pool of *engine*, and *keeps* one of them at hand. May be shared by threads.

    *comes* tells whether an answer comes on one that has rested.
    """

    def __init__(self, engine: Engine, dialect: Dialect, comes: ComesAfterRest, *, keeps: bool) -> None:
        self._engine = engine
        self._dialect = dialect
        self._comes = comes
        self._keeps = keeps
        self._kept: AutocommitConnection | None
        self._start_over()
        if keeps:
            event.listen(engine, "engine_disposed", lambda _engine: self.drop())

    def take(self) -> AutocommitConnection:
        """A connection, the caller's until it is given, or closed."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            if kept.is_ready(self._comes):
                return kept
            kept.close()
        return AutocommitConnection(self._engine, self._dialect)

    def give(self, one: AutocommitConnection) -> None:
        """Be done with what ``take`` returned, after everything went well."""
        one.put_back()
        with self._lock:
            is_kept = self._keeps and self._kept is None
            if is_kept:
                self._kept = one
        if not is_kept:
            one.close()

    def close(self) -> None:
        """Keep none any more."""
        with self._lock:
            self._keeps = False
        self.drop()

    def drop(self) -> None:
        """End the connection that is kept; it would not be missed by a pool that was disposed of, nor closed."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept.end()

    def leave_fork(self) -> None:
        """In a forked child: leave the parent's connection alone."""
        if self._kept is not None:
            _ABANDONED.append(self._kept)
        self._start_over()

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._kept = None


# Or the garbage collector would roll back on them.
_ABANDONED: list[AutocommitConnection] = []
