"""The steps of a transaction run on drivers for asyncio too, by SQLAlchemy's `run_sync`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from sqlmq import Message
from sqlmq.consumer.transaction_scope import TransactionContext, TransactionScope
from sqlmq.errors import IsolationError, SessionError, TransactionEndedError
from sqlmq.model.config import MQConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

DRIVERS = pytest.mark.parametrize(
    ("database", "driver"),
    [
        ("sqlite", "sqlite+aiosqlite"),
        ("postgres", "postgresql+psycopg"),
        ("postgres-schema", "postgresql+psycopg"),
        ("postgres", "postgresql+asyncpg"),
        ("postgres-schema", "postgresql+asyncpg"),
    ],
    indirect=["database"],
)


@pytest.fixture
def blocks(mq: MQ, engine: Engine) -> Callable[[], TransactionScope]:
    """Transactions of one group on a topic with three messages."""
    mq.create_topic("orders", 1)
    headers = {"kind": "täst"}
    mq.producer("orders").produce_many([Message(b"\x00%d" % i, b"key", headers) for i in range(3)])
    consumer = mq.consumer("orders", "billing")
    shared = TransactionContext(mq._database, consumer._core.subscription.topic, MQConfig(), "raise")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (message_offset INTEGER)"))
    return lambda: TransactionScope(shared, consumer._core.coordinator.group)


def position(mq: MQ) -> int:
    return mq.admin.describe_group("orders", "billing").partitions[0].position


def effects(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT message_offset FROM effect ORDER BY 1")).scalars())


def run(url: str, driver: str, work: Callable[[AsyncEngine], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        engine = create_async_engine(make_url(url).set(drivername=driver), poolclass=NullPool, **options)
        try:
            await work(engine)
        finally:
            await engine.dispose()

    asyncio.run(main())


async def have_effects(conn: AsyncConnection | AsyncSession, block: TransactionScope) -> None:
    assert block.taken is not None
    for message in block.taken.messages:
        await conn.execute(text("INSERT INTO effect VALUES (:o)"), {"o": message.offset})


async def handled(conn: AsyncConnection, block: TransactionScope, seen: list[Message]) -> bool:
    """Run one transaction in its steps; return whether there was something to take."""
    await conn.run_sync(block.begin)
    found = await conn.run_sync(lambda _: block.take_messages(2, ()))
    if block.taken is not None:
        seen += block.taken.messages
        await have_effects(conn, block)
    await conn.run_sync(lambda _: block.finish())
    await conn.run_sync(lambda _: block.commit())
    return found


@DRIVERS
def test_effects_and_position_commit_together_and_are_undone_together(
    mq: MQ, database: DatabaseUnderTest, engine: Engine, blocks: Callable[[], TransactionScope], driver: str
) -> None:
    seen: list[Message] = []

    async def work(async_engine: AsyncEngine) -> None:
        async with async_engine.connect() as conn:
            undone = blocks()
            await conn.run_sync(undone.begin)
            assert await conn.run_sync(lambda _: undone.take_messages(2, ()))
            await have_effects(conn, undone)
            await conn.run_sync(lambda _: undone.roll_back())
            while await handled(conn, blocks(), seen):
                pass

    run(database.url, driver, work)

    assert (effects(engine), position(mq)) == ([0, 1, 2], 3)
    with mq.consumer("orders", "other").transaction(timeout=0) as tx:
        # What the other way of reading gives, to the microsecond.
        assert seen == tx.messages


@DRIVERS
def test_a_session_for_asyncio_commits_the_position_with_its_own_transaction(
    mq: MQ, database: DatabaseUnderTest, engine: Engine, blocks: Callable[[], TransactionScope], driver: str
) -> None:
    async def work(async_engine: AsyncEngine) -> None:
        async with AsyncSession(async_engine) as session:
            block = blocks()
            await session.run_sync(block.begin)
            assert await session.run_sync(lambda _: block.take_messages(10, ()))
            await have_effects(session, block)
            async with session.begin_nested():
                await session.execute(text("INSERT INTO effect VALUES (7)"))
            await session.run_sync(lambda _: block.finish())
            await session.run_sync(lambda _: block.commit())

    run(database.url, driver, work)

    assert (effects(engine), position(mq)) == ([0, 1, 2, 7], 3)


@DRIVERS
def test_a_session_for_asyncio_that_commits_too_early_moves_no_position(
    mq: MQ, database: DatabaseUnderTest, engine: Engine, blocks: Callable[[], TransactionScope], driver: str
) -> None:
    async def work(async_engine: AsyncEngine) -> None:
        async with AsyncSession(async_engine) as session:
            block = blocks()
            await session.run_sync(block.begin)
            assert await session.run_sync(lambda _: block.take_messages(10, ()))
            await have_effects(session, block)
            await session.commit()
            with pytest.raises(TransactionEndedError, match="ended inside the block"):
                await session.run_sync(lambda _: block.finish())
            await session.run_sync(lambda _: block.roll_back())

    run(database.url, driver, work)

    assert (effects(engine), position(mq)) == ([0, 1, 2], 0)


@DRIVERS
def test_autocommit_and_higher_levels_are_refused(
    database: DatabaseUnderTest, blocks: Callable[[], TransactionScope], driver: str
) -> None:
    async def refused(async_engine: AsyncEngine, error: type[Exception]) -> None:
        async with async_engine.connect() as conn:
            block = blocks()

            def begin_and_take(sync: Any) -> None:
                block.begin(sync)
                block.take_messages(1, ())

            with pytest.raises(error):
                await conn.run_sync(begin_and_take)
            await conn.run_sync(lambda _: block.roll_back())

    run(database.url, driver, lambda engine: refused(engine, SessionError), isolation_level="AUTOCOMMIT")
    if database.is_postgres:
        run(database.url, driver, lambda engine: refused(engine, IsolationError), isolation_level="SERIALIZABLE")
