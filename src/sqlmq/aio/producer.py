"""Producers for asyncio."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Self, TypeAlias, overload

from sqlmq.aio.engines import check_greenlet
from sqlmq.aio.futures import Arrivals
from sqlmq.model.validation import check_due, check_no_timeout, check_partition_number, check_timeout
from sqlmq.producer.batcher import result_or_timeout

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    from sqlmq.aio.threads import Threads
    from sqlmq.model.message import DelayedMessage, Message, ProducerResult, Publication
    from sqlmq.model.validation import Due
    from sqlmq.producer.producer import Producer

AsyncSessionLike: TypeAlias = "AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection"
"""The objects that carry a transaction of the application."""


class AsyncProducer:
    """Appends messages to one topic. Made by ``await mq.producer(topic)``. Tasks may share it.

    As with ``Producer``, calls that arrive during a commit share the next transaction, so thousands of tasks need few
    transactions.
    """

    def __init__(self, sync: Producer, threads: Threads) -> None:
        self._sync = sync
        self._core = sync._core  # noqa: SLF001 - both faces have one core
        self._threads = threads
        self._arrivals: Arrivals[ProducerResult] = Arrivals()

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._sync.topic

    @property
    def closed(self) -> bool:
        """Whether the producer was closed."""
        return self._sync.closed

    @overload
    async def produce(
        self, message: Message, *, partition: int | None = None, timeout: float | None = None, session: None = None
    ) -> ProducerResult: ...
    @overload
    async def produce(
        self, message: Message, *, partition: int | None = None, timeout: None = None, session: AsyncSessionLike
    ) -> Publication: ...

    async def produce(
        self,
        message: Message,
        *,
        partition: int | None = None,
        timeout: float | None = None,
        session: AsyncSessionLike | None = None,
    ) -> ProducerResult | Publication:
        """Append *message* and return its place after the commit.

        *partition* is the number of a partition; it overrides the key. *timeout*, in seconds, bounds the wait: TimeoutError
        means that the message was not sent, OutcomeUnknownError that it was being sent. Cancelling the task withdraws a
        message that still waits for its turn; a message that is being sent may be in the log or not. Errors are those of
        ``Producer.produce``.

        With a *session* (an AsyncSession, async_scoped_session or AsyncConnection on the same database, with any
        driver) the message is part of its transaction, as in ``Producer.produce``.
        """
        if session is not None:
            check_no_timeout(timeout)
            return (await self._publish(session, [message], partition))[0]
        seconds = check_timeout(timeout)
        return await self._result(await self._submit(message, partition), seconds)

    @overload
    async def produce_with_partition(
        self, message: Message, partition: int, *, timeout: float | None = None, session: None = None
    ) -> ProducerResult: ...
    @overload
    async def produce_with_partition(
        self, message: Message, partition: int, *, timeout: None = None, session: AsyncSessionLike
    ) -> Publication: ...

    async def produce_with_partition(
        self, message: Message, partition: int, *, timeout: float | None = None, session: AsyncSessionLike | None = None
    ) -> ProducerResult | Publication:
        """Append *message* to a *partition*: another name for ``produce(message, partition=partition)``."""
        if session is not None:
            check_no_timeout(timeout)
            return await self.produce(message, partition=check_partition_number(partition), session=session)
        return await self.produce(message, partition=check_partition_number(partition), timeout=timeout)

    def submit(self, message: Message, *, partition: int | None = None) -> asyncio.Future[ProducerResult]:
        """Append *message* without waiting, and return a future of its place.

        Cancelling the future withdraws the message, if it still waits. Messages submitted by one task keep their order
        in each partition. ``close`` waits for all of them. Raises RuntimeError without a running event loop.
        """
        asyncio.get_running_loop()  # raises before anything is sent: without a loop, no future could get the result
        if partition is None or self._core.knows_topic:
            return self._arrivals.of(self._sync.submit(message, partition=partition))
        return asyncio.ensure_future(self.produce(message, partition=partition))

    @overload
    async def produce_many(
        self, messages: Iterable[Message], *, partition: int | None = None, session: None = None
    ) -> list[ProducerResult]: ...
    @overload
    async def produce_many(
        self, messages: Iterable[Message], *, partition: int | None = None, session: AsyncSessionLike
    ) -> list[Publication]: ...

    async def produce_many(
        self, messages: Iterable[Message], *, partition: int | None = None, session: AsyncSessionLike | None = None
    ) -> list[ProducerResult] | list[Publication]:
        """Append *messages* in one transaction, all or none, and return their places in the same order.

        Messages without a key go to one partition together. *partition* and *session* work as in ``produce``. If the task
        is cancelled, all messages may be in the log, or none.
        """
        together = list(messages)
        if session is not None:
            return await self._publish(session, together, partition)
        return await self._threads.run(partial(self._core.append_many, together, partition))

    async def schedule(
        self,
        message: Message,
        *,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
        partition: int | None = None,
        session: AsyncSessionLike | None = None,
    ) -> DelayedMessage:
        """Store *message* now and append it when it is due.

        It is due *delay_seconds* from now by the database's clock, or at *deliver_at*, an aware datetime. Give one of
        them. Until then, ``mq.admin.cancel_delayed`` cancels it by its ``id``. With a *session* the message is stored in its
        transaction. If the task is cancelled, the message may be stored or not.
        """
        due = check_due(delay_seconds, deliver_at)
        return (await self._schedule(session, [message], partition, due))[0]

    async def schedule_many(
        self,
        messages: Iterable[Message],
        *,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
        partition: int | None = None,
        session: AsyncSessionLike | None = None,
    ) -> list[DelayedMessage]:
        """Store *messages* in one transaction, all or none, and append them when they are due.

        All are due at the same time, and keep their order in each partition. Otherwise as ``schedule``.
        """
        due = check_due(delay_seconds, deliver_at)
        return await self._schedule(session, list(messages), partition, due)

    async def close(self) -> None:
        """Wait for submitted messages, then refuse new ones. A second call has the same result.

        Waits at most five seconds for a database that does not answer. A task that is cancelled meanwhile ends after
        the close.
        """
        await self._threads.run_apart(self._sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._sync)[1:]}"

    async def _publish(
        self, session: AsyncSessionLike, messages: list[Message], partition: int | None
    ) -> list[Publication]:
        carrier = carrier_of(session)
        await self._prepare_for_sessions()
        return await carrier.run_sync(self._core.publish, messages, partition)

    async def _schedule(
        self, session: AsyncSessionLike | None, messages: list[Message], partition: int | None, due: Due
    ) -> list[DelayedMessage]:
        if session is None:
            return await self._threads.run(partial(self._core.schedule, None, messages, partition, due))
        carrier = carrier_of(session)
        await self._prepare_for_sessions()
        return await carrier.run_sync(self._core.schedule, messages, partition, due)

    async def _prepare_for_sessions(self) -> None:
        # Otherwise the steps in `run_sync` would query on a connection of the MQ, and block the event loop.
        if not self._core.is_ready_for_sessions:
            await self._threads.run(self._core.prepare_for_sessions)

    async def _submit(self, message: Message, partition: int | None) -> Future[ProducerResult]:
        submit = partial(self._sync.submit, message, partition=partition)
        if partition is None or self._core.knows_topic:
            return submit()
        # A thread, because the partition is checked against a topic that has to be read first.
        return await self._threads.run(submit, _withdraw)

    async def _result(self, future: Future[ProducerResult], seconds: float | None) -> ProducerResult:
        if seconds is None:
            return await self._arrivals.of(future)
        try:
            async with asyncio.timeout(seconds):
                return await self._arrivals.of(future)
        except TimeoutError:
            return result_or_timeout(future, seconds)


def carrier_of(session: AsyncSessionLike) -> AsyncSession | AsyncConnection:
    """Return *session*, or the present session of an async_scoped_session. Raises TypeError for any other object.

    Raises MissingDependencyError without greenlet.
    """
    check_greenlet()
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    given: object = session() if isinstance(session, async_scoped_session) else session
    if not isinstance(given, AsyncSession | AsyncConnection):
        complaint = (
            "session= must be an AsyncSession, an async_scoped_session or an AsyncConnection of SQLAlchemy, not "
            f"{type(given).__name__}. For a Session or Connection, use a Producer."
        )
        raise TypeError(complaint)
    return given


def _withdraw(future: Future[ProducerResult]) -> None:
    future.cancel()
