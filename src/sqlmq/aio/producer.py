"""Producers for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar, overload

from sqlmq.aio.futures import Arrivals
from sqlmq.model.validation import check_due, check_no_timeout, check_timeout
from sqlmq.producer.batcher import result_or_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    from sqlmq.aio.threads import Threads
    from sqlmq.model.message import DelayedMessage, Message, ProducerResult
    from sqlmq.model.validation import Due
    from sqlmq.producer.outbox import Publication, SessionLike
    from sqlmq.producer.producer import Producer

T = TypeVar("T")

AsyncSessionLike: TypeAlias = "AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection"
"""Whatever stands for a transaction of the application's."""


class AsyncProducer:
    """Appends messages to one topic. Made by ``await mq.producer(topic)``; may be shared by tasks.

    As ``Producer``: calls that come while another one commits go together in the next transaction, so thousands of
    tasks share few of them.
    """

    def __init__(self, sync: Producer, threads: Threads) -> None:
        self._sync = sync
        self._threads = threads
        self._arrivals: Arrivals[ProducerResult] = Arrivals()

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._sync.topic

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._sync.closed

    @overload
    async def produce(
        self,
        message: Message,
        *,
        timeout: float | None = None,
        session: None = None,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> ProducerResult: ...
    @overload
    async def produce(
        self,
        message: Message,
        *,
        timeout: None = None,
        session: AsyncSessionLike,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> Publication: ...
    @overload
    async def produce(
        self,
        message: Message,
        *,
        timeout: None = None,
        session: AsyncSessionLike | None = None,
        delay_seconds: float,
        deliver_at: None = None,
    ) -> DelayedMessage: ...
    @overload
    async def produce(
        self,
        message: Message,
        *,
        timeout: None = None,
        session: AsyncSessionLike | None = None,
        delay_seconds: None = None,
        deliver_at: datetime,
    ) -> DelayedMessage: ...

    async def produce(
        self,
        message: Message,
        *,
        timeout: float | None = None,
        session: AsyncSessionLike | None = None,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
    ) -> ProducerResult | Publication | DelayedMessage:
        """Append *message* and return its place, once that is committed.

        *timeout*, in seconds, bounds the wait: TimeoutError means that the message was not sent, OutcomeUnknownError
        that it was on its way. Cancelled, a message that still waits for its turn is withdrawn; one that is on its way
        may be in the log or not. Errors are those of ``Producer.produce``.

        With a *session* (an AsyncSession, async_scoped_session or AsyncConnection on the same database, whatever its
        driver) the message is part of its transaction instead, as ``Producer.produce`` tells.

        *delay_seconds* or *deliver_at* has it stored, and appended when it is due, as ``Producer.produce`` tells.
        Cancelled, it may be stored or not.
        """
        due = check_due(delay_seconds, deliver_at)
        if due is not None:
            return (await self._delay([message], None, timeout, session, due))[0]
        if session is not None:
            check_no_timeout(timeout)
            return await self._publish(session, lambda sync: self._sync.produce(message, session=sync))
        seconds = check_timeout(timeout)
        return await self._arrival(await self._submit(message, None), seconds)

    @overload
    async def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: float | None = None,
        session: None = None,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> ProducerResult: ...
    @overload
    async def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: None = None,
        session: AsyncSessionLike,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> Publication: ...
    @overload
    async def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: None = None,
        session: AsyncSessionLike | None = None,
        delay_seconds: float,
        deliver_at: None = None,
    ) -> DelayedMessage: ...
    @overload
    async def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: None = None,
        session: AsyncSessionLike | None = None,
        delay_seconds: None = None,
        deliver_at: datetime,
    ) -> DelayedMessage: ...

    async def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: float | None = None,
        session: AsyncSessionLike | None = None,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
    ) -> ProducerResult | Publication | DelayedMessage:
        """Append *message* to the partition with the number *partition*, whatever its key; else as ``produce``.

        Raises InvalidPartitionError if the topic has no such partition.
        """
        due = check_due(delay_seconds, deliver_at)
        if due is not None:
            return (await self._delay([message], partition, timeout, session, due))[0]
        if session is not None:
            check_no_timeout(timeout)
            return await self._publish(
                session, lambda sync: self._sync.produce_with_partition(message, partition, session=sync)
            )
        seconds = check_timeout(timeout)
        return await self._arrival(await self._submit(message, partition), seconds)

    def submit(self, message: Message, partition: int | None = None) -> asyncio.Future[ProducerResult]:
        """Append *message* without waiting for it; the future has the place, or the error.

        Cancelling the future withdraws the message, if it still waits. Messages submitted by one task keep their order
        in each partition. ``close`` waits for all of them. To be called where the event loop runs.
        """
        asyncio.get_running_loop()  # or nobody could tell the future; raised before anything is sent
        if partition is None or self._knows_topic:
            return self._arrivals.of(self._sync.submit(message, partition))
        return asyncio.ensure_future(self.produce_with_partition(message, partition))

    @overload
    async def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: None = None,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> list[ProducerResult]: ...
    @overload
    async def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: AsyncSessionLike,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> list[Publication]: ...
    @overload
    async def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: AsyncSessionLike | None = None,
        delay_seconds: float,
        deliver_at: None = None,
    ) -> list[DelayedMessage]: ...
    @overload
    async def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: AsyncSessionLike | None = None,
        delay_seconds: None = None,
        deliver_at: datetime,
    ) -> list[DelayedMessage]: ...

    async def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: AsyncSessionLike | None = None,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
    ) -> list[ProducerResult] | list[Publication] | list[DelayedMessage]:
        """Append *messages* in one transaction, all or none, and return their places in the same order.

        Those without a key go to one partition together. Cancelled, all of them may be in the log, or none. With a
        *session*, as ``produce``: in its transaction. With *delay_seconds* or *deliver_at* as well: all are due at the
        same moment, and keep their order in each partition.
        """
        due = check_due(delay_seconds, deliver_at)
        together = list(messages)
        if due is not None:
            return await self._delay(together, None, None, session, due)
        if session is not None:
            return await self._publish(session, lambda sync: self._sync.produce_many(together, session=sync))
        return await self._threads.run(lambda: self._sync.produce_many(together))

    async def close(self) -> None:
        """Wait for what was submitted, then take no more. A second call has the same result.

        A database that does not answer is waited for no longer than five seconds. A task that is cancelled meanwhile
        ends when that is done.
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

    @property
    def _knows_topic(self) -> bool:
        """Whether a partition can be checked without asking the database; not after the topic was deleted."""
        return self._sync._topic is not None

    async def _publish(self, session: AsyncSessionLike, work: Callable[[SessionLike], T]) -> T:
        given = carrier_of(session)
        if not (self._knows_topic and self._sync._database.knows_identity):
            # What *work* would ask the database for by a connection of ours, keeping the event loop waiting.
            await self._threads.run(self._sync._look_up)
        return await given.run_sync(work)

    async def _delay(
        self,
        messages: Sequence[Message],
        partition: int | None,
        timeout: float | None,
        session: AsyncSessionLike | None,
        due: Due,
    ) -> list[DelayedMessage]:
        if session is None:
            return await self._threads.run(lambda: self._sync._delay(messages, partition, timeout, None, due))
        return await self._publish(session, lambda sync: self._sync._delay(messages, partition, timeout, sync, due))

    async def _submit(self, message: Message, partition: int | None) -> Future[ProducerResult]:
        if partition is None or self._knows_topic:
            return self._sync.submit(message, partition)
        return await self._threads.run(lambda: self._sync.submit(message, partition), lambda future: future.cancel())

    async def _arrival(self, future: Future[ProducerResult], seconds: float | None) -> ProducerResult:
        if seconds is None:
            return await self._arrivals.of(future)
        try:
            async with asyncio.timeout(seconds):
                return await self._arrivals.of(future)
        except TimeoutError:
            return result_or_timeout(future, seconds)


def carrier_of(session: AsyncSessionLike) -> AsyncSession | AsyncConnection:
    """What *session* stands for; raises TypeError for what is not asyncio's."""
    # Here, because those who have no such session need not have what SQLAlchemy needs for it.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    given: object = session() if isinstance(session, async_scoped_session) else session
    if not isinstance(given, AsyncSession | AsyncConnection):
        complaint = (
            "session must be an AsyncSession, an async_scoped_session or an AsyncConnection of SQLAlchemy's, not "
            f"{type(given).__name__}; Session and Connection are for a Producer."
        )
        raise TypeError(complaint)
    return given
