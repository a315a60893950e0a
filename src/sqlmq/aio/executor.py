"""Calling a handler in the event loop, for workers that wait in threads."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Engine

from sqlmq.aio.engines import check_greenlet
from sqlmq.aio.threads import to_the_end
from sqlmq.consumer.transaction_scope import JOIN_MODE, TransactionScope
from sqlmq.consumer.worker.executor import (
    NotStarted,
    Succeeded,
    bind_of,
    check_function,
    check_no_session,
    direct_executor,
    is_awaited,
    outcome_of,
)
from sqlmq.consumer.worker.results import ResultCheck, check_done, is_awaitable
from sqlmq.hooks.observer import ObservedHandling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
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

T = TypeVar("T")

_MOST_AWAITS = 10
"""How many awaitables in one another are awaited. More may never end: a future can hold itself."""
_AWAITED_TOO_OFTEN = "awaiting it gave one awaitable after another"
_WRONG_SESSION = (
    "it was called in a thread, with a Session, because it does not look like a coroutine function. Define the handler "
    "by `async def`, or give run() an async_sessionmaker as session="
)


class LoopCaller:
    """Runs coroutines in the event loop for workers that wait in threads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._futures: dict[str, Future[Any]] = {}
        """The future that each worker waits for, by the name of its thread."""

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        """Run *coroutine*, and wait for its end. Raises RuntimeError if the event loop is closed."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise
        self._futures[threading.current_thread().name] = future
        return future.result()

    def cancel(self, worker: Receiver) -> None:
        """Cancel the task of *worker*."""
        if (future := self._futures.get(worker.name)) is not None:
            future.cancel()


class AwaitingFinisher:
    """Awaits what a handler returned to a thread, in the event loop: it did not look like a coroutine function."""

    def __init__(self) -> None:
        self._caller = LoopCaller()

    def finish(self, result: object) -> None:
        """Await *result* if it is awaitable. Raises its error, and TypeError for other unfinished work."""
        if is_awaitable(result):
            error = self._caller.run(_error_of(result))
            if error is not None:
                raise error
        else:
            check_done(result, _AWAITED_TOO_OFTEN)

    def cancel(self, worker: Receiver) -> None:
        """Cancel the task of *worker*."""
        self._caller.cancel(worker)


class AsyncExecutor:
    """Awaits a handler with one argument: a message, or a list of them."""

    commits_positions = False

    def __init__(self, handler: Callable[..., object], *, in_batches: bool) -> None:
        self._handler = handler
        self._in_batches = in_batches
        self._caller = LoopCaller()

    def execute(self, execution: Execution) -> Outcome:
        """Await the handler with each batch, in one task for all of them."""
        try:
            return self._caller.run(self._outcome(execution))
        except BaseException as error:  # noqa: BLE001 - the pool raises what is not the handler's
            return outcome_of(error, execution)

    def abandon(self, worker: Receiver) -> None:
        """Cancel the task of *worker*."""
        self._caller.cancel(worker)

    async def _outcome(self, execution: Execution) -> Outcome:
        # What is raised is not left to the task and its futures: SystemExit would end the event loop, and a
        # CancelledError would look as if the task had been cancelled.
        try:
            return await self._handle_all(execution) or Succeeded()
        except BaseException as error:  # noqa: BLE001 - the pool raises what is not the handler's
            return outcome_of(error, execution)

    async def _handle_all(self, execution: Execution) -> NotStarted | None:
        while batch := execution.next_batch():
            result = self._handler(batch if self._in_batches else batch[0])
            # Not in a function of its own, which would cost a second coroutine for each message.
            if type(result) is CoroutineType:
                result = await result
            if result is not None:
                await _finish(result)
        return None


class AsyncTransactionalExecutor(AsyncExecutor):
    """Awaits a handler with a session, whose changes commit with the group's position, or not at all."""

    commits_positions = True

    def __init__(
        self,
        handler: Callable[..., object],
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
            result = self._handler(batch if self._in_batches else batch[0], session)
            if result is not None:
                await _finish(result)
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
            target = session = _check_session(self._make_session())
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

    A handler whose sessions are AsyncSessions runs in the event loop, too, because it has to be one in disguise. What a
    handler returns to a thread is awaited in the event loop, unless it got a Session, which only its thread may use.

    Raises TypeError or ValueError for a wrong argument, SessionError if no session can be made, MissingDependencyError.
    """
    if not is_awaited(handler) and not (config.transaction and _makes_async_sessions(session)):
        finisher = ResultCheck(_WRONG_SESSION) if config.transaction else AwaitingFinisher()
        return direct_executor(core, handler, session, config, finisher)
    check_function(handler)
    awaited = async_observed(handler, core.database.observer, core.group.name)
    if config.transaction:
        check_greenlet()
        make_session = async_session_maker(session)
        if make_session is None:
            engines.provide_for_handlers(config.concurrency)  # raises now, and not when a message arrives
        elif isinstance(bind := getattr(bind_of(make_session), "sync_engine", None), Engine):
            core.database.provide_for_handlers(config.concurrency, beside=bind)
        return AsyncTransactionalExecutor(awaited, core, threads, engines, make_session, in_batches=config.has_batches)
    check_no_session(session)
    return AsyncExecutor(awaited, in_batches=config.has_batches)


def _makes_async_sessions(source: object) -> bool:
    from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker

    return isinstance(source, async_sessionmaker | async_scoped_session)


def _call(_target: Session | Connection, step: Callable[[], None]) -> None:
    """Take a step of a scope, which knows its connection, by ``run_sync``."""
    step()


def _check_session(made: object) -> AsyncSession:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    if not isinstance(made, AsyncSession | async_scoped_session):
        message = f"session= has to make a sqlalchemy.ext.asyncio.AsyncSession; it made {type(made).__name__}."
        raise TypeError(message)
    return cast("AsyncSession", made)


async def _close(target: AsyncConnection | AsyncSession) -> None:
    await to_the_end(target.close())


async def _roll_back(scope: TransactionScope, target: AsyncConnection | AsyncSession) -> None:
    await to_the_end(target.run_sync(_call, scope.roll_back))


async def _finish(result: object) -> None:
    """Await *result* while it is awaitable: a decorator that is a coroutine function may return a coroutine."""
    for _ in range(_MOST_AWAITS):
        if not is_awaitable(result):
            break
        result = await cast("Awaitable[object]", result)
    check_done(result, _AWAITED_TOO_OFTEN)


async def _error_of(result: object) -> BaseException | None:
    """Await *result*; return what that raises, which a future would change."""
    try:
        await _finish(result)
    except BaseException as error:  # noqa: BLE001 - raised in the worker's thread
        return error
    return None


def async_observed(handler: Callable[..., object], observer: Observer | None, group: str) -> Callable[..., object]:
    """Wrap *handler* so that *observer*, if there is one, sees each of its calls until its result is awaited."""
    if observer is None:
        return handler

    async def call(given: ReceivedMessage | list[ReceivedMessage], *session: AsyncSession) -> None:
        with ObservedHandling(observer, group, given if isinstance(given, list) else [given]):
            result = handler(given, *session)
            if result is not None:
                await _finish(result)

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
