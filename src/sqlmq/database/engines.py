"""Engines, made from the target that the user gave, and what their pools lend."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from sqlalchemy import URL, Engine, Pool, QueuePool, make_url
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine.base import OptionEngine

from sqlmq.dialects import blocking, canonical, dialect_named, without_secrets
from sqlmq.errors import InvalidURLError, SqlmqError
from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect

log = logging.getLogger("sqlmq.database")

_FOR_US = 1
"""The connections that a run takes beside those of its handlers, to fetch and to count attempts."""


def read_url(target: str | URL) -> URL:
    """Return *target* with SQLAlchemy's name of the database. Raises InvalidURLError.

    Blanks and newlines around a URL are none of its parts. They come with secrets and variables that a shell has written.
    """
    try:
        return canonical(make_url(target.strip() if isinstance(target, str) else target))
    except (sa_exc.ArgumentError, ValueError):
        message = (
            "Not a database URL. Expected sqlite:///file.db or postgresql://user:password@host/database. Special "
            "characters in a password are written in percent encoding, such as %40 for @."
        )
        raise InvalidURLError(message) from None


def open_engine(target: object, schema: str | None) -> tuple[Dialect, Engine]:
    """Create the engine for the URL *target*, with its dialect. Raises TypeError or InvalidURLError."""
    if not isinstance(target, str | URL):
        hint = "; AsyncMQ takes it" if hasattr(target, "sync_engine") else ""
        message = f"MQ takes a database URL or a SQLAlchemy Engine, not {type(target).__name__}{hint}."
        raise TypeError(message)
    url = blocking(read_url(target), is_made=False)
    dialect = dialect_named(url.get_backend_name(), schema)
    try:
        return dialect, dialect.create_engine(url)
    except (sa_exc.ArgumentError, ModuleNotFoundError, TypeError, ValueError) as error:
        if isinstance(error, SqlmqError):
            raise
        message = f"Cannot create an engine for {without_secrets(url)}: {error}"
        raise InvalidURLError(message) from None


def most_connections(pool: Pool) -> float:
    """Return how many connections *pool* lends at the same time; inf if it has no limit."""
    if not isinstance(pool, QueuePool) or pool.size() == 0 or pool._max_overflow < 0:  # noqa: SLF001 - no other way to ask
        return math.inf
    return pool.size() + pool._max_overflow  # noqa: SLF001


def provide_for_handlers(engine: Engine, handlers: int, *, is_ours: bool) -> None:
    """Make the pool of *engine* lend a connection to each of *handlers* in transactions, if it *is_ours*; else warn.

    Handlers that wait for a connection do no harm: heartbeats have one of their own. But there are fewer at work than were
    asked for.
    """
    pool, needed = engine.pool, handlers + _FOR_US
    most = most_connections(pool)
    if needed <= most:
        return
    if is_ours and isinstance(pool, QueuePool):
        pool._max_overflow += needed - int(most)  # noqa: SLF001 - a new pool would lose what is checked out
        return
    log.warning(
        "concurrency=%d in transactions needs %d connections, and the pool of the engine has %d, so handlers wait for each "
        "other. Make the engine with pool_size=%d, or lower the concurrency.",
        handlers,
        needed,
        most,
        needed,
        extra=log_fields("pool small"),
    )


class BesidePool:
    """An engine like the given one, with a pool of its own. For one thread at a time, so it opens one connection.

    For what must not wait behind the application: handlers in transactions, or the requests of a web server, may hold all
    connections of a pool for longer than a lease. A heartbeat that waited for one of them would lose the partitions of a
    healthy process.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made: _BesideEngine | None = None

    def engine(self) -> Engine:
        """Return the engine: the given one if its pool lets no thread wait, or has a single connection for all."""
        if self._made is None and isinstance(self._engine.pool, QueuePool):
            self._made = _BesideEngine(self._engine)
        return self._engine if self._made is None else self._made

    def dispose(self) -> None:
        """Close the connection."""
        made, self._made = self._made, None
        if made is not None:
            made.pool.dispose()  # not the engine, whose listeners expect that of the application

    def leave_fork(self) -> None:
        """Leave the parent's connection alone. Called in a forked child."""
        if self._made is not None:
            keep_open(self._made.pool)
            self._made = None


class _BesideEngine(OptionEngine):
    """Has the options and all events of another engine, but not its pool.

    The pool is of the same kind, with the same creator and events as they are now.
    """

    def __init__(self, engine: Engine) -> None:
        self._beside = engine
        self._own_pool = engine.pool.recreate()
        super().__init__(engine, {})

    def connect(self) -> Connection:
        """Return the connection beside the pool, or one of the pool if the server gives no more."""
        try:
            return super().connect()
        except sa_exc.OperationalError:
            return self._beside.connect()

    @property
    def pool(self) -> Pool:  # type: ignore[override]  # as SQLAlchemy does it, which hides it from checkers
        """The pool of its own."""
        return self._own_pool


def keep_open(pool: Pool) -> None:
    """Keep *pool*, which is the parent's, alive in a forked child: closing the copy of a SQLite connection can damage the file.

    https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
    """
    _ABANDONED.append(pool)


_ABANDONED: list[Pool] = []
