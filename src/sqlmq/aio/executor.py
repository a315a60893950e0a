"""Calling a handler in the event loop, for workers that wait in threads."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from sqlmq.aio.threads import to_the_end
from sqlmq.consumer.transaction_scope import JOIN_MODE, TransactionScope
from sqlmq.consumer.worker.executor import NotBegunError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from sqlmq.aio.engines import Engines
    from sqlmq.aio.threads import Threads
    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.executor import ExecutionStep
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.message import Message


class AsyncExecutor:
    """Awaits a handler with one argument: a message, or a list of them."""

    is_settling = False

    def __init__(self, handler: Callable[..., Awaitable[object]], *, in_batches: bool) -> None:
        self._handler = handler
        self._in_batches = in_batches
        self._loop = asyncio.get_running_loop()
        # By the name of the worker's thread.
        self._awaited: dict[str, Future[None]] = {}

    def __call__(self, step: ExecutionStep) -> None:
        """Give each batch to the handler, in a task for all of them."""
        future = asyncio.run_coroutine_threadsafe(self._executor(step), self._loop)
        self._awaited[threading.current_thread().name] = future
        future.result()

    def abandon(self, worker: Receiver) -> None:
        """Cancel the task of *worker*."""
        if (future := self._awaited.get(worker.name)) is not None:
            future.cancel()

    async def _executor(self, step: ExecutionStep) -> None:
        for batch in step.batches:
            await self._handler(batch if self._in_batches else batch[0])


class AsyncTransacting(AsyncExecutor):
    """Awaits a handler with a session too, whose changes commit with the group's position, or not at all."""

    is_settling = True

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

    async def _executor(self, step: ExecutionStep) -> None:
        for batch in step.batches:
            await self._transact(step, batch)
            await self._threads.run(step.committed)

    async def _transact(self, step: ExecutionStep, batch: list[Message]) -> None:
        async with AsyncExitStack() as stack:
            try:
                block, target, session = await self._begin(stack)
            except Exception as error:
                raise NotBegunError from error
            await self._handler(batch if self._in_batches else batch[0], session)
            await to_the_end(self._commit(step, block, target))

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
        stack.push_async_callback(lambda: to_the_end(target.close()))
        if self._make_session is not None:
            await self._check(session)
        block = TransactionScope(self._context, self._core.group)
        bound = None if target is session else session.sync_session
        stack.push_async_callback(lambda: to_the_end(target.run_sync(lambda _: block.roll_back())))
        await target.run_sync(lambda given: block.begin(given, bound))
        await target.run_sync(lambda _: block.watch())
        return block, target, session

    @staticmethod
    async def _commit(step: ExecutionStep, block: TransactionScope, target: AsyncConnection | AsyncSession) -> None:
        await target.run_sync(lambda _: block.finish(step.settle))
        await target.run_sync(lambda _: block.commit())

    async def _check(self, session: AsyncSession) -> None:
        shared = self._context
        shared.check_free(session.sync_session)
        if not shared.is_known(session.sync_session):
            ours = await self._threads.run(lambda: shared.own_identity(self._core.group))
            await session.run_sync(lambda given: shared.check_identity(self._core.group, given, ours))


def async_observed(
    handler: Callable[..., Awaitable[object]], observer: Observer | None, group: str
) -> Callable[..., Awaitable[object]]:
    """*handler*, with *observer* around each of its calls, if there is one."""
    if observer is None:
        return handler

    async def call(given: Message | list[Message], *session: AsyncSession) -> object:
        with observer.handle(group, given if isinstance(given, list) else [given]):
            return await handler(given, *session)

    return call


def async_session_maker(source: object) -> Callable[[], AsyncSession] | None:
    """What makes a session for each transaction; *source* is None for one of ours. Raises TypeError.

    A single AsyncSession or AsyncConnection is refused: handlers run side by side, and may not share it.
    """
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    if source is None or (callable(source) and not isinstance(source, AsyncSession | AsyncConnection)):
        return source
    message = f"session= of run() takes an async_sessionmaker, not {type(source).__name__}."
    raise TypeError(message)
