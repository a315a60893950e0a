"""Messages in a transaction of the application's on a driver for asyncio: in the log if it commits, else gone."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from sqlalchemy import NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.ext.asyncio.exc import AsyncContextNotStarted
from sqlalchemy.orm import Session

from sqlmq import AsyncMQ, Message, ProducerResult, Publication, UnknownTopicError
from sqlmq.errors import SessionError
from tests.aio.interrupting import cancelled_everywhere
from tests.conftest import database_of_kind
from tests.support.engines import async_engine_with_savepoints
from tests.support.queue_state import QueueState
from tests.support.shop import Base, Order, savepoint_trees
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq import AsyncProducer
    from tests.aio.conftest import MakeAsyncMQ
    from tests.conftest import DatabaseUnderTest

    Shape = Callable[[AsyncEngine], AbstractAsyncContextManager["Transacted"]]

Transacted = AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection
POSTGRES = pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"], indirect=True)
SQLITE = pytest.mark.parametrize("driver", ["sqlite+aiosqlite"], indirect=True)


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

    async def sell(self, session: Transacted, note: str) -> Publication:
        """Insert an order and publish its event, both in the transaction of *session*."""
        await session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": note})
        return await self.producer.produce(Message(note.encode(), b"k"), session=session)

    @property
    def orders(self) -> list[str]:
        with self.sync_engine.connect() as connection:
            return list(connection.execute(text("SELECT note FROM customer_order ORDER BY id")).scalars())

    @property
    def events(self) -> list[str]:
        return [value for values in self.log().values() for value in values]

    def log(self, topic: str = "events") -> dict[int, list[str]]:
        return QueueState(self.sync_engine, None).texts(topic)


async def open_shop(mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine) -> AsyncShop:
    await mq.create_topic("events", 3)
    Base.metadata.create_all(engine)
    return AsyncShop(mq, async_engine, engine, await mq.producer("events"))


@pytest.fixture
def shop(mq: AsyncMQ, async_engine: AsyncEngine, engine: Engine) -> AsyncShop:
    with asyncio.Runner() as runner:
        return runner.run(open_shop(mq, async_engine, engine))


# --- Whatever stands for a transaction ---


@asynccontextmanager
async def a_session(engine: AsyncEngine) -> AsyncIterator[Transacted]:
    async with AsyncSession(engine) as session:
        yield session
        await session.commit()


@asynccontextmanager
async def a_sessionmaker_that_begins(engine: AsyncEngine) -> AsyncIterator[Transacted]:
    async with async_sessionmaker(engine).begin() as session:
        yield session


@asynccontextmanager
async def a_scoped_session(engine: AsyncEngine) -> AsyncIterator[Transacted]:
    session = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    try:
        yield session
        await session.commit()
    finally:
        await session.remove()


@asynccontextmanager
async def an_engine_that_begins(engine: AsyncEngine) -> AsyncIterator[Transacted]:
    async with engine.begin() as connection:
        yield connection


@asynccontextmanager
async def an_autobegun_connection(engine: AsyncEngine) -> AsyncIterator[Transacted]:
    async with engine.connect() as connection:
        yield connection
        await connection.commit()


@asynccontextmanager
async def a_session_on_a_connection(engine: AsyncEngine) -> AsyncIterator[Transacted]:
    async with engine.connect() as connection, connection.begin() as transaction:
        async with AsyncSession(connection) as session:
            yield session
            await session.commit()
        if transaction.is_active:
            await transaction.commit()


SHAPES = [
    a_session,
    a_sessionmaker_that_begins,
    a_scoped_session,
    an_engine_that_begins,
    an_autobegun_connection,
    a_session_on_a_connection,
]
EACH_SHAPE = pytest.mark.parametrize("transaction", SHAPES, ids=lambda shape: shape.__name__)


@EACH_SHAPE
async def test_a_message_is_in_the_log_when_its_transaction_has_committed(shop: AsyncShop, transaction: Shape) -> None:
    async with transaction(shop.engine) as session:
        publication = await shop.sell(session, "a")
        assert (publication.result, shop.events) == (None, [])

    assert publication.result == ("events", publication.partition, 0)
    assert shop.events == shop.orders == ["a"]


@EACH_SHAPE
@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_a_message_is_never_in_the_log_when_its_transaction_failed(
    shop: AsyncShop, transaction: Shape, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        async with transaction(shop.engine) as session:
            publication = await shop.sell(session, "a")
            raise error
    async with transaction(shop.engine) as session:
        await shop.sell(session, "b")

    assert publication.result is None
    assert shop.events == shop.orders == ["b"]


@EACH_SHAPE
async def test_a_message_that_comes_first_begins_the_transaction(shop: AsyncShop, transaction: Shape) -> None:
    async with transaction(shop.engine) as session:
        await shop.producer.produce(Message(b"first"), session=session)

    assert shop.events == ["first"]


async def test_a_message_is_gone_after_a_rollback_and_after_a_close(shop: AsyncShop) -> None:
    async with AsyncSession(shop.engine) as session, shop.engine.connect() as connection:
        for end in (session.rollback, session.close, session.reset, connection.rollback):
            await shop.sell(connection if end == connection.rollback else session, "lost")
            await end()
        await shop.sell(session, "a")
        await session.commit()
        await shop.sell(connection, "b")
        await connection.commit()
        await shop.sell(connection, "never committed")

    assert shop.events == shop.orders == ["a", "b"]


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


# --- What is published ---


async def test_each_way_to_produce_takes_a_session_and_order_is_kept(shop: AsyncShop) -> None:
    async with AsyncSession(shop.engine) as session, session.begin():
        one = await shop.producer.produce(Message(b"a", b"k"), session=session)
        other = (one.partition + 1) % 3
        placed = await shop.producer.produce_with_partition(Message(b"b", b"k"), other, session=session)
        many = await shop.producer.produce_many((Message(b"%d" % i, b"k") for i in range(50)), session=session)
        none = await shop.producer.produce_many([], session=session)

    assert none == []
    assert placed.result == ProducerResult("events", other, 0)
    assert [publication.result for publication in (one, *many)] == [("events", one.partition, i) for i in range(51)]
    assert shop.log() == {one.partition: ["a", *map(str, range(50))], other: ["b"]}


async def test_messages_without_a_key_stay_together(shop: AsyncShop) -> None:
    async with shop.engine.begin() as connection:
        for number in range(5):
            await shop.producer.produce(Message(b"%d" % number), session=connection)

    assert list(shop.log().values()) == [["0", "1", "2", "3", "4"]]


async def test_messages_arrive_whole(shop: AsyncShop) -> None:
    sent = Message(b"\x00\xff\x00", b"\xff\x00", {"a": "\u00e4", "b": 'quo"te'})
    async with AsyncSession(shop.engine) as session, session.begin():
        await shop.producer.produce(sent, session=session)
        await shop.producer.produce_many([Message(b""), sent], session=session)

    async with await shop.mq.consumer("events", "billing") as consumer:
        messages: list[Message] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(messages) < 3:
                messages += await consumer.poll()
    assert (
        sorted((m.value, m.key, dict(m.headers)) for m in messages if m.value)
        == [(sent.value, sent.key, dict(sent.headers))] * 2
    )


async def test_one_transaction_publishes_to_many_topics_through_many_mqs(shop: AsyncShop, make_mq: MakeAsyncMQ) -> None:
    topics = [f"topic-{i}" for i in range(5)]
    producers = [await (shop.mq if i % 2 else make_mq()).producer(topic) for i, topic in enumerate(topics)]

    async with AsyncSession(shop.engine) as session, session.begin():
        publications = [await producer.produce(Message(b"x"), session=session) for producer in reversed(producers)]

    assert [publication.topic for publication in publications] == topics[::-1]
    assert all(publication.result for publication in publications)
    assert [len(shop.log(topic)) for topic in topics] == [1] * 5


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


async def test_an_mq_made_from_the_applications_engine_publishes_in_its_sessions(shop: AsyncShop) -> None:
    async with AsyncMQ(shop.engine) as mq, AsyncSession(shop.engine) as session:
        producer = await mq.producer("events")
        await producer.produce(Message(b"a"), session=session)
        await session.commit()

    assert shop.events == ["a"]


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


# --- Savepoints ---


@pytest.mark.parametrize("kind", [AsyncSession, AsyncConnection])
async def test_a_savepoint_rolled_back_takes_its_messages_with_it(shop: AsyncShop, kind: type) -> None:
    one: AsyncSession | AsyncConnection
    async with AsyncSession(shop.engine) if kind is AsyncSession else shop.engine.connect() as one:
        await shop.sell(one, "before")
        with suppress(ZeroDivisionError):
            async with one.begin_nested():
                await shop.sell(one, "lost")
                async with one.begin_nested():
                    await shop.sell(one, "released and lost")
                raise ZeroDivisionError
        async with one.begin_nested():
            await shop.sell(one, "inside")
            with suppress(asyncio.CancelledError):
                async with one.begin_nested():
                    await shop.sell(one, "cancelled")
                    raise asyncio.CancelledError
        await one.commit()

    assert shop.events == shop.orders == ["before", "inside"]


async def act(shop: AsyncShop, session: AsyncSession, todo: Sequence[Any], name: str) -> list[str]:
    """Take the steps, and return what is to be published of them if the transaction commits."""
    kept: list[str] = []
    for number, step in enumerate(todo):
        if step is None:
            await shop.sell(session, f"{name}.{number}")
            kept.append(f"{name}.{number}")
            continue
        is_kept, inside = step
        savepoint = await session.begin_nested()
        published = await act(shop, session, inside, f"{name}.{number}")
        if is_kept:
            await savepoint.commit()
            kept += published
        else:
            await savepoint.rollback()
    return kept


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=savepoint_trees)
def test_any_tree_of_savepoints_publishes_what_is_kept_of_it(
    shop: AsyncShop, database: DatabaseUnderTest, driver: str, todo: list[Any]
) -> None:
    before = len(shop.events)

    async def main() -> list[str]:
        engine = async_engine_with_savepoints(database, driver, poolclass=NullPool)
        async with AsyncSession(engine) as session:
            kept = await act(shop, session, todo, f"{before}")
            await session.commit()
        return kept

    expected = asyncio.run(main())

    published = shop.events[before:]
    with shop.sync_engine.begin() as connection:
        sold = list(connection.execute(text("DELETE FROM customer_order RETURNING note")).scalars())
    assert published == expected
    assert sorted(sold) == sorted(expected)


# --- Isolation ---


@POSTGRES
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_above_read_committed_messages_are_staged_and_moved(shop: AsyncShop, level: Any) -> None:
    async with AsyncSession(shop.engine.execution_options(isolation_level=level)) as session:
        publication = await shop.sell(session, "a")
        await session.rollback()
        publication = await shop.sell(session, "b")
        await shop.sell(session, "c")
        await session.commit()

    assert publication.result is None
    until(lambda: shop.events == ["b", "c"], "the staged messages in the log")
    assert shop.orders == ["b", "c"]
    assert QueueState(shop.sync_engine, None).staged() == 0


# --- What is refused ---


@POSTGRES
async def test_autocommit_is_refused(shop: AsyncShop) -> None:
    async with shop.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(SessionError, match="AUTOCOMMIT"):
            await shop.producer.produce(Message(b""), session=connection)

    assert shop.events == []


async def test_another_database_is_refused(shop: AsyncShop, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'elsewhere.db'}")
    async with AsyncSession(engine) as session:
        with pytest.raises(SessionError, match="another database"):
            await shop.producer.produce(Message(b""), session=session)
    await engine.dispose()


async def test_a_closed_connection_and_a_failed_session_are_refused(shop: AsyncShop) -> None:
    connection = await shop.engine.connect()
    await connection.close()
    with pytest.raises(SessionError, match="closed"):
        await shop.producer.produce(Message(b""), session=connection)
    async with AsyncSession(shop.engine) as session:
        session.add_all([Order(note="a"), Order(note="a")])
        with pytest.raises(DBAPIError):
            await session.flush()
        with pytest.raises(SessionError, match="can't carry"):
            await shop.producer.produce(Message(b""), session=session)

    assert shop.events == []


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
    async with AsyncSession(shop.engine) as async_session, shop.engine.connect() as async_connection:
        for given in (async_session, async_connection):
            with pytest.raises(TypeError, match="AsyncProducer"):
                sync_producer.produce(Message(b""), session=given)
    assert shop.events == []


async def test_a_timeout_beside_a_session_is_refused(shop: AsyncShop) -> None:
    producer: Any = shop.producer
    async with AsyncSession(shop.engine) as session:
        with pytest.raises(ValueError, match="timeout has no meaning"):
            await producer.produce(Message(b""), timeout=1, session=session)
        with pytest.raises(ValueError, match="timeout has no meaning"):
            await producer.produce_with_partition(Message(b""), 0, timeout=1, session=session)
        assert not session.in_transaction()


async def test_a_topic_that_is_gone_fails_the_commit(shop: AsyncShop) -> None:
    gone = await shop.mq.producer("gone")
    await shop.mq.delete_topics("gone")

    with pytest.raises(UnknownTopicError):
        async with async_sessionmaker(shop.engine).begin() as session:
            await shop.sell(session, "a")
            await gone.produce(Message(b""), session=session)

    assert shop.events == shop.orders == []


# --- Waking, and being cancelled ---


async def test_an_idle_consumer_is_woken_by_the_commit_and_not_before(shop: AsyncShop, make_mq: MakeAsyncMQ) -> None:
    # Without notices: whoever begins to listen is woken once.
    mq = make_mq(poll_min_seconds=PATIENCE_SECONDS, poll_max_seconds=PATIENCE_SECONDS, notify=False)
    producer, consumer = await mq.producer("events"), await mq.consumer("events", "billing")

    async def receive() -> bytes:
        return (await consumer.consume()).value

    # The first look finds partitions that are not claimed yet, and asks again soon; after it, only a wake-up helps.
    receiving = asyncio.create_task(receive())
    while not consumer._core.is_waiting:
        await asyncio.wait([receiving], timeout=0.01)
    count = consumer._core.wakeups.count
    async with AsyncSession(shop.engine) as session:
        await producer.produce(Message(b"a"), session=session)
        assert consumer._core.wakeups.count == count
        await session.commit()
        async with asyncio.timeout(PATIENCE_SECONDS / 3):
            assert await receiving == b"a"


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
