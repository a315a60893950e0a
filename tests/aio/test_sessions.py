"""Messages in sessions for asyncio: tasks side by side and cancelled, and sessions of the wrong kind.

What holds for sessions of both kinds is in the contract suite, in `test_outbox.py` and `test_delayed_sessions.py`.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.ext.asyncio.exc import AsyncContextNotStarted
from sqlalchemy.orm import Session

from sqlmq import AsyncMQ, Message, Publication
from tests.aio.interrupting import cancelled_everywhere
from tests.conftest import database_of_kind
from tests.support.delayed import LONG
from tests.support.queue_state import QueueState
from tests.support.shop import Base
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import AsyncProducer
    from tests.conftest import DatabaseUnderTest

POSTGRES = pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"], indirect=True)


@pytest.fixture
def database(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    """The database of the driver."""
    with database_of_kind(driver.partition("+")[0].replace("postgresql", "postgres"), request, tmp_path) as made:
        yield made


class AsyncShop:
    """Sells things in transactions, each with an event on the topic `events`; looks at them in others."""

    def __init__(self, mq: AsyncMQ, engine: AsyncEngine, sync_engine: Engine, producer: AsyncProducer) -> None:
        self.mq = mq
        self.engine = engine
        self.sync_engine = sync_engine
        self.producer = producer

    async def sell(self, session: AsyncSession | AsyncConnection, note: str) -> Publication:
        """Insert an order and publish its event, both in the transaction of *session*."""
        await session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": note})
        return await self.producer.produce(Message(note.encode(), b"k"), session=session)

    @property
    def orders(self) -> list[str]:
        with self.sync_engine.connect() as connection:
            return list(connection.execute(text("SELECT note FROM customer_order ORDER BY id")).scalars())

    @property
    def events(self) -> list[str]:
        return [value for values in QueueState(self.sync_engine, None).texts("events").values() for value in values]


async def open_shop(mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine) -> AsyncShop:
    await mq.create_topic("events", 3)
    Base.metadata.create_all(engine)
    return AsyncShop(mq, async_engine, engine, await mq.producer("events"))


@pytest.fixture
def shop(mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine) -> AsyncShop:
    with asyncio.Runner() as runner:
        return runner.run(open_shop(mq, async_engine, engine))


@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_a_task_cancelled_inside_its_transaction_publishes_nothing(shop: AsyncShop, way: str) -> None:
    async def sell() -> None:
        async with async_sessionmaker(shop.engine).begin() as session:
            await shop.sell(session, "a")
            has_sold.set()
            await asyncio.Event().wait()

    has_sold = asyncio.Event()
    task = asyncio.create_task(sell() if way == "cancel" else asyncio.wait_for(sell(), 0.5))
    await has_sold.wait()
    if way == "cancel":
        task.cancel()

    with pytest.raises(TimeoutError if way == "timeout" else asyncio.CancelledError):
        await task
    assert shop.events == shop.orders == []


async def test_tasks_that_sell_at_once_have_an_event_for_each_order(shop: AsyncShop) -> None:
    async def sell(number: int) -> None:
        async with async_sessionmaker(shop.engine).begin() as session:
            await shop.sell(session, f"{number}")
            await shop.sell(session, f"{number}+")

    await asyncio.gather(*(sell(number) for number in range(20)))

    events = shop.events
    assert sorted(events) == sorted(shop.orders)
    assert len(events) == 40
    assert all(events.index(f"{number}") < events.index(f"{number}+") for number in range(20))


async def test_the_event_loop_is_not_kept_waiting_for_a_query_of_ours(
    shop: AsyncShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_in = shop.mq._sync._database.read, []

    def note(operation: Any, *args: Any, **kwargs: Any) -> Any:
        read_in.append(threading.current_thread())
        return read(operation, *args, **kwargs)

    monkeypatch.setattr(shop.mq._sync._database, "read", note)
    async with AsyncSession(shop.engine) as session:
        await shop.sell(session, "a")
        shop.producer._core.forget_topic()
        await shop.sell(session, "b")
        await session.commit()

    assert read_in
    assert threading.current_thread() not in read_in


async def test_a_connection_that_was_not_started_is_refused(shop: AsyncShop) -> None:
    with pytest.raises(AsyncContextNotStarted):
        await shop.producer.produce(Message(b""), session=shop.engine.connect())


async def test_sessions_are_refused_by_the_producer_of_the_other_kind(shop: AsyncShop) -> None:
    given: Any
    sync_producer: Any = shop.producer._sync
    with Session(shop.sync_engine) as session, shop.sync_engine.connect() as connection:
        for given in (session, connection, shop.engine, async_sessionmaker(shop.engine), 5):
            with pytest.raises(TypeError, match=f"not {type(given).__name__}"):
                await shop.producer.produce(Message(b""), session=given)
            with pytest.raises(TypeError):
                await shop.producer.produce_with_partition(Message(b""), 0, session=given)
            with pytest.raises(TypeError):
                await shop.producer.produce_many([Message(b"")], session=given)
            with pytest.raises(TypeError, match="use a Producer"):
                await shop.producer.schedule(Message(b""), delay_seconds=LONG, session=given)
            with pytest.raises(TypeError, match="use a Producer"):
                await shop.mq.admin.cancel_delayed(1, session=given)
    async with AsyncSession(shop.engine) as async_session, shop.engine.connect() as async_connection:
        for given in (async_session, async_connection):
            with pytest.raises(TypeError, match="AsyncProducer"):
                sync_producer.produce(Message(b""), session=given)

    assert shop.events == []
    assert await shop.mq.admin.delayed("events") == []


# Without SQLite: aiosqlite closes a connection under a statement that was interrupted, and SQLite keeps that connection,
# with its transaction, until the statement is gone. It does so without a queue, too; docs/asyncio.md tells.
@pytest.mark.skipif(
    sqlalchemy.__version__.startswith("2.0.") and int(sqlalchemy.__version__.split(".")[2]) < 55,
    reason="SQLAlchemy before 2.0.55 leaves the connection open of a task cancelled while it connects, with or without us",
)
@POSTGRES
@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_cancelled_at_any_point_there_is_an_event_for_each_order_that_was_committed(
    shop: AsyncShop, kind: str
) -> None:
    forgive_asyncpg()
    made = 0

    async def sell() -> None:
        nonlocal made
        made += 1
        note = f"{made}"
        if kind == "session":
            async with AsyncSession(shop.engine) as session:
                await shop.sell(session, note)
                await session.commit()
        else:
            async with shop.engine.connect() as connection:
                await shop.sell(connection, note)
                await connection.commit()

    async for _result in cancelled_everywhere(sell):
        # What an interrupted task leaves to the loop ends by itself, as SQLAlchemy's closing of a session.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=PATIENCE_SECONDS)

    async with async_sessionmaker(shop.engine).begin() as session:
        await shop.sell(session, "end")
    await shop.producer.produce(Message(b"after", b"k"), timeout=PATIENCE_SECONDS)
    assert shop.events == [*shop.orders, "after"]
    assert 3 < len(shop.orders) < made


def forgive_asyncpg() -> None:
    """Let the loop not complain of what asyncpg leaves when SQLAlchemy ends a connection in the middle of a query."""
    loop = asyncio.get_running_loop()
    complain = loop.get_exception_handler()
    assert complain is not None

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "connection_lost()" not in str(context.get("exception")):
            complain(loop, context)

    loop.set_exception_handler(handle)
