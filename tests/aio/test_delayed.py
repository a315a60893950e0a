"""Delayed messages in asyncio: in the application's own transaction, and in tasks that are cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from sqlmq import DelayedMessage, Message, UnknownTopicError
from sqlmq.errors import SessionError
from tests.aio.interrupting import cancelled_everywhere
from tests.aio.test_sessions import EACH_SHAPE, POSTGRES, AsyncShop, Transacted, open_shop
from tests.conftest import database_of_kind
from tests.support.delayed import FUTURE, LONG, PAST
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import AsyncMQ
    from tests.aio.conftest import AtEnd
    from tests.aio.test_sessions import Shape
    from tests.conftest import DatabaseUnderTest


@pytest.fixture
def database(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """The database of the driver."""
    with database_of_kind(driver.partition("+")[0].replace("postgresql", "postgres"), request, tmp_path) as made:
        yield made


@pytest.fixture
def shop(mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine, at_end: AtEnd) -> AsyncShop:
    at_end.append(mq.close)
    with asyncio.Runner() as runner:
        return runner.run(open_shop(mq, async_engine, engine))


async def remind(shop: AsyncShop, session: Transacted, note: str) -> DelayedMessage:
    """Insert an order, and delay its event, both in the transaction of *session*."""
    await session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": note})
    return await shop.producer.schedule(Message(note.encode(), b"k"), delay_seconds=LONG, session=session)


@EACH_SHAPE
async def test_a_delayed_message_is_stored_when_its_transaction_has_committed(
    shop: AsyncShop, transaction: Shape
) -> None:
    async with transaction(shop.engine) as session:
        delayed = await remind(shop, session, "a")

    assert await shop.mq.admin.delayed("events") == [delayed]
    assert shop.orders == ["a"]


@EACH_SHAPE
@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_a_delayed_message_is_gone_when_its_transaction_failed(
    shop: AsyncShop, transaction: Shape, error: type[BaseException]
) -> None:
    with pytest.raises(error):  # noqa: PT012 - it is what the block does
        async with transaction(shop.engine) as session:
            await remind(shop, session, "a")
            raise error
    async with transaction(shop.engine) as session:
        kept = await remind(shop, session, "b")

    assert await shop.mq.admin.delayed("events") == [kept]
    assert shop.orders == ["b"]


async def test_all_ways_to_produce_and_to_cancel_take_a_session(shop: AsyncShop) -> None:
    async with AsyncSession(shop.engine) as session, session.begin():
        placed = await shop.producer.schedule(Message(b"b"), partition=2, deliver_at=FUTURE, session=session)
        messages = [Message(b"c"), Message(b"d"), Message(b"e")]
        many = await shop.producer.schedule_many(messages, delay_seconds=LONG, session=session)
        async with session.begin_nested() as savepoint:
            await shop.producer.schedule(Message(b"lost"), deliver_at=FUTURE, session=session)
            await shop.mq.admin.cancel_delayed(many[0].id, session=session)
            await savepoint.rollback()
        assert await shop.mq.admin.cancel_delayed(many[1].id, 999, session=session) == [many[1].id]

    assert await shop.mq.admin.delayed("events") == [many[0], many[2], placed]
    async with AsyncSession(shop.engine) as session:
        await shop.mq.admin.cancel_delayed(many[0].id, session=session)
        await session.rollback()
    assert await shop.mq.admin.delayed("events") == [many[0], many[2], placed]


async def test_who_stores_it_moves_it_after_the_commit(shop: AsyncShop) -> None:
    async with AsyncSession(shop.engine) as session, session.begin():
        await shop.producer.schedule(Message(b"soon", b"k"), delay_seconds=0.1, session=session)
        await shop.producer.schedule(Message(b"at once", b"k"), deliver_at=PAST, session=session)

    await asyncio.to_thread(until, lambda: shop.events == ["at once", "soon"], "both in the log")


async def test_a_handler_delays_and_cancels_in_the_transaction_of_its_messages(shop: AsyncShop) -> None:
    async with await shop.mq.consumer("events", "billing") as consumer:
        await shop.producer.produce(Message(b"order", b"k"))
        async with consumer.transaction(timeout=10) as tx:
            first = await shop.producer.schedule(Message(b"a"), delay_seconds=LONG, session=tx.session)
            second = await shop.producer.schedule(Message(b"b"), delay_seconds=LONG, session=tx.connection)
            assert await shop.mq.admin.cancel_delayed(first.id, session=tx.session) == [first.id]
            assert len(tx.messages) == 1

    assert await shop.mq.admin.delayed("events") == [second]


@POSTGRES
async def test_autocommit_is_refused(shop: AsyncShop) -> None:
    async with shop.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(SessionError, match="AUTOCOMMIT"):
            await shop.producer.schedule(Message(b""), delay_seconds=LONG, session=connection)
        with pytest.raises(SessionError, match="AUTOCOMMIT"):
            await shop.mq.admin.cancel_delayed(1, session=connection)

    assert await shop.mq.admin.delayed("events") == []


async def test_sessions_that_block_are_refused(shop: AsyncShop) -> None:
    blocking: Any = shop.sync_engine.connect()

    with pytest.raises(TypeError, match="use a Producer"):
        await shop.producer.schedule(Message(b""), delay_seconds=LONG, session=blocking)
    with pytest.raises(TypeError, match="use a Producer"):
        await shop.mq.admin.cancel_delayed(1, session=blocking)
    blocking.close()

    assert await shop.mq.admin.delayed("events") == []


async def test_a_topic_that_is_gone_is_told_at_once(shop: AsyncShop) -> None:
    await shop.mq.delete_topics("events")

    async with AsyncSession(shop.engine) as session:
        for _ in range(2):
            with pytest.raises(UnknownTopicError, match="events"):
                await shop.producer.schedule(Message(b""), delay_seconds=LONG, session=session)
        await session.rollback()


async def test_a_task_that_is_cancelled_leaves_a_message_stored_or_not_and_nothing_open(shop: AsyncShop) -> None:
    stored: list[DelayedMessage] = []

    async def delay() -> None:
        stored.append(await shop.producer.schedule(Message(b"%d" % len(stored), b"k"), delay_seconds=LONG))

    async for _result in cancelled_everywhere(delay):
        pass

    waiting = await shop.mq.admin.delayed("events")
    assert stored
    assert {one.id for one in stored} <= {one.id for one in waiting}
    assert len(waiting) == len({one.id for one in waiting})
