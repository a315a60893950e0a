"""The MQ for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from sqlalchemy import URL, Engine

from sqlmq.aio.admin import AsyncAdmin
from sqlmq.aio.consumer import AsyncConsumer
from sqlmq.aio.engines import Engines
from sqlmq.aio.producer import AsyncProducer
from sqlmq.aio.threads import Threads, to_the_end
from sqlmq.database.engines import read_url
from sqlmq.dialects import blocking
from sqlmq.model.config import MQConfig
from sqlmq.mq import open_database, open_mq

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq.consumer.core import Ack
    from sqlmq.hooks.clock import Clock
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.config import OnEvicted
    from sqlmq.model.positions import Start
    from sqlmq.model.retention import Retention


class AsyncMQ:
    """A message queue in a SQL database, for asyncio. Tasks may share it, also tasks of several event loops.

    *database* and the options are those of ``MQ``. A URL may also name a driver for asyncio, and *database* may be an
    AsyncEngine: it is never altered or disposed, and no connection is taken from it. The MQ runs its own transactions in
    threads, on its own engine for the same URL. That engine does not have the ``connect_args`` and events of the
    AsyncEngine. If you need them, pass an Engine.
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
        config = MQConfig(
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
        )
        self._database = open_database(_blocking(database), schema, config, clock)
        self._sync = open_mq(self._database, config)
        self._threads = Threads()
        self._admin = AsyncAdmin(self._sync.admin, self._threads, self._database)
        given = database if not isinstance(database, str | URL | Engine) else None
        self._engines = Engines(self._database, given, may_make=not isinstance(database, Engine))

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine of the MQ's own transactions: the given Engine, or the one made from the URL."""
        return self._sync.engine

    @property
    def schema(self) -> str | None:
        """The schema that holds the tables; None for the connection's default."""
        return self._sync.schema

    @property
    def admin(self) -> AsyncAdmin:
        """The operations of an operator: topics, groups, lag, retention, parked and delayed messages."""
        return self._admin

    async def create_topic(
        self,
        topic: str,
        partitions: int | None = None,
        *,
        partitioner: str | None = None,
        retention: Retention | None = None,
    ) -> bool:
        """Create a topic with *partitions*, numbered from 0, and return whether it is new. See ``MQ.create_topic``."""
        return await self._threads.run(
            lambda: self._sync.create_topic(topic, partitions, partitioner=partitioner, retention=retention)
        )

    async def delete_topics(self, *topics: str) -> list[str]:
        """Delete *topics* with their messages and groups, and return the names of those that existed.

        See ``MQ.delete_topics``. A task that is cancelled meanwhile ends after the deletion.
        """
        return await self._threads.run(lambda: self._sync.delete_topics(*topics))

    async def producer(self, topic: str) -> AsyncProducer:
        """Create a producer for *topic*. A missing topic is created, unless ``create_topics`` is off."""
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
        """Create a consumer that reads *topic* as a member of *group*. See ``MQ.consumer``."""
        made = await self._threads.run(
            lambda: self._sync.consumer(topic, group, start=start, ack=ack, name=name, on_evicted=on_evicted),
            lambda made: made.close(),
        )
        # Both faces have one core. The other one also keeps the MQ from being closed while this one is used.
        return AsyncConsumer(made._core, made, self._threads, self._engines)  # noqa: SLF001

    def observe(self, observer: Observer | None) -> None:
        """Call *observer* around every send and every handler from now on; None removes it. See ``MQ.observe``."""
        self._sync.observe(observer)

    async def close(self) -> None:
        """Close every producer and consumer of this MQ, then the connections, unless an Engine was given.

        Their errors are raised together in one ExceptionGroup. A second call has the same result. A task that is
        cancelled meanwhile ends when everything is closed.
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
    """Return *database* for an MQ: with the blocking driver instead of the one for asyncio."""
    if isinstance(database, str | URL):
        return blocking(read_url(database), is_made=False)
    # Not isinstance, which would import SQLAlchemy's asyncio part in programs without an AsyncEngine.
    return database if not hasattr(database, "sync_engine") else blocking(database.sync_engine.url, is_made=True)
