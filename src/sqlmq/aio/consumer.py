"""Consumers for asyncio: the waiting is done in the event loop, so that it costs no thread; the rest is Consumer's."""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar, cast

from sqlmq.aio.executor import AsyncExecutor, AsyncTransacting, async_observed, async_session_maker
from sqlmq.aio.transaction import AsyncTransaction
from sqlmq.consumer.transaction import Host
from sqlmq.consumer.worker.dispatcher import Terms
from sqlmq.consumer.worker.executor import check_handler, check_no_session, is_awaited
from sqlmq.consumer.worker.pool import Limits
from sqlmq.errors import ConsumerClosedError
from sqlmq.model.config import check_max_messages, check_timeout
from sqlmq.model.timing import Deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlmq.aio.engines import Engines
    from sqlmq.aio.threads import Threads
    from sqlmq.aio.transaction import AsyncSessionSource
    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.consumer import Consumer
    from sqlmq.consumer.worker.executor import Executor
    from sqlmq.consumer.worker.pool import RunSummary
    from sqlmq.model.message import Message
    from sqlmq.model.positions import SeekTo
    from sqlmq.model.retry import FailurePolicy, Retry

T = TypeVar("T")

_YIELD_SECONDS = 0.01
"""How long a loop may go on without letting other tasks run."""


class AsyncConsumer:
    """Reads one topic as a member of a group. Made by ``await mq.consumer(topic, group_id)``; may be shared by tasks.

    As ``Consumer``, with tasks for threads: a message is done when the task that got it asks for the next one, or calls
    ``commit``. Leaving a loop by an exception, or by ``break``, finishes nothing, nor does the end of the task.

    So the task that handles a message has to be the one that asks. ``asyncio.timeout`` bounds the wait, or ``timeout=``;
    what makes a task of a single call, as ``asyncio.create_task(consumer.consume())``, is refused. Cancelled, a call gives
    back what it may have got.
    """

    def __init__(self, sync: Consumer, threads: Threads, engines: Engines) -> None:
        self._sync = sync
        self._monotonic = sync._clock.monotonic
        self._threads = threads
        self._engines = engines
        # Whoever has the turn looks for messages; the others wait for the turn.
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()
        self._yield_at = 0.0

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._sync.topic

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._sync.closed

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._sync.group

    @property
    def name(self) -> str:
        """How this member is called where members are listed."""
        return self._sync.name

    @property
    def partitions(self) -> tuple[int, ...]:
        """The numbers of the partitions it owns at this moment."""
        return self._sync.partitions

    async def consume(self, timeout: float | None = None) -> Message:
        """Return the next message, and finish what this task got before.

        Waits up to *timeout* seconds, without one for ever; raises TimeoutError when nothing came, ConsumerClosedError
        when the consumer is or becomes closed. Raises RuntimeError in a task of its own, which would end with the
        message unfinished.
        """
        return self._sync._only(await self._poll_until(self._sync.deliver, 1, check_timeout(timeout)), timeout)

    def consume_chan(self) -> AsyncIterator[Message]:
        """Give one message after the other, each when the one before is done; ends when the consumer closes.

        The message at which a loop was left, by an exception or by ``break``, is not done: ``commit`` finishes it all
        the same, asking for messages brings it again, before what follows it in its partition.
        """
        return _Messages(self)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.consume_chan()

    async def poll(self, max_messages: int = 500, timeout: float | None = None) -> list[Message]:
        """Return up to *max_messages*, as soon as there is one, and finish what this task got before.

        Each partition's messages come in order. Waits up to *timeout* seconds, without one for ever; an empty list
        says that nothing came. ``timeout=0`` looks once. Raises RuntimeError in a task of its own.
        """
        return await self._poll_until(self._sync.deliver, check_max_messages(max_messages), check_timeout(timeout))

    def transaction(
        self, max_messages: int = 100, timeout: float | None = None, session: AsyncSessionSource | None = None
    ) -> AsyncTransaction:
        """Take messages, and do with them what takes effect together with the group's position, or not at all.

        To be used as ``async with consumer.transaction() as tx:``; ``tx.session`` is an AsyncSession, ``tx.connection``
        an AsyncConnection. *session* is an async_sessionmaker, an AsyncSession, an async_scoped_session or an
        AsyncConnection; by default one of an engine for asyncio on the MQ's database. All else is as in
        ``Consumer.transaction``.
        """
        check_max_messages(max_messages)
        sync = self._sync
        task = TaskReceiver(_current_task())
        host = Host(sync._count_wakeups, lambda: sync._give_back_all(task), sync._wait, sync._wake_others)
        return AsyncTransaction(
            sync._transactions,
            host,
            self._wait_after,
            self._threads,
            self._engines,
            max_messages,
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
        """Call *handler* with each message, until ``stop`` or a signal; then close the consumer, and return what was done.

        As ``Consumer.run``. A coroutine function is awaited in this event loop, up to *concurrency* of its calls at a time,
        and gets, with *transaction*, an AsyncSession, made by *session*, an async_sessionmaker, if that is given. Any
        other handler runs in threads. A handler that exceeds *max_processing_seconds*, or *stop_seconds*, is cancelled.

        Cancelled, it stops as ``stop`` does, and ends when the handlers have ended.
        """
        sync = self._sync
        terms = Terms.checked(retry, on_failure, max_parked, batch_size)
        limits = Limits.checked(concurrency, stop_seconds, max_processing_seconds, idle_seconds)
        perform = self._executor(handler, session, in_batches=batch_size is not None, transaction=transaction)
        run = await self._threads.run(lambda: sync._new_run(perform, terms, limits))
        with run.taking_signals() if handle_signals else contextlib.nullcontext():
            return await self._threads.run_apart(lambda: sync._work(run), name="sqlmq-run", hurry=run.stop)

    def stop(self) -> None:
        """Have ``run`` begin no other message, and return when those in hand are done. May be called from anywhere.

        Called before ``run``, it makes that return at once.
        """
        self._sync.stop()

    async def commit(self) -> None:
        """Finish what this task got, and commit everything that is finished, now.

        Raises FencedError if another consumer has taken one of the partitions over, UnknownTopicError if the topic was
        deleted; what was finished of other partitions is committed all the same. Raises RuntimeError in a task of its
        own, which has got nothing. Cancelled, it has finished and committed, or neither.
        """
        receiver = self._receiver()
        await self._threads.run(lambda: self._sync._commit(receiver))

    async def seek(self, partition: int, to: SeekTo) -> None:
        """Move the group in *partition*, which this consumer owns, and go on there. See ``Consumer.seek``.

        A task that is cancelled meanwhile ends when it is moved, or can't be.
        """
        await self._threads.run(lambda: self._sync.seek(partition, to))

    async def close(self) -> None:
        """Commit what is finished, hand the partitions over and leave the group. A second call has the same result.

        Whatever task waits for a message gets ConsumerClosedError. What was handed out and not finished is delivered
        again, to the next owner. A task that is cancelled meanwhile ends when the consumer is closed.
        """
        await self._threads.run_apart(self._sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._threads.run_apart(lambda: self._sync.__exit__(kind, error, traceback))

    def __repr__(self) -> str:
        return f"<Async{repr(self._sync)[1:]}"

    def _executor(
        self, handler: Callable[..., object], session: object, *, in_batches: bool, transaction: bool
    ) -> Executor:
        sync = self._sync
        if not is_awaited(handler):
            check_handler(handler)
            return sync._executor(handler, session, in_batches=in_batches, transaction=transaction)
        awaited = async_observed(cast("Callable[..., Awaitable[object]]", handler), sync._database.observer, self.group)
        if not transaction:
            check_no_session(session)
            return AsyncExecutor(awaited, in_batches=in_batches)
        return AsyncTransacting(
            awaited,
            sync._transactions,
            sync._group,
            self._threads,
            self._engines,
            async_session_maker(session),
            in_batches=in_batches,
        )

    # The loop of a task: as that of a thread, with the steps in threads and the waiting in the event loop.

    async def _poll_until(
        self, give: Callable[[Receiver, int], list[T]], at_most: int, timeout: float | None
    ) -> list[T]:
        receiver = self._receiver()
        sync = self._sync
        began = self._monotonic()
        deadline = Deadline.after(timeout, began)
        if began > self._yield_at:
            await asyncio.sleep(0)
            self._yield_at = began + _YIELD_SECONDS
        # At most once, each message takes a commit.
        if sync._ack == "auto" and (given := sync.fetch_buffered(receiver, give, at_most)):
            return given
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        has_turn = False
        attempt = 0

        def look() -> list[T]:
            return sync.fetch(receiver, give, at_most, deadline)

        def finish_and_look() -> list[T]:
            sync.acknowledge(receiver)
            return look()

        def give_back(_given: list[T]) -> None:
            sync.requeue(receiver)

        step = finish_and_look
        try:
            while True:
                seen = sync._wakeups.count
                given = await self._threads.run(step, give_back)
                step = look
                now = self._monotonic()
                if given or deadline.passed(now):
                    return given
                if not has_turn:
                    is_taken = turn.locked()
                    with sync._wakeups.waiting():
                        # With a deadline even if it is free: somebody who has waited for it goes first.
                        has_turn = await _acquire(turn, deadline.remaining(now))
                    if is_taken or not has_turn:
                        continue  # whoever had the turn may have found more than he took
                is_woken = await self._wait_after(attempt, deadline, seen, may_rest=True)
                attempt = 0 if is_woken else attempt + 1
        finally:
            if has_turn:
                turn.release()

    async def _wait_after(self, attempt: int, deadline: Deadline, seen: int, *, may_rest: bool = False) -> bool:
        """Wait after *attempt*, which found nothing, until a wake-up since the count *seen*; return whether."""
        pause = self._sync._wakeups.pause(attempt, deadline, may_delegate=may_rest)
        loop = asyncio.get_running_loop()
        is_over = asyncio.Event()

        def callback() -> None:
            # A loop that is closed has nobody to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(is_over.set)

        wakeups = self._sync._wakeups
        with wakeups.waiting(pause, callback):
            while wakeups.count == seen and (seconds := wakeups.remaining(pause)) > 0:
                is_over.clear()
                timer = loop.call_later(seconds, is_over.set)
                try:
                    await is_over.wait()
                finally:
                    timer.cancel()
        return wakeups.count != seen

    def _receiver(self) -> TaskReceiver:
        """The task that asks. Raises RuntimeError if it was made of this call alone.

        ``asyncio.wait_for`` before Python 3.12, ``create_task``, ``gather`` and ``asyncio.run`` make such tasks. They end
        when the call returns, so what they got would be taken for abandoned and delivered again, at once and for ever.
        """
        task = _current_task()
        if self._sync._ack == "auto" and _is_one_call(task.get_coro()):
            message = (
                "This call runs as a task of its own, which ends with it: a message it got could not be finished. Await "
                "it in the task that handles the messages, and bound the wait with timeout= or asyncio.timeout(), not "
                "with asyncio.wait_for(), create_task() or gather()."
            )
            raise RuntimeError(message)
        return TaskReceiver(task)


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


class _Messages:
    """Iterates over a consumer's messages.

    A class, not an asynchronous generator: when a loop is left by ``break`` or by an exception, such a generator learns
    of it late, in a task of the event loop's, and by then the next call would have finished the message. An object is
    dropped at once.
    """

    def __init__(self, consumer: AsyncConsumer) -> None:
        self._consumer = consumer
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[object] | None = None
        """The one that got the last message; None when it has left the loop."""
        self._lent: Iterator[Message] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        # Told the loop, it takes 0.1 us instead of 0.3, before Python 3.12.
        if self._task is not None and self._task is asyncio.current_task(self._loop):
            message = next(self._lent, None)
            if message is not None:
                return message
        return await self._poll_until()

    async def _poll_until(self) -> Message:
        consumer = self._consumer
        self._task = None
        try:
            while True:
                if consumer._sync._ack == "on_delivery":
                    return await consumer.consume()
                (delivery,) = await consumer._poll_until(
                    consumer._sync.deliver_lazily, consumer._sync._options.read_messages, None
                )
                # No longer than that without asking, which lets other tasks run.
                self._lent = consumer._sync._iterate_delivery(delivery, consumer._monotonic() + _YIELD_SECONDS)
                message = next(self._lent, None)
                if message is not None:  # nobody else has asked in between
                    break
        except ConsumerClosedError:
            raise StopAsyncIteration from None
        self._task = consumer._receiver().task
        self._loop = self._task.get_loop()
        return message

    async def aclose(self) -> None:
        """Leave the message that was given last unfinished."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._consumer._sync.mark_interrupted(TaskReceiver(task))


def _is_one_call(running: object) -> bool:
    """Whether a task that runs *running* ends when one of our calls returns."""
    # anext() with a default is no coroutine: before Python 3.12, a task runs it as it is.
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
        message = "A consumer for asyncio is used inside a task."
        raise RuntimeError(message)
    return task


async def _acquire(turn: asyncio.Lock, seconds: float) -> bool:
    """Wait up to *seconds* for *turn*; return whether it came."""
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else seconds):
            return await turn.acquire()
    except TimeoutError:
        return False
