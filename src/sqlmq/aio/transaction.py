"""`consumer.transaction()` for tasks: messages, the application's effects and the group's position in one transaction.

The steps are those of `transaction_scope`, run on a driver for asyncio. The reads before it are made in threads.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar

from sqlmq.aio.engines import check_greenlet
from sqlmq.aio.futures import wait_for_wakeup
from sqlmq.aio.threads import to_the_end
from sqlmq.consumer.transaction_scope import JOIN_MODE
from sqlmq.errors import DatabaseBusyError, DatabaseUnavailableError, OutcomeUnknownError, SessionError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session

    from sqlmq.aio.engines import Engines
    from sqlmq.aio.threads import Threads
    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.transaction_scope import TransactionScope
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.store.groups import Group

T = TypeVar("T")
AsyncSessionSource: TypeAlias = (
    "AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection | Callable[[], AsyncSession]"
)
"""The session of a transaction, or what makes one, for example an async_sessionmaker."""

log = logging.getLogger("sqlmq.consumer")


class AsyncTransaction:
    """Messages of one partition, and the transaction in which they are handled. Made by ``consumer.transaction()``.

    Used once, as ``async with consumer.transaction() as tx:``, by one task. Iteration gives the messages.
    If the task is cancelled inside the block, it is rolled back; a commit that has begun is awaited to its end.
    """

    def __init__(
        self,
        core: ConsumerCore,
        in_use: object,
        receiver: Receiver,
        threads: Threads,
        engines: Engines,
        max_messages: int,
        timeout: float | None,
        source: AsyncSessionSource | None,
    ) -> None:
        self._core = core
        self._in_use = in_use
        self._context = core.transactions
        self._clock = core.clock
        self._receiver = receiver
        self._threads = threads
        self._engines = engines
        self._max_messages = max_messages
        self._timeout = timeout
        self._source = source
        self._is_used = False
        self._target: AsyncSession | AsyncConnection | None = None
        self._opened: AsyncSession | AsyncConnection | None = None
        self._session: AsyncSession | None = None
        self._connection: AsyncConnection | None = None
        self._block: TransactionScope | None = None
        check_greenlet()
        _check_source(source)

    @property
    def messages(self) -> list[ReceivedMessage]:
        """The messages of one partition, in order; empty if none came in time."""
        taken = self._begun(self._block).taken
        return [] if taken is None else taken.messages

    @property
    def session(self) -> AsyncSession:
        """The session whose changes commit with the group's position."""
        return self._begun(self._session)

    @property
    def connection(self) -> AsyncConnection:
        """The connection of ``session``, in the same transaction."""
        return self._begun(self._connection)

    def __iter__(self) -> Iterator[ReceivedMessage]:
        return iter(self.messages)

    async def __aenter__(self) -> Self:
        if self._is_used:
            message = "A transaction is used once: call consumer.transaction() for another one."
            raise SessionError(message)
        self._is_used = True
        deadline = Deadline.after(self._timeout, self._clock.monotonic())
        try:
            if self._source is None:
                self._engines.get()  # raises now, and not when a message arrives
            else:
                self._open_source(self._source)
            attempt = 0
            while True:
                self._core.check_usable()
                seen = self._core.wakeups.count
                if await self._attempt(deadline):
                    return self
                is_woken = await wait_for_wakeup(self._core.wakeups, attempt, deadline, seen)
                attempt = 0 if is_woken else attempt + 1
        except BaseException:
            await to_the_end(self._leave() if self._block is None else self._end(has_failed=True))
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await to_the_end(self._end(has_failed=error is not None))

    def __repr__(self) -> str:
        state = "not begun" if self._block is None else "ended" if self._block.is_done else "begun"
        return f"<AsyncTransaction of a consumer of {self._core.topic!r} ({state})>"

    @property
    def _carrier(self) -> AsyncSession | AsyncConnection:
        """The session or connection of the transaction, given or opened here."""
        assert self._target is not None  # noqa: S101 - opened before anything is asked of it
        return self._target

    @staticmethod
    def _begun(part: T | None) -> T:
        if part is None:
            message = "The transaction has not begun. Use it as `async with consumer.transaction() as tx:`."
            raise SessionError(message)
        return part

    def _open_source(self, source: AsyncSessionSource) -> None:
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

        if isinstance(source, AsyncSession | AsyncConnection):
            self._target = source
        else:
            made: object = source()
            if not isinstance(made, AsyncSession):
                message = f"session= has to make an AsyncSession of SQLAlchemy's; it made {type(made).__name__}."
                raise TypeError(message)
            self._target = made
            if not isinstance(source, async_scoped_session):
                self._opened = made
        self._context.check_free(_sync(self._target))

    async def _attempt(self, deadline: Deadline) -> bool:
        """Take messages, or begin without any after the deadline; return whether the block may begin."""
        is_last = deadline.passed(self._clock.monotonic())
        context = self._context
        try:
            group = await self._threads.run(lambda: self._core.release_for_transaction(self._receiver))
            if not await self._threads.run(lambda: context.is_worthwhile(group)) and not is_last:
                return False
            return await to_the_end(self._begin(group, is_last=is_last))
        except (DatabaseUnavailableError, DatabaseBusyError, OutcomeUnknownError) as error:
            if is_last:
                raise
            topic = self._core.topic
            fields = log_fields("retry", topic=topic, error=error)
            log.warning("A transaction on %r could not begin and is tried again: %s", topic, error, extra=fields)
            if self._source is None:
                await to_the_end(self._leave())  # the next attempt opens another connection
            return False

    async def _begin(self, group: Group, *, is_last: bool) -> bool:
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

        if self._source is None:
            self._target = self._opened = await self._connect()
        target = self._carrier
        if not self._context.is_known(_sync(target)):
            ours = await self._threads.run(lambda: self._context.own_identity(group))
            await _run(target, lambda given: self._context.check_identity(group, given, ours))
        bound = AsyncSession(target, join_transaction_mode=JOIN_MODE) if isinstance(target, AsyncConnection) else None

        def attempt(given: Session | Connection) -> TransactionScope | None:
            sync = None if bound is None else bound.sync_session
            return self._context.attempt(group, given, self._max_messages, is_last=is_last, bound=sync)

        self._block = await _run(target, attempt)
        if self._block is None:
            if self._source is None:
                await self._leave()
            return False
        if isinstance(target, AsyncConnection):
            self._session, self._connection = bound, target
        else:
            self._session, self._connection = target, await target.connection()
        return True

    async def _connect(self) -> AsyncConnection:
        engine = self._engines.get()
        with self._core.database.translating():
            return await engine.connect()

    async def _end(self, *, has_failed: bool) -> None:
        block, target = self._begun(self._block), self._carrier
        try:
            if not has_failed:
                await _run(target, lambda _: block.finish())
                await _run(target, lambda _: block.commit())
        finally:
            try:
                await self._leave()
            finally:
                if self._context.ended(block):
                    self._core.wake_topic()

    async def _leave(self) -> None:
        """Roll back unless it was committed, and close what was opened here."""
        block, target = self._block, self._target
        if block is not None and target is not None:
            await _run(target, lambda _: block.roll_back())
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()


def _check_source(source: object) -> None:
    if source is None or callable(source):
        return
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    if not isinstance(source, AsyncSession | async_scoped_session | AsyncConnection):
        message = (
            "session= takes an async_sessionmaker, an AsyncSession, an async_scoped_session or an AsyncConnection of "
            f"SQLAlchemy, not {type(source).__name__}."
        )
        raise TypeError(message)


def _sync(target: AsyncSession | AsyncConnection) -> Session | Connection:
    """The synchronous session or connection behind *target*, whose state can be read without await."""
    session: Session | None = getattr(target, "sync_session", None)
    if session is not None:
        return session
    connection: Connection | None = getattr(target, "sync_connection", None)
    if connection is None:
        message = "The AsyncConnection given as session= is not connected. Await engine.connect(), or its start()."
        raise SessionError(message)
    return connection


async def _run(target: AsyncSession | AsyncConnection, step: Callable[[Session | Connection], T]) -> T:
    """Run one of the steps on the driver of *target*."""
    return await target.run_sync(step)
