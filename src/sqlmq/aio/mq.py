"""The MQ for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from sqlalchemy import URL, Engine

from sqlmq.admin.tail import check_tail
from sqlmq.aio.admin import AsyncParked
from sqlmq.aio.consumer import AsyncConsumer
from sqlmq.aio.engines import Engines
from sqlmq.aio.producer import AsyncProducer, carrier_of
from sqlmq.aio.threads import Threads, to_the_end
from sqlmq.database.engines import read_url
from sqlmq.dialects import blocking
from sqlmq.mq import MQ

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq.aio.producer import AsyncSessionLike
    from sqlmq.consumer.consumer import Ack
    from sqlmq.hooks.clock import Clock
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.config import OnEvicted
    from sqlmq.model.message import DelayedMessage, Message
    from sqlmq.model.positions import ResetTo, Start
    from sqlmq.model.retention import Retention
    from sqlmq.reports.descriptions import (
        Eviction,
        GroupDescription,
        MemberDescription,
        PartitionLag,
        PartitionReset,
        RetentionResult,
        TopicDescription,
    )
    from sqlmq.reports.diagnosis import Finding
    from sqlmq.reports.doctor import DoctorLimits, Problem


class AsyncMQ:
    """A message queue in a SQL database, for asyncio. May be shared by tasks, and used from several event loops.

    *database* and the options are those of ``MQ``. A URL may name a driver for asyncio as well, and *database* may be an
    AsyncEngine: that is never altered nor disposed, and no connection is taken from it. Our own transactions run in
    threads, on an engine of our own for its URL; what its ``connect_args`` and events do, its URL does not say, so give
    an Engine where they matter.
    """

    def __init__(
        self,
        database: str | URL | Engine | AsyncEngine,
        *,
        schema: str | None = None,
        create_topics: bool = True,
        default_partitions: int = 3,
        max_message_bytes: int = 1024 * 1024,
        lease_seconds: float = 10.0,
        max_poll_seconds: float = 300.0,
        commit_interval_seconds: float = 0.2,
        durable_commits: bool = True,
        prefetch: int = 4000,
        prefetch_bytes: int = 8 * 1024 * 1024,
        poll_min_seconds: float = 0.005,
        poll_max_seconds: float = 1.0,
        response_timeout_seconds: float = 30.0,
        notify: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._sync = MQ(
            _blocking(database),
            schema=schema,
            create_topics=create_topics,
            default_partitions=default_partitions,
            max_message_bytes=max_message_bytes,
            lease_seconds=lease_seconds,
            max_poll_seconds=max_poll_seconds,
            commit_interval_seconds=commit_interval_seconds,
            durable_commits=durable_commits,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            poll_min_seconds=poll_min_seconds,
            poll_max_seconds=poll_max_seconds,
            response_timeout_seconds=response_timeout_seconds,
            notify=notify,
            clock=clock,
        )
        self._threads = Threads()
        given = database if not isinstance(database, str | URL | Engine) else None
        self._engines = Engines(self._sync._database, given, may_make=not isinstance(database, Engine))

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine of our own transactions: the Engine given, or our own."""
        return self._sync.engine

    @property
    def schema(self) -> str | None:
        """The schema the tables are in; None for the connection's default."""
        return self._sync.schema

    async def create_topic(
        self, topic: str, partitions: int = 3, *, partitioner: str | None = None, retention: Retention | None = None
    ) -> bool:
        """Make a topic with *partitions*, numbered from 0; return whether it was made. See ``MQ.create_topic``."""
        return await self._threads.run(
            lambda: self._sync.create_topic(topic, partitions, partitioner=partitioner, retention=retention)
        )

    async def add_partitions(self, topic: str, partitions: int) -> bool:
        """Have *topic* be of *partitions* in all, a multiple of what it has. See ``MQ.add_partitions``.

        A task that is cancelled meanwhile ends when it has them, or can't.
        """
        return await self._threads.run(lambda: self._sync.add_partitions(topic, partitions))

    async def set_retention(self, topic: str, retention: Retention) -> None:
        """Have *topic* keep what *retention* says, from the next round on. Raises UnknownTopicError."""
        await self._threads.run(lambda: self._sync.set_retention(topic, retention))

    async def apply_retention(self, topic: str | None = None) -> list[RetentionResult]:
        """Delete now what exceeds the retention of *topic*, or of all. See ``MQ.apply_retention``.

        A task that is cancelled meanwhile ends when the round is over.
        """
        return await self._threads.run(lambda: self._sync.apply_retention(topic))

    async def evictions(self, topic: str) -> list[Eviction]:
        """What the groups of a topic have lost to retention unread, or set aside, the newest last. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.evictions(topic))

    async def delete_topics(self, *topics: str) -> list[str]:
        """Delete *topics* with their messages and groups; return the names of those there were.

        See ``MQ.delete_topics``. A task that is cancelled meanwhile ends when they are deleted.
        """
        return await self._threads.run(lambda: self._sync.delete_topics(*topics))

    async def producer(self, topic: str) -> AsyncProducer:
        """Make a producer for *topic*. A topic that does not exist is made, unless ``create_topics`` is off."""
        made = await self._threads.run(lambda: self._sync.producer(topic), lambda made: made.close())
        return AsyncProducer(made, self._threads)

    async def consumer(
        self,
        topic: str,
        group: str,
        *,
        start: Start = "earliest",
        ack: Ack = "auto",
        name: str | None = None,
        on_evicted: OnEvicted = "raise",
    ) -> AsyncConsumer:
        """Make a consumer that reads *topic* as a member of the group *group_id*. See ``MQ.consumer``."""
        made = await self._threads.run(
            lambda: self._sync.consumer(topic, group, start=start, ack=ack, name=name, on_evicted=on_evicted),
            lambda made: made.close(),
        )
        return AsyncConsumer(made, self._threads, self._engines)

    async def topics(self) -> list[str]:
        """The names of all topics, in order."""
        return await self._threads.run(self._sync.topics)

    async def describe_topic(self, topic: str) -> TopicDescription:
        """A topic's partitions and groups as they are now. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.describe_topic(topic))

    async def groups(self, topic: str) -> list[str]:
        """The names of a topic's groups, in order. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.groups(topic))

    async def describe_group(self, topic: str, group: str) -> GroupDescription:
        """A group's position, lag and owner in each partition, as they are now.

        Raises UnknownTopicError or UnknownGroupError.
        """
        return await self._threads.run(lambda: self._sync.describe_group(topic, group))

    async def lag(self, topic: str | None = None, group: str | None = None) -> list[PartitionLag]:
        """How far groups are behind in each partition, in messages and in seconds. See ``MQ.lag``."""
        return await self._threads.run(lambda: self._sync.lag(topic, group))

    async def members(self, topic: str, group: str) -> list[MemberDescription]:
        """Who is in a group, with its heartbeat's age and its partitions. See ``MQ.members``."""
        return await self._threads.run(lambda: self._sync.members(topic, group))

    async def diagnose_group(self, topic: str, group: str, *, stuck_seconds: float = 30.0) -> list[Finding]:
        """Why messages of a group wait, and what to do about it. See ``MQ.diagnose_group``."""
        return await self._threads.run(lambda: self._sync.diagnose_group(topic, group, stuck_seconds=stuck_seconds))

    async def diagnose(self, limits: DoctorLimits | None = None) -> list[Problem]:
        """What is wrong with the database and its groups, the worst first. See ``MQ.diagnose``."""
        return await self._threads.run(lambda: self._sync.diagnose(limits))

    async def tail(
        self,
        topic: str,
        *,
        last: int = 0,
        offset: int | None = None,
        partitions: Iterable[int] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Message]:
        """Watch a topic without a group: ``async for message in await mq.tail(topic)``. See ``MQ.tail``."""
        wanted = check_tail(topic, last, offset, partitions, timeout)
        tail = await self._threads.run(lambda: self._sync._tail(wanted))

        async def messages() -> AsyncIterator[Message]:
            while (found := await self._threads.run(tail.step)) is not None:
                if isinstance(found, float):
                    await asyncio.sleep(found)
                else:
                    for message in found:
                        yield message

        return messages()

    async def reset_group(
        self,
        topic: str,
        group: str,
        to: ResetTo | None = None,
        *,
        shift_by: int | None = None,
        partitions: Iterable[int] | None = None,
        execute: bool = False,
        force: bool = False,
    ) -> list[PartitionReset]:
        """Move a group, back to read again or on to skip, and return what changes. See ``MQ.reset_group``.

        A task that is cancelled meanwhile ends when it is moved, or can't be.
        """
        return await self._threads.run(
            lambda: self._sync.reset_group(
                topic, group, to, shift_by=shift_by, partitions=partitions, execute=execute, force=force
            )
        )

    async def delayed(self, topic: str) -> list[DelayedMessage]:
        """The messages of a topic that wait until they are due, in that order. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.delayed(topic))

    async def cancel_delayed(self, *ids: int, session: AsyncSessionLike | None = None) -> list[int]:
        """Take delayed messages back, and return the ids of those that are taken back. See ``MQ.cancel_delayed``.

        A task that is cancelled meanwhile may have taken them back or not.
        """
        if session is None:
            return await self._threads.run(lambda: self._sync.cancel_delayed(*ids))
        given = carrier_of(session)
        database = self._sync._database
        if not database.knows_identity:
            # Asked for by a connection of ours, which would keep the event loop waiting.
            await self._threads.run(lambda: database.identity(fresh=False))
        return await given.run_sync(lambda sync: self._sync.cancel_delayed(*ids, session=sync))

    def parked(self, topic: str, group: str) -> AsyncParked:
        """What the group *group_id* has set aside of *topic*: to look at, retry, discard, copy. See ``MQ.parked``."""
        return AsyncParked(self._sync.parked(topic, group), self._threads)

    def observe(self, observer: Observer | None) -> None:
        """Have *observer* stand around what is sent and handled from now on; None for nobody. See ``MQ.observe``."""
        self._sync.observe(observer)

    async def close(self) -> None:
        """Close every producer and consumer made from this MQ, then the connections, unless an Engine was given.

        Errors of theirs come together in one ExceptionGroup. A second call has the same result. A task that is cancelled
        meanwhile ends when all is closed.
        """
        try:
            await self._threads.run_apart(self._close)
        finally:
            await to_the_end(self._engines.dispose())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._sync)[1:]}"

    def _close(self) -> None:
        try:
            self._sync.close()
        finally:
            self._threads.shut_down()


def _blocking(database: str | URL | Engine | AsyncEngine) -> str | URL | Engine:
    """What an MQ is made from, for what an AsyncMQ is made from."""
    if isinstance(database, str | URL):
        return blocking(read_url(database), is_made=False)
    # Not isinstance: SQLAlchemy's asyncio part is for those to import who have an AsyncEngine.
    return database if not hasattr(database, "sync_engine") else blocking(database.sync_engine.url, is_made=True)
