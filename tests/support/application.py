"""The application beside the queue: SQLAlchemy as it uses it, synchronous or with asyncio, so that one suite tests both.

With asyncio, each object is wrapped: what it does runs in the event loop, in the task of the calling thread, and the thread
waits for it. The queue gets the object itself (`unwrapped`): an AsyncSession, an AsyncConnection, an async_sessionmaker.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import sqlalchemy
from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    AsyncSessionTransaction,
    AsyncTransaction,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.support.engines import let_sqlalchemy_begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from tests.support.blocking import Loop


class Application:
    """An application with an engine, and the sessions and connections on it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create_engine(self, url: str, **options: Any) -> Engine:
        return sqlalchemy.create_engine(url, **options)

    def session(self, **options: Any) -> Session:
        """Make a session, on the application's engine unless the options say otherwise."""
        return Session(**{"bind": self.engine, **options})

    def sessionmaker(self, **options: Any) -> sessionmaker[Session]:
        return sessionmaker(**{"bind": self.engine, **options})

    def scoped_session(self) -> scoped_session[Session]:
        return scoped_session(self.sessionmaker())

    def at(self, isolation_level: str) -> Self:
        """Return the application with its engine at *isolation_level*."""
        return self._with(self.engine.execution_options(isolation_level=isolation_level))

    @contextmanager
    def on_url(self, url: str, **options: Any) -> Iterator[Self]:
        """Yield the application with another engine, on *url*, which is disposed at the end."""
        engine = self.create_engine(url, **options)
        try:
            yield self._with(engine)
        finally:
            engine.dispose()

    @contextmanager
    def with_savepoints(self, url: str) -> Iterator[Self]:
        """Yield the application with an engine on which savepoints work: on SQLite they need an option and an event."""
        with self.on_url(url) as other:
            let_sqlalchemy_begin(sync_of(other.engine))
            yield other

    def _with(self, engine: Engine) -> Self:
        return type(self)(engine)


# --- With asyncio ---


class AsyncApplication(Application):
    """An application with a driver for asyncio, used from threads that wait for the event loop."""

    def __init__(self, engine: Engine, loop: Loop, driver: str) -> None:
        super().__init__(engine)
        self._loop = loop
        self._driver = driver

    def create_engine(self, url: str, **options: Any) -> Engine:
        given = make_url(url)
        driver = "sqlite+aiosqlite" if given.get_backend_name() == "sqlite" else f"postgresql+{self._driver}"
        engine = create_async_engine(given.set(drivername=driver), **options)
        return cast("Engine", Wrapped(engine, self._loop))

    def session(self, **options: Any) -> Session:
        return cast("Session", Wrapped(AsyncSession(**self._on_engine(options)), self._loop))

    def sessionmaker(self, **options: Any) -> sessionmaker[Session]:
        return cast("sessionmaker[Session]", Wrapped(async_sessionmaker(**self._on_engine(options)), self._loop))

    def scoped_session(self) -> scoped_session[Session]:
        scoped = async_scoped_session(unwrapped(self.sessionmaker()), scopefunc=asyncio.current_task)
        return cast("scoped_session[Session]", Wrapped(scoped, self._loop))

    def _on_engine(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: unwrapped(option) for name, option in {"bind": self.engine, **options}.items()}

    def _with(self, engine: Engine) -> Self:
        return type(self)(engine, self._loop, self._driver)


class Wrapped:
    """An object of SQLAlchemy's for asyncio, with the methods of its synchronous counterpart.

    What the object's methods return is awaited in the event loop, if it can be. So `begin` begins a transaction and
    `connect` opens a connection, as the synchronous methods do.
    """

    def __init__(self, aio: Any, loop: Loop) -> None:
        self.aio = aio
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.aio, name)
        return self._waiting(member) if inspect.isroutine(member) else self._wrap(member)

    def __call__(self) -> Any:
        """Make a session, as a sessionmaker does."""
        return self._wrap(self.aio())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapped) and self.aio is other.aio

    def __hash__(self) -> int:
        return hash(self.aio)

    def __enter__(self) -> Any:
        if isinstance(self.aio, AsyncTransaction | AsyncSessionTransaction):
            # It has begun already. `async with` would begin it only now.
            self._waiting(self.aio.sync_transaction.__enter__)()  # type: ignore[union-attr]
            return self
        if isinstance(self.aio, AsyncConnection):
            return self
        return self._waiting(self.aio.__aenter__)()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return cast("bool | None", self._waiting(self.aio.__aexit__)(kind, error, traceback))

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            async def in_loop() -> Any:
                result = method(*map(unwrapped, arguments), **unwrapped(options))
                return await result if inspect.isawaitable(result) else result

            return self._wrap(self._loop.run(in_loop))

        return call

    def _wrap(self, given: Any) -> Any:
        return Wrapped(given, self._loop) if isinstance(given, AbstractAsyncContextManager | AsyncEngine) else given


def unwrapped(given: Any) -> Any:
    """Return what the queue and SQLAlchemy get in place of *given*: the object for asyncio, if it is a wrapped one."""
    if isinstance(given, Wrapped):
        return given.aio
    if isinstance(given, dict):
        return {name: unwrapped(one) for name, one in given.items()}
    return given


def unwrapped_source(given: Any) -> Any:
    """Return what stands for *given* as the `session=` of a consumer: what makes sessions for asyncio, if it is a function."""
    return (lambda: unwrapped(given())) if inspect.isroutine(given) else unwrapped(given)


def sync_of(given: Any) -> Any:
    """Return the object that SQLAlchemy's events are about: *given*, or what is behind an object for asyncio."""
    if not isinstance(given, Wrapped):
        return given
    match given.aio:
        case AsyncEngine():
            return given.aio.sync_engine
        case AsyncConnection():
            return given.aio.sync_connection
        case AsyncSession():
            return given.aio.sync_session
        case other:
            raise TypeError(other)
