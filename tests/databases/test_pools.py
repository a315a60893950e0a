"""Pools that lend all their connections to the application: what must go on, and what is said."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import QueuePool, create_engine, event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from sqlmq import MQ, AsyncMQ, Message
from sqlmq.database.engines import BesidePool, most_connections, provide_for_handlers
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlmq import ReceivedMessage
    from tests.conftest import DatabaseUnderTest

on_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)
each_kind = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)

HEARTBEAT = "SELECT heartbeat_at FROM sqlmq_member"


@pytest.fixture
def small_engine(database: DatabaseUnderTest) -> Iterator[Engine]:
    """An application's engine with a single connection, and patience for two seconds."""
    engine = create_engine(database.url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=2)
    yield engine
    engine.dispose()


@each_kind
def test_heartbeats_go_on_while_the_application_has_all_connections(
    database: DatabaseUnderTest, small_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    outside = create_engine(database.url, poolclass=NullPool)

    def heartbeat() -> object:
        with outside.connect() as connection:
            return connection.execute(text(HEARTBEAT)).scalar()

    with MQ(small_engine, lease_seconds=3) as mq:
        mq.create_topic("orders", 1)
        mq.consumer("orders", "billing")
        with small_engine.connect():
            seen = [heartbeat()]
            # More than a lease has passed then.
            for _ in range(6):
                until(lambda: heartbeat() != seen[-1], "the next heartbeat")
                seen.append(heartbeat())

    assert [record for record in caplog.records if getattr(record, "sqlmq_event", "") == "heartbeat failed"] == []


@each_kind
def test_the_connection_beside_the_pool_has_the_options_and_events_of_the_engine(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, poolclass=QueuePool).execution_options(max_row_buffer=7)
    seen: list[str] = []
    event.listen(engine, "checkout", lambda *_: seen.append("checkout"))
    event.listen(engine, "engine_disposed", lambda *_: seen.append("disposed"))
    beside = BesidePool(engine)
    event.listen(engine, "engine_connect", lambda *_: seen.append("engine_connect"))

    with beside.engine().connect() as connection:
        options = connection.get_execution_options()
    beside.dispose()

    assert options["max_row_buffer"] == 7
    assert seen == ["checkout", "engine_connect"]
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]  # of QueuePool


@on_postgres
def test_a_connection_of_the_pool_will_do_if_the_server_gives_no_more(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, poolclass=QueuePool)
    beside = BesidePool(engine)
    with engine.connect():
        pass
    is_refused = True

    def refuse(*_: object) -> None:
        if is_refused:
            message = "sorry, too many clients already"
            raise engine.dialect.loaded_dbapi.OperationalError(message)

    event.listen(engine, "do_connect", refuse)
    with beside.engine().connect() as connection:
        found = connection.execute(text("SELECT 1")).scalar_one()
        borrowed = engine.pool.checkedout()  # type: ignore[attr-defined]  # of QueuePool
    is_refused = False
    with beside.engine().connect():
        borrowed_then = engine.pool.checkedout()  # type: ignore[attr-defined]  # of QueuePool
    beside.dispose()
    engine.dispose()

    assert (found, borrowed, borrowed_then) == (1, 1, 0)


@on_postgres
def test_each_handler_of_a_run_in_transactions_gets_a_connection(database: DatabaseUnderTest) -> None:
    handlers = 23  # more than the pool of our own engine has
    all_in = threading.Barrier(handlers)

    def handle(_message: ReceivedMessage, session: Session) -> None:
        session.execute(text("SELECT 1"))
        all_in.wait(PATIENCE_SECONDS)

    with MQ(database.url) as mq:
        send_to_each_partition(mq, handlers)
        summary = mq.consumer("orders", "billing").run(
            handle, transaction=True, concurrency=handlers, idle_seconds=0, handle_signals=False
        )

    assert (summary.handled, summary.failures) == (handlers, 0)


@on_postgres
def test_each_handler_in_an_event_loop_gets_a_connection(database: DatabaseUnderTest) -> None:
    handlers = 23

    async def run() -> tuple[int, int]:
        all_in = asyncio.Barrier(handlers)

        async def handle(_message: ReceivedMessage, session: AsyncSession) -> None:
            await session.execute(text("SELECT 1"))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await all_in.wait()

        async with AsyncMQ(database.url) as mq:
            consumer = await mq.consumer("orders", "billing")
            summary = await consumer.run(
                handle, transaction=True, concurrency=handlers, idle_seconds=0, handle_signals=False
            )
        return summary.handled, summary.failures

    with MQ(database.url) as mq:
        send_to_each_partition(mq, handlers)

    assert asyncio.run(run()) == (handlers, 0)


def send_to_each_partition(mq: MQ, partitions: int) -> None:
    mq.create_topic("orders", partitions)
    producer = mq.producer("orders")
    for partition in range(partitions):
        producer.produce(Message(b"x", key=b"k"), partition=partition)


@on_postgres
@pytest.mark.parametrize("source", ["engine", "sessionmaker", "async_sessionmaker"])
def test_a_run_says_at_its_start_that_the_pool_of_the_application_is_too_small(
    database: DatabaseUnderTest, small_engine: Engine, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    def handle(_message: ReceivedMessage, _session: Session) -> None: ...

    async def handle_in_loop(_message: ReceivedMessage, _session: AsyncSession) -> None: ...

    async def run_in_loop() -> None:
        engine = create_async_engine(database.url, pool_size=1, max_overflow=0)
        async with AsyncMQ(database.url) as mq:
            consumer = await mq.consumer("orders", "billing")
            await consumer.run(
                handle_in_loop,
                transaction=True,
                session=async_sessionmaker(engine),
                concurrency=4,
                idle_seconds=0,
                handle_signals=False,
            )
        await engine.dispose()

    with caplog.at_level(logging.WARNING, "sqlmq.database"):
        if source == "async_sessionmaker":
            asyncio.run(run_in_loop())
        else:
            with MQ(small_engine if source == "engine" else database.url) as mq:
                mq.consumer("orders", "billing").run(
                    handle,
                    transaction=True,
                    session=sessionmaker(small_engine) if source == "sessionmaker" else None,
                    concurrency=4,
                    idle_seconds=0,
                    handle_signals=False,
                )

    (said,) = [record.getMessage() for record in caplog.records if getattr(record, "sqlmq_event", "") == "pool small"]
    assert "concurrency=4 in transactions needs 5 connections, and the pool of the engine has 1" in said


def test_the_pool_of_an_application_is_left_as_it_is_and_ours_grows() -> None:
    engine = create_engine("sqlite:///never.db", poolclass=QueuePool, pool_size=2, max_overflow=1)

    provide_for_handlers(engine, 2, is_ours=True)
    enough = most_connections(engine.pool)
    provide_for_handlers(engine, 7, is_ours=False)
    theirs = most_connections(engine.pool)
    provide_for_handlers(engine, 7, is_ours=True)

    assert (enough, theirs, most_connections(engine.pool)) == (3, 3, 8)


@pytest.mark.parametrize("options", [{"poolclass": NullPool}, {"pool_size": 0}, {"max_overflow": -1}])
def test_a_pool_without_a_limit_has_enough(options: dict[str, object]) -> None:
    engine = create_engine("sqlite:///never.db", **({"poolclass": QueuePool} | options))

    assert most_connections(engine.pool) == float("inf")
