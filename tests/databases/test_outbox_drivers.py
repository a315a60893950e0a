"""The application's own engine may have any driver, and may be asyncio's, whatever the queue works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlmq import Message, UnknownTopicError
from sqlmq.errors import SessionError
from tests.databases.drivers import ASYNC, MESSAGES, SYNC, facts, run, url
from tests.support.waiting import receive, until

if TYPE_CHECKING:
    from sqlmq import Publication
    from tests.support.shop import Shop


def publish(shop: Shop, session: Session | Connection) -> list[Publication]:
    """Publish each way there is, to every partition."""
    publications = shop.producer.produce_many(MESSAGES, session=session)
    publications.append(shop.producer.produce(Message(b"alone"), session=session))
    for partition in range(3):
        publications.append(shop.producer.produce_with_partition(Message(b"placed"), partition, session=session))
    return publications


PUBLISHED = facts([*MESSAGES, Message(b"alone"), *[Message(b"placed")] * 3])


def assert_all_arrived(shop: Shop) -> None:
    consumer = shop.mq.consumer("events", "billing")
    assert facts(receive(consumer, len(PUBLISHED))) == PUBLISHED


@SYNC
def test_messages_pass_through_the_applications_driver_byte_for_byte(shop: Shop, driver: str) -> None:
    engine = create_engine(url(shop, driver))
    with Session(engine) as session:
        publications = publish(shop, session)
        shop.sell(session, "a")
        session.rollback()
        publications = publish(shop, session)
        session.commit()
    engine.dispose()

    assert all(publication.result for publication in publications)
    assert_all_arrived(shop)


@SYNC
def test_a_deleted_topic_is_told_from_other_errors_through_the_applications_driver(shop: Shop, driver: str) -> None:
    engine = create_engine(url(shop, driver))
    with Session(engine) as session:
        shop.sell(session, "a")
        session.rollback()
        shop.producer.produce(Message(b""), session=session)
        shop.mq.delete_topics("events")
        with pytest.raises(UnknownTopicError, match="events"):
            session.commit()
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_messages_are_staged_through_the_applications_driver(shop: Shop, driver: str) -> None:
    engine = create_engine(url(shop, f"postgresql+{driver}"), isolation_level="SERIALIZABLE")
    with Session(engine) as session, session.begin():
        publish(shop, session)
    engine.dispose()
    until(lambda: shop.state.staged() == 0, "everything in the log")

    assert_all_arrived(shop)


@ASYNC
def test_an_async_session_publishes(shop: Shop, driver: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda sync: publish(shop, sync))
            await session.rollback()
            publications = await session.run_sync(lambda sync: publish(shop, sync))
            assert [publication.result for publication in publications] == [None] * len(PUBLISHED)
            await session.commit()
            assert all(publication.result for publication in publications)

    run(shop, driver, work)

    assert_all_arrived(shop)


@ASYNC
def test_an_async_connection_publishes(shop: Shop, driver: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.run_sync(lambda sync: publish(shop, sync))

    run(shop, driver, work)

    assert_all_arrived(shop)


@ASYNC
def test_savepoints_of_an_async_session_take_their_messages_back(shop: Shop, driver: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            # Before the savepoint, or Python's driver of SQLite is in no transaction yet.
            await session.run_sync(lambda sync: shop.sell(sync, "kept"))
            savepoint = await session.begin_nested()
            await session.run_sync(lambda sync: shop.sell(sync, "lost"))
            await savepoint.rollback()
            async with session.begin_nested():
                await session.run_sync(lambda sync: shop.sell(sync, "also kept"))
            await session.commit()

    run(shop, driver, work)

    assert shop.events == shop.orders == ["kept", "also kept"]


@ASYNC
def test_rows_of_an_async_session_do_not_outlive_a_failed_publication(shop: Shop, driver: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda sync: shop.producer.produce(Message(b""), session=sync))
            shop.mq.delete_topics("events")
            await session.execute(text("INSERT INTO customer_order (note) VALUES ('a')"))
            with pytest.raises(UnknownTopicError, match="events"):
                await session.commit()
        async with AsyncSession(engine) as session:
            await session.execute(text("INSERT INTO customer_order (note) VALUES ('b')"))
            await session.commit()

    run(shop, driver, work, pool_size=1, max_overflow=0)

    assert shop.orders == ["b"]


@ASYNC
def test_autocommit_of_an_async_engine_is_refused(shop: Shop, driver: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            with pytest.raises(SessionError, match="AUTOCOMMIT"):
                await session.run_sync(lambda sync: publish(shop, sync))

    run(shop, driver, work, isolation_level="AUTOCOMMIT")

    assert shop.events == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_async_transactions_that_an_event_begins_on_sqlite_publish(shop: Shop) -> None:
    async def work(engine: AsyncEngine) -> None:
        # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable
        event.listen(engine.sync_engine, "connect", lambda one, _record: setattr(one, "isolation_level", None))
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda sync: shop.sell(sync, "lost"))
            await session.rollback()
            async with session.begin_nested():
                await session.run_sync(lambda sync: shop.sell(sync, "kept"))
            await session.commit()

    run(shop, "sqlite+aiosqlite", work)

    assert shop.events == shop.orders == ["kept"]


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_an_async_session_stages(shop: Shop, driver: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(lambda sync: publish(shop, sync))

    run(shop, f"postgresql+{driver}", work, isolation_level="SERIALIZABLE")
    until(lambda: shop.state.staged() == 0, "everything in the log")

    assert_all_arrived(shop)


@ASYNC
def test_the_async_faces_themselves_are_no_sessions_of_a_producer(shop: Shop, driver: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session, engine.connect() as connection:
            for one in (session, connection):
                given: Any = one
                with pytest.raises(TypeError, match="AsyncProducer"):
                    shop.producer.produce(Message(b""), session=given)

    run(shop, driver, work)
