"""Calling a handler in the event loop, for workers that wait in threads."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, cast

from sqlmq.aio.engines import check_greenlet
from sqlmq.aio.threads import to_the_end
from sqlmq.consumer.transaction_scope import JOIN_MODE, TransactionScope
from sqlmq.consumer.worker.executor import (
    NotStarted,
    Succeeded,
    check_no_session,
    direct_executor,
    is_awaited,
    outcome_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from sqlmq.aio.engines import Engines
    from sqlmq.aio.threads import Threads
    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.config import RunConfig
    from sqlmq.consumer.worker.executor import Execution, Executor, Outcome
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.message import ReceivedMessage


class AsyncExecutor:
    """Awaits a handler with one argument: a message, or a list of them."""

    commits_positions = False

    def __init__(self, handler: Callable[..., Awaitable[object]], *, in_batches: bool) -> None:
        self._handler = handler
        self._in_batches = in_batches
        self._loop = asyncio.get_running_loop()
        self._futures: dict[str, Future[NotStarted | None]] = {}
        """The future that each worker waits for, by the name of its thread."""

    def execute(self, execution: Execution) -> Outcome:
        """Await the handler with each batch, in one task for all of them."""
        handling = self._handle_all(execution)
        try:
            future = asyncio.run_coroutine_threadsafe(handling, self._loop)
        except RuntimeError as error:  # the event loop is closed
            handling.close()
            return outcome_of(error, execution)
        self._futures[threading.current_thread().name] = future
        try:
            return future.result() or Succeeded()
        except BaseException as error:  # noqa: BLE001 - the pool raises what is not the handler's
            return outcome_of(error, execution)

    def abandon(self, worker: Receiver) -> None:
        """Cancel the task of *worker*."""
        if (future := self._futures.get(worker.name)) is not None:
            future.cancel()

    async def _handle_all(self, execution: Execution) -> NotStarted | None:
        while batch := execution.next_batch():
            await self._handler(batch if self._in_batches else batch[0])
        return None


class AsyncTransactionalExecutor(AsyncExecutor):
    """Awaits a handler with a session, whose changes commit with the group's position, or not at all."""

    commits_positions = True

    def __init__(
        self,
        handler: Callable[..., Awaitable[object]],
        core: ConsumerCore,
        threads: Threads,
        engines: Engines,
        make_session: Callable[[], AsyncSession] | None,
        *,
        in_batches: bool,
    ) -> None:
        super().__init__(handler, in_batches=in_batches)
        self._core = core
        self._context = core.transactions
        self._threads = threads
        self._engines = engines
        self._make_session = make_session

    async def _handle_all(self, execution: Execution) -> NotStarted | None:
        while batch := execution.next_batch():
            if (not_started := await self._transact(execution, batch)) is not None:
                return not_started
            await self._threads.run(execution.committed)
        return None

    async def _transact(self, execution: Execution, batch: list[ReceivedMessage]) -> NotStarted | None:
        async with AsyncExitStack() as stack:
            try:
                scope, target, session = await self._begin(stack)
            except Exception as error:  # noqa: BLE001 - the pool raises it
                return NotStarted(error)
            await self._handler(batch if self._in_batches else batch[0], session)
            # Cancelled, it has committed or rolled back all the same when it ends.
            await to_the_end(self._commit(execution, scope, target))
        return None

    async def _begin(
        self, stack: AsyncExitStack
    ) -> tuple[TransactionScope, AsyncConnection | AsyncSession, AsyncSession]:
        from sqlalchemy.ext.asyncio import AsyncSession

        target: AsyncConnection | AsyncSession
        if self._make_session is None:
            target = await self._engines.get().connect()
            session = AsyncSession(target, join_transaction_mode=JOIN_MODE)
        else:
            target = session = self._make_session()
        stack.push_async_callback(_close, target)
        if self._make_session is not None:
            await self._check(session)
        scope = TransactionScope(self._context, self._core.group)
        bound = None if target is session else session.sync_session
        stack.push_async_callback(_roll_back, scope, target)
        await target.run_sync(scope.begin, bound)
        await target.run_sync(_call, scope.watch)
        return scope, target, session

    @staticmethod
    async def _commit(execution: Execution, scope: TransactionScope, target: AsyncConnection | AsyncSession) -> None:
        await target.run_sync(_call, partial(scope.finish, execution.settle))
        await target.run_sync(_call, scope.commit)

    async def _check(self, session: AsyncSession) -> None:
        context, group = self._context, self._core.group
        context.check_free(session.sync_session)
        if not context.is_known(session.sync_session):
            ours = await self._threads.run(partial(context.own_identity, group))
            await session.run_sync(partial(context.check_identity, group), ours)


def async_executor(
    core: ConsumerCore,
    handler: Callable[..., object],
    session: object,
    config: RunConfig,
    threads: Threads,
    engines: Engines,
) -> Executor:
    """The executor for *handler*: in the running event loop if it is a coroutine function, else in worker threads.

    Raises TypeError or ValueError for a wrong argument, SessionError if no session can be made, MissingDependencyError.
    """
    if not is_awaited(handler):
        return direct_executor(core, handler, session, config)
    awaited = async_observed(cast("Callable[..., Awaitable[object]]", handler), core.database.observer, core.group.name)
    if config.transaction:
        check_greenlet()
        make_session = async_session_maker(session)
        if make_session is None:
            engines.get()  # raises now, and not when a message arrives
        return AsyncTransactionalExecutor(awaited, core, threads, engines, make_session, in_batches=config.has_batches)
    check_no_session(session)
    return AsyncExecutor(awaited, in_batches=config.has_batches)


def _call(_target: Session | Connection, step: Callable[[], None]) -> None:
    """Take a step of a scope, which knows its connection, by ``run_sync``."""
    step()


async def _close(target: AsyncConnection | AsyncSession) -> None:
    await to_the_end(target.close())


async def _roll_back(scope: TransactionScope, target: AsyncConnection | AsyncSession) -> None:
    await to_the_end(target.run_sync(_call, scope.roll_back))


def async_observed(
    handler: Callable[..., Awaitable[object]], observer: Observer | None, group: str
) -> Callable[..., Awaitable[object]]:
    """Wrap *handler* so that *observer*, if there is one, sees each of its calls."""
    if observer is None:
        return handler

    async def call(given: ReceivedMessage | list[ReceivedMessage], *session: AsyncSession) -> object:
        with observer.handle(group, given if isinstance(given, list) else [given]):
            return await handler(given, *session)

    return call


def async_session_maker(source: object) -> Callable[[], AsyncSession] | None:
    """Return what makes a session for each transaction; None is the MQ's own. Raises TypeError.

    A single AsyncSession or AsyncConnection is refused: handlers run at the same time, and can't share one.
    """
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    if source is None or (callable(source) and not isinstance(source, AsyncSession | AsyncConnection)):
        return source
    message = f"session= of run() takes an async_sessionmaker, not {type(source).__name__}."
    raise TypeError(message)
