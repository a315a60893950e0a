"""Engines for asyncio, for transactions that the application shares with us."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlmq.errors import MissingDependencyError, SessionError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq.database.database import Database


def check_greenlet() -> None:
    """Raise MissingDependencyError unless greenlet is installed, which sessions and transactions of SQLAlchemy's asyncio need.

    The rest of an AsyncMQ does without. SQLAlchemy 2.1 installs it only with its extra, 2.0 on most platforms anyway.
    """
    if find_spec("greenlet") is None:
        raise MissingDependencyError("greenlet", "asyncio")


class Engines:
    """The given AsyncEngine, or one of our own for each event loop, because connections are bound to their loop."""

    def __init__(self, database: Database, given: AsyncEngine | None, *, may_make: bool) -> None:
        self._database = database
        self._given = None if given is None else self._for_transactions(given)
        self._may_make = may_make
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncEngine] = WeakKeyDictionary()

    def get(self) -> AsyncEngine:
        """The engine for the running loop. Raises SessionError if none can be made, and MissingDependencyError."""
        if self._given is not None:
            return self._given
        if not self._may_make or self._database.one_connection:
            message = (
                "This AsyncMQ was made from an Engine, or on a database in memory, which an event loop's driver can't "
                "share. Give session=, an async_sessionmaker for instance, or make it from the URL of a file or server."
            )
            raise SessionError(message)
        loop = asyncio.get_running_loop()
        engine = self._made.get(loop)
        if engine is None:
            made = self._database.dialect.create_async_engine(self._database.engine.url)
            engine = self._made[loop] = self._for_transactions(made)
        return engine

    def provide_for_handlers(self, handlers: int) -> None:
        """Expect *handlers* of one run in transactions at the same time. Raises as ``get``."""
        self._database.provide_for_handlers(handlers, beside=self.get().sync_engine, is_ours=self._given is None)

    def _for_transactions(self, engine: AsyncEngine) -> AsyncEngine:
        return type(engine)(self._database.dialect.for_transactions(engine.sync_engine))

    async def dispose(self) -> None:
        """Close the connections of our own engines, except those of loops that do not run here."""
        for loop, engine in list(self._made.items()):
            if loop is asyncio.get_running_loop():
                await engine.dispose()
            else:
                engine.sync_engine.dispose(close=False)
        self._made.clear()
