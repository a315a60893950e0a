"""COMMIT takes effect and its answer is lost: the caller is told so, and nothing is sent a second time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlmq import MQ, AsyncMQ, Message, OutcomeUnknownError
from tests.faults.proxy import COMMIT, Proxy
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from sqlmq import AsyncConsumer, AsyncTransaction, Transaction
    from tests.conftest import DatabaseUnderTest
    from tests.support.shop import Shop

pytestmark = [pytest.mark.faults, pytest.mark.parametrize("database", ["postgres"], indirect=True)]


@pytest.mark.parametrize("level", ["READ COMMITTED", "SERIALIZABLE"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_session_whose_commit_is_not_answered_says_so_and_sends_nothing_again(
    shop: Shop, database: DatabaseUnderTest, driver: str, level: str
) -> None:
    with Proxy(make_url(database.url)) as proxy:
        engine = create_engine(proxy.url.set(drivername=f"postgresql+{driver}")).execution_options(
            isolation_level=level
        )
        with Session(engine) as session:
            shop.sell(session, "a")
            proxy.lose_answer_to(COMMIT)

            with pytest.raises(DBAPIError) as raised:
                session.commit()
            session.rollback()
            shop.sell(session, "b")
            session.commit()
        engine.dispose()
    until(lambda: shop.state.staged() == 0, "everything in the log")

    assert raised.value.connection_invalidated
    assert proxy.lost == 1
    assert sum(data.count(COMMIT) for data in proxy.seen) == 2
    assert shop.events == shop.orders == ["a", "b"]


def test_a_session_that_is_cut_off_while_it_publishes_has_published_nothing(
    shop: Shop, database: DatabaseUnderTest
) -> None:
    with Proxy(make_url(database.url)) as proxy:
        engine = create_engine(proxy.url, pool_size=1, max_overflow=0)
        with Session(engine) as session:
            publication = shop.sell(session, "a")
            proxy.lose_answer_to(b"sqlmq_publish")

            with pytest.raises(DBAPIError) as raised:
                session.commit()
            session.rollback()
            shop.sell(session, "b")
            session.commit()
        engine.dispose()

    assert raised.value.connection_invalidated
    assert (proxy.lost, publication.result) == (1, None)
    assert shop.events == shop.orders == ["b"]


@pytest.mark.parametrize(("count", "word"), [(1, b"sqlmq_append"), (5_001, COMMIT)])
def test_a_producer_whose_own_commit_is_not_answered_says_so_and_sends_nothing_again(
    shop: Shop, database: DatabaseUnderTest, count: int, word: bytes
) -> None:
    with Proxy(make_url(database.url)) as proxy, MQ(proxy.url) as mq:
        producer = mq.producer("events")
        proxy.lose_answer_to(word)

        with pytest.raises(OutcomeUnknownError, match="may have taken effect or not"):
            producer.produce_many([Message(b"a", b"k")] * count)
        producer.produce(Message(b"b", b"k"))

    assert proxy.lost == 1
    assert shop.events == ["a"] * count + ["b"]
    with shop.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlmq_message")).scalar_one() == count + 1


SHIP = text("INSERT INTO shipped VALUES (:note)")


@pytest.fixture
def to_ship(shop: Shop) -> Shop:
    """A shop with three events, and a table for what is done with each."""
    with shop.engine.begin() as connection:
        connection.execute(text("CREATE TABLE shipped (note text)"))
    shop.producer.produce_many([Message(note, b"k") for note in (b"a", b"b", b"c")])
    return shop


def shipped(shop: Shop) -> list[str]:
    with shop.engine.connect() as connection:
        return list(connection.execute(text("SELECT note FROM shipped ORDER BY note")).scalars())


def notes(tx: Transaction | AsyncTransaction) -> list[dict[str, str]]:
    return [{"note": message.value.decode()} for message in tx]


@pytest.mark.parametrize("given", ["Session", "Connection"])
def test_a_block_whose_commit_is_not_answered_says_so_and_the_next_begins_where_the_truth_is(
    to_ship: Shop, database: DatabaseUnderTest, given: str
) -> None:
    with Proxy(make_url(database.url)) as proxy, to_ship.mq.consumer("events", "shipping") as consumer:
        engine = create_engine(proxy.url)
        with Session(engine) if given == "Session" else engine.connect() as session:
            transaction = consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=session)
            with pytest.raises(OutcomeUnknownError, match="may have"), transaction as tx:  # noqa: PT012 - the end of it raises
                tx.session.execute(SHIP, notes(tx))
                proxy.lose_answer_to(COMMIT)
            with consumer.transaction(timeout=PATIENCE_SECONDS, session=session) as tx:
                tx.session.execute(SHIP, notes(tx))
        engine.dispose()

    assert proxy.lost == 1
    assert shipped(to_ship) == ["a", "b", "c"]
    assert to_ship.mq.admin.describe_group("events", "shipping").lag == 0


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("given", ["AsyncSession", "AsyncConnection"])
def test_a_block_for_asyncio_whose_commit_is_not_answered_says_so(
    to_ship: Shop, database: DatabaseUnderTest, given: str, driver: str
) -> None:
    async def ship_one(consumer: AsyncConsumer, session: AsyncSession | AsyncConnection, proxy: Proxy) -> None:
        async with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS, session=session) as tx:
            await tx.session.execute(SHIP, notes(tx))
            proxy.lose_answer_to(b"COMMIT")

    async def ship(proxy: Proxy) -> None:
        engine = create_async_engine(proxy.url.set(drivername=f"postgresql+{driver}"))
        async with (
            AsyncMQ(database.url) as mq,
            await mq.consumer("events", "shipping") as consumer,
            AsyncSession(engine) if given == "AsyncSession" else engine.connect() as session,
        ):
            with pytest.raises(OutcomeUnknownError, match="may have taken effect or not"):
                await ship_one(consumer, session, proxy)
            async with consumer.transaction(timeout=PATIENCE_SECONDS, session=session) as tx:
                await tx.session.execute(SHIP, notes(tx))
        await engine.dispose()

    with Proxy(make_url(database.url)) as proxy:
        asyncio.run(ship(proxy))

    assert proxy.lost == 1
    assert shipped(to_ship) == ["a", "b", "c"]
    assert to_ship.mq.admin.describe_group("events", "shipping").lag == 0


def test_a_commit_of_positions_that_is_not_answered_is_sent_again_and_does_no_harm(
    to_ship: Shop, database: DatabaseUnderTest
) -> None:
    with Proxy(make_url(database.url)) as proxy, MQ(proxy.url, notify=False) as mq:
        consumer = mq.consumer("events", "shipping")
        assert len(consumer.poll(timeout=PATIENCE_SECONDS)) == 3
        proxy.lose_answer_to(b"sqlmq_group_offset")

        consumer.commit()

    assert proxy.lost == 1
    assert to_ship.mq.admin.describe_group("events", "shipping").lag == 0


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
def test_a_run_whose_commit_is_not_answered_goes_on_and_has_each_effect_once(
    to_ship: Shop, database: DatabaseUnderTest, transaction: bool
) -> None:
    handled: list[str] = []

    def ship(message: Message, session: Session | None = None) -> None:
        note = message.value.decode()
        if session is not None:
            session.execute(SHIP, {"note": note})
        handled.append(note)
        if len(handled) == 1:
            proxy.lose_answer_to(COMMIT if transaction else b"sqlmq_group_offset")
        if {"a", "b", "c"} <= set(handled):
            consumer.stop()

    with Proxy(make_url(database.url)) as proxy, MQ(proxy.url, notify=False) as mq:
        consumer = mq.consumer("events", "shipping")
        consumer.run(ship, transaction=transaction, handle_signals=False)

    assert proxy.lost == 1
    assert shipped(to_ship) == (["a", "b", "c"] if transaction else [])
    assert handled == ["a", "b", "c"]
    assert to_ship.mq.admin.describe_group("events", "shipping").lag == 0


def test_a_producer_that_is_cut_off_in_the_middle_of_many_messages_sends_them_once(
    shop: Shop, database: DatabaseUnderTest
) -> None:
    with Proxy(make_url(database.url)) as proxy, MQ(proxy.url) as mq:
        producer = mq.producer("events")
        proxy.lose_answer_to(b"COPY")

        results = producer.produce_many([Message(b"a", b"k")] * 5_001)

    assert proxy.lost == 1
    assert [result.offset for result in results] == list(range(5_001))
    assert shop.events == ["a"] * 5_001
