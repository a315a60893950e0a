"""Consumers for asyncio. Tasks wait in the event loop, so waiting costs no thread; the steps are those of `ConsumerCore`."""

from __future__ import annotations

import asyncio
import math
import weakref
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from sqlmq.aio.executor import async_executor
from sqlmq.aio.futures import wait_for_wakeup
from sqlmq.aio.transaction import AsyncTransaction
from sqlmq.consumer.core import NO_DEADLINE
from sqlmq.consumer.worker.config import RunConfig
from sqlmq.consumer.worker.pool import WorkerPool
from sqlmq.errors import ConsumerClosedError
from sqlmq.model import validation
from sqlmq.model.retry import Retry
from sqlmq.model.timing import Deadline
from sqlmq.model.validation import check_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlmq.aio.engines import Engines
    from sqlmq.aio.threads import Threads
    from sqlmq.aio.transaction import AsyncSessionSource
    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.partition import Delivery
    from sqlmq.consumer.worker.pool import RunSummary
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.model.positions import SeekTo
    from sqlmq.model.retry import FailurePolicy

_YIELD_SECONDS = 0.01
"""How long a loop may go on without letting other tasks run."""


class AsyncConsumer:
    """Reads one topic as a member of a group. Made by ``await mq.consumer(topic, group)``; may be shared by tasks.

    As ``Consumer``, with tasks for threads: a message is done when the task that got it asks for the next one or calls
    ``commit``. A loop that is left by an exception or by ``break`` finishes nothing, and neither does the end of the task.

    So the task that handles a message must be the one that asks. Bound the wait with ``timeout=`` or ``asyncio.timeout``.
    A task made of a single call, as ``asyncio.create_task(consumer.consume())``, is refused. A cancelled call gives back
    what it may have got.
    """

    def __init__(self, core: ConsumerCore, in_use: object, threads: Threads, engines: Engines) -> None:
        self._core = core
        self._in_use = in_use
        self._threads = threads
        self._engines = engines
        self._fetcher = AsyncFetcher(core, in_use, threads)

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._core.topic

    @property
    def closed(self) -> bool:
        """Whether the consumer was closed."""
        return self._core.closed

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._core.subscription.group_name

    @property
    def name(self) -> str:
        """The member's name where members are listed."""
        return self._core.subscription.member_name

    @property
    def partitions(self) -> tuple[int, ...]:
        """The numbers of the partitions that the consumer owns now."""
        return self._core.coordinator.partition_numbers

    async def consume(self, timeout: float | None = None) -> ReceivedMessage:
        """Finish what this task got before, and return the next message.

        Waits up to *timeout* seconds, or without end for None. Raises TimeoutError if no message came, ConsumerClosedError
        if the consumer is closed or becomes closed. Raises RuntimeError in a task made of this call alone, which would end
        with the message unfinished.
        """
        messages = await self._fetcher.poll(1, check_timeout(timeout))
        if not messages:
            raise self._core.no_message_error(timeout)
        return messages[0]

    def messages(self) -> AsyncIterator[ReceivedMessage]:
        """Iterate over the messages until the consumer closes: ``async for message in consumer`` does the same.

        A message is done when the loop asks for the next one. If the loop is left by an exception or by ``break``, its last
        message is not done: ``commit`` finishes it, and the next poll delivers it again, before the messages that follow it
        in its partition. Raises ConsumerClosedError at the call if the consumer is closed already.
        """
        self._core.check_usable()
        return _Messages(self._core, self._fetcher)

    def consume_chan(self) -> AsyncIterator[ReceivedMessage]:
        """Iterate as ``messages`` does. Go's name for it."""
        return self.messages()

    def __aiter__(self) -> AsyncIterator[ReceivedMessage]:
        return self.messages()

    async def poll(self, max_messages: int = 500, *, timeout: float | None = None) -> list[ReceivedMessage]:
        """Finish what this task got before, and return up to *max_messages* as soon as there is one.

        Each partition's messages are in order. Waits up to *timeout* seconds, or without end for None; with 0 it polls
        once. The list is empty if no message came. Raises RuntimeError in a task made of this call alone.
        """
        return await self._fetcher.poll(validation.integer("max_messages", max_messages), check_timeout(timeout))

    def transaction(
        self, *, max_messages: int = 100, timeout: float | None = None, session: AsyncSessionSource | None = None
    ) -> AsyncTransaction:
        """Take messages in a transaction of their own: your changes and the group's position commit together, or not at all.

        Use it as ``async with consumer.transaction() as tx:``; ``tx.session`` is an AsyncSession, ``tx.connection`` an
        AsyncConnection. *session* is an async_sessionmaker, an AsyncSession, an async_scoped_session or an AsyncConnection;
        by default an engine for asyncio on the MQ's database makes one. All else is as in ``Consumer.transaction``.
        """
        return AsyncTransaction(
            self._core,
            self._in_use,
            TaskReceiver(_current_task()),
            self._threads,
            self._engines,
            validation.integer("max_messages", max_messages),
            check_timeout(timeout),
            session,
        )

    async def run(
        self,
        handler: Callable[..., object],
        *,
        batch_size: int | None = None,
        transaction: bool = False,
        session: Callable[[], AsyncSession] | Callable[[], Session] | None = None,
        concurrency: int = 1,
        retry: Retry | None = None,
        on_failure: FailurePolicy | None = None,
        max_parked: int = 1_000,
        max_processing_seconds: float | None = None,
        stop_seconds: float = 25.0,
        idle_seconds: float | None = None,
        handle_signals: bool = True,
    ) -> RunSummary:
        """Call *handler* with each message until ``stop`` or a signal; then close the consumer and return a summary.

        As ``Consumer.run``. A coroutine function is awaited in this event loop, up to *concurrency* calls at a time. With
        *transaction* it gets an AsyncSession, made by *session*, an async_sessionmaker, if given. Any other handler runs in
        threads. A handler that exceeds *max_processing_seconds*, or *stop_seconds*, is cancelled.

        A cancelled ``run`` stops as by ``stop``, and ends when the handlers have ended.
        """
        core = self._core
        config = RunConfig(
            batch_size=batch_size,
            transaction=transaction,
            concurrency=concurrency,
            retry=Retry() if retry is None else retry,
            on_failure=on_failure,
            max_parked=max_parked,
            max_processing_seconds=max_processing_seconds,
            stop_seconds=stop_seconds,
            idle_seconds=idle_seconds,
            handle_signals=handle_signals,
        )
        executor = async_executor(core, handler, session, config, self._threads, self._engines)
        pool = WorkerPool(core, config, executor)
        await self._threads.run(partial(core.begin_run, pool))
        with pool.taking_signals(asyncio.current_task()):
            return await self._threads.run_apart(pool.work_and_close, name="sqlmq-run", shorten=pool.stop)

    def stop(self) -> None:
        """Make ``run`` return after the messages that are in flight. Any task or thread may call it.

        A ``run`` that begins later returns at once.
        """
        self._core.stop()

    async def commit(self) -> None:
        """Finish what this task got, and commit everything that is done, now.

        Raises FencedError if another consumer has taken over one of the partitions, UnknownTopicError if the topic was
        deleted. The positions in the other partitions are committed all the same. Raises RuntimeError in a task made of
        this call alone, which has got nothing. A cancelled call has finished and committed, or neither.

        If this is the task's first call, it also finishes what tasks got that have ended without an error: cells of a
        notebook are such tasks. A message at which one has left a loop is delivered again.
        """
        is_first_call = self._fetcher.is_first_call()
        receiver = self._fetcher.receiver()
        await self._threads.run(lambda: self._core.commit(receiver, _has_succeeded if is_first_call else None))

    async def seek(self, partition: int, to: SeekTo) -> None:
        """Move the group in *partition*, which this consumer owns. See ``Consumer.seek``.

        A cancelled call ends when the group is moved, or can't be.
        """
        await self._threads.run(lambda: self._core.seek(partition, to))

    async def close(self) -> None:
        """Commit what is done, hand the partitions over and leave the group. A second call has the same result.

        Tasks that wait for a message get ConsumerClosedError. Messages in flight are delivered again, to the next owner. A
        cancelled call ends when the consumer is closed.
        """
        await self._threads.run_apart(self._core.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._threads.run_apart(lambda: self._core.close_after(error))

    def __repr__(self) -> str:
        return f"<Async{repr(self._core)[1:]}"


class AsyncFetcher:
    """Fetches for the tasks that share one consumer: the steps run in threads, the waiting in the event loop."""

    def __init__(self, core: ConsumerCore, in_use: object, threads: Threads) -> None:
        self._core = core
        self._in_use = in_use
        self._threads = threads
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()
        self._callers: weakref.WeakSet[asyncio.Task[object]] = weakref.WeakSet()
        """The tasks that have asked for messages, or have committed."""
        self._last_caller: Callable[[], asyncio.Task[object] | None] = lambda: None
        """The last of them, weakly: a look at the set takes six times as long."""
        self._yield_at = 0.0

    async def poll(self, at_most: int, timeout: float | None) -> list[ReceivedMessage]:
        """Finish what this task got before, and return up to *at_most* messages; none if none came within *timeout*."""
        core, receiver = self._core, self.receiver()
        deadline = Deadline.after(timeout, core.clock.monotonic())
        await self._let_other_tasks_run()
        # Not with at-most-once delivery, where each message takes a commit.
        if core.ack == "auto" and (messages := core.fetch_buffered(receiver, at_most)):
            return messages
        async with self._turn(deadline) as turn:
            while True:
                seen = core.wakeups.count
                messages = await self._threads.run(
                    lambda: core.fetch(receiver, at_most, deadline), lambda _messages: core.requeue(receiver)
                )
                if messages or deadline.passed(core.clock.monotonic()):
                    return messages
                await turn.wait(seen)

    async def next_delivery(self) -> Delivery:
        """As ``poll`` without a timeout, for a loop: messages of one partition, which the loop takes one by one."""
        core, receiver, at_most = self._core, self.receiver(), self._core.config.read_messages
        await self._let_other_tasks_run()
        if (delivery := core.fetch_buffered_lazily(receiver, at_most)) is not None:
            return delivery
        async with self._turn(NO_DEADLINE) as turn:
            while True:
                seen = core.wakeups.count
                delivery = await self._threads.run(
                    lambda: core.fetch_lazily(receiver, at_most, NO_DEADLINE), lambda _delivery: core.requeue(receiver)
                )
                if delivery is not None:
                    return delivery
                await turn.wait(seen)

    def receiver(self) -> TaskReceiver:
        """The calling task. Raises RuntimeError if it was made of a single call of ours.

        ``asyncio.wait_for`` before Python 3.12, ``create_task``, ``gather`` and ``asyncio.run`` make such tasks. They end
        when the call returns, so their message would count as abandoned and be redelivered, again and again.
        """
        task = _current_task()
        if self._core.ack == "auto" and _is_one_call(task.get_coro()):
            message = (
                "This call runs as a task of its own, which ends with it, so a message that it got could not be finished. "
                "Await it in the task that handles the messages, and bound the wait with timeout= or asyncio.timeout(), "
                "not with asyncio.wait_for(), create_task() or gather()."
            )
            raise RuntimeError(message)
        if self._last_caller() is not task:
            self._callers.add(task)
            self._last_caller = weakref.ref(task)
        return TaskReceiver(task)

    def is_first_call(self) -> bool:
        """Whether the calling task has asked for nothing yet, and committed nothing.

        What other tasks left unfinished is nothing to a task that was there before: it may be one that commits from time to
        time, and the others may have caught their errors.
        """
        return _current_task() not in self._callers

    async def _let_other_tasks_run(self) -> None:
        """Yield to the event loop now and then: a poll that finds messages in the buffer awaits nothing else."""
        now = self._core.clock.monotonic()
        if now > self._yield_at:
            await asyncio.sleep(0)
            self._yield_at = now + _YIELD_SECONDS

    def _turn(self, deadline: Deadline) -> FetchTurn:
        lock = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        return FetchTurn(self._core, lock, deadline)


class FetchTurn:
    """The turn of one task among those of an event loop that wait for messages of one consumer.

    The task that has the turn waits for wake-ups and fetches; the others wait for the turn. So a thousand waiting tasks
    ask the database as often as one. The end of the ``async with`` block gives the turn to the next task.
    """

    def __init__(self, core: ConsumerCore, lock: asyncio.Lock, deadline: Deadline) -> None:
        self._core = core
        self._lock = lock
        self._deadline = deadline
        self._has_turn = False
        self._attempt = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._has_turn:
            self._lock.release()

    async def wait(self, seen: int) -> None:
        """Wait after a fetch that found nothing, until it is time for the next; *seen* is the count of wake-ups before."""
        if not self._has_turn:
            was_free = not self._lock.locked()
            await self._acquire()
            if not (was_free and self._has_turn):
                return  # the task that had the turn may have fetched more than it took
        is_woken = await wait_for_wakeup(self._core.wakeups, self._attempt, self._deadline, seen, may_delegate=True)
        self._attempt = 0 if is_woken else self._attempt + 1

    async def _acquire(self) -> None:
        """Wait for the turn, at the most until the deadline."""
        seconds = self._deadline.remaining(self._core.clock.monotonic())
        with self._core.wakeups.waiting():
            try:
                # With a timeout even if the lock is free: a task that waits for it goes first.
                async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                    self._has_turn = await self._lock.acquire()
            except TimeoutError:
                self._has_turn = False


@dataclass(frozen=True, slots=True)
class TaskReceiver:
    """A task that gets messages, as the core sees it."""

    task: asyncio.Task[object]

    @property
    def name(self) -> str:
        """The task's name."""
        return f"task {self.task.get_name()}"

    def is_alive(self) -> bool:
        """Whether the task can go on."""
        return not self.task.done() and not self.task.get_loop().is_closed()

    def has_succeeded(self) -> bool:
        """Whether the task has ended, and not by an error or a cancellation."""
        if not self.task.done() or self.task.cancelled():
            return False
        # `exception()` would count as a look at the error, and asyncio would not log it any more.
        return self.task._exception is None  # noqa: SLF001


class _Messages:
    """Iterates over a consumer's messages.

    A class, not an asynchronous generator. When a loop is left by ``break`` or by an exception, such a generator is closed
    late, in another task, and by then the next call would have finished the message. An object is dropped at once.
    """

    def __init__(self, core: ConsumerCore, fetcher: AsyncFetcher) -> None:
        self._core = core
        self._fetcher = fetcher
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[object] | None = None
        """The task that got the last message; None when it has left the loop."""
        self._delivered: Iterator[ReceivedMessage] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReceivedMessage:
        # With the loop as argument, current_task takes 0.1 us instead of 0.3 before Python 3.12.
        if self._task is not None and self._task is asyncio.current_task(self._loop):
            message = next(self._delivered, None)
            if message is not None:
                return message
        return await self._poll()

    async def _poll(self) -> ReceivedMessage:
        core = self._core
        self._task = None
        try:
            if core.ack == "on_delivery":
                (message,) = await self._fetcher.poll(1, None)
                return message
            message = await self._take_first()
        except ConsumerClosedError:
            raise StopAsyncIteration from None
        self._task = _current_task()
        self._loop = self._task.get_loop()
        return message

    async def _take_first(self) -> ReceivedMessage:
        core = self._core
        while True:
            delivery = await self._fetcher.next_delivery()
            # No longer than that without a poll, which lets other tasks run.
            self._delivered = core.iterate_delivery(delivery, core.clock.monotonic() + _YIELD_SECONDS)
            message = next(self._delivered, None)
            if message is not None:  # None if another task has reclaimed it in between
                return message

    async def aclose(self) -> None:
        """Leave the last message unfinished."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._core.mark_interrupted(TaskReceiver(task))


def _has_succeeded(receiver: Receiver) -> bool:
    return isinstance(receiver, TaskReceiver) and receiver.has_succeeded()


def _is_one_call(running: object) -> bool:
    """Whether a task that runs *running* ends when a call of ours returns."""
    # Before Python 3.12 a task runs anext() with a default directly: it has no coroutine around it.
    return getattr(running, "cr_code", None) in _CALLS or type(running).__name__ == "anext_awaitable"


_CALLS = {
    AsyncConsumer.consume.__code__,
    AsyncConsumer.poll.__code__,
    AsyncConsumer.commit.__code__,
    _Messages.__anext__.__code__,
}


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        message = "An AsyncConsumer can only be used inside a task."
        raise RuntimeError(message)
    return task
