"""``schema_translate_map`` on an application's engine or sessions is for its own tables: no statement of ours is translated."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, insert, inspect, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqlmq import MQ, AsyncMQ, Message, Retry, migrate
from tests.support.delayed import Staged
from tests.support.waiting import finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from sqlmq import ReceivedMessage
    from tests.conftest import DatabaseUnderTest, MakeMQ

LONG = 3_600.0
NOWHERE = "nowhere"
MAP = {None: "tenant", "queue": NOWHERE, "public": NOWHERE}
business = Table("business", MetaData(), Column("number", Integer))


class Statements:
    """The statements on an engine, and the translation under which each was run."""

    def __init__(self, engine: Engine) -> None:
        self.ours: list[str] = []
        self.translated: list[str] = []
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(
        self, _conn: object, _cursor: object, statement: str, _parameters: object, context: Any, _many: object
    ) -> None:
        if "sqlmq_" in statement:
            self.ours.append(statement)
            if context.execution_options.get("schema_translate_map"):
                self.translated.append(statement)


@pytest.fixture
def tenant(engine: Engine, database: DatabaseUnderTest) -> Iterator[Engine]:
    """The application's engine, with a map, and the table of a tenant."""
    with engine.begin() as connection:
        if database.is_postgres:
            connection.exec_driver_sql("CREATE SCHEMA tenant")
        else:
            event.listen(engine, "connect", attach)
    engine.dispose()
    translating = engine.execution_options(schema_translate_map=MAP)
    business.create(translating)
    yield translating
    engine.dispose()


def attach(connection: Any, _record: object) -> None:
    file = connection.execute("PRAGMA database_list").fetchone()[2]
    connection.execute(f"ATTACH DATABASE '{file}.tenant' AS tenant")


@contextmanager
def untranslated(engine: Engine) -> Iterator[Statements]:
    statements = Statements(engine)
    yield statements
    assert statements.translated == [], statements.translated
    assert statements.ours


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        count: int = connection.execute(text("SELECT count(*) FROM tenant.business")).scalar_one()
    return count


def test_the_outbox_is_not_translated(make_mq: MakeMQ, tenant: Engine) -> None:
    mq = make_mq()
    mq.create_topic("orders", 3)
    producer, late = mq.producer("orders"), mq.producer("orders")

    with untranslated(tenant), Session(tenant) as session, session.begin():
        session.execute(insert(business).values(number=1))
        producer.produce(Message(b"1", key=b"a"), session=session)
        producer.produce_many([Message(b"2", key=b"b"), Message(b"3")], session=session)
        delayed = producer.schedule_many([Message(b"4"), Message(b"5")], delay_seconds=LONG, session=session)
        assert mq.admin.cancel_delayed(delayed[0].id, session=session) == [delayed[0].id]
        with session.begin_nested():
            producer.produce(Message(b"6"), session=session)
        session.execute(insert(business).values(number=2))
    mq.admin.add_partitions("orders", 6)
    with untranslated(tenant), Session(tenant) as session, session.begin():
        session.execute(insert(business).values(number=3))
        late.produce(Message(b"7", key=b"a"), session=session)
        late.schedule(Message(b"8"), delay_seconds=LONG, session=session)

    assert rows(tenant) == 3
    assert mq.admin.describe_topic("orders").messages == 5
    assert len(mq.admin.delayed("orders")) == 2


@pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
def test_staging_is_not_translated(make_mq: MakeMQ, tenant: Engine) -> None:
    mq = make_mq()
    producer = mq.producer("orders")
    repeatable = tenant.execution_options(isolation_level="REPEATABLE READ")

    with untranslated(tenant), Session(repeatable) as session, session.begin():
        session.execute(insert(business).values(number=1))
        producer.produce_many([Message(b"1"), Message(b"2", key=b"k")], session=session)

    assert rows(tenant) == 1
    assert len(finish(mq.consumer("orders", "billing"), 2)) == 2


def test_transactions_of_a_consumer_are_not_translated(make_mq: MakeMQ, tenant: Engine) -> None:
    mq = make_mq()
    mq.producer("orders").produce_many([Message(b"%d" % number, key=b"k") for number in range(4)])
    consumer = mq.consumer("orders", "billing")
    producer = mq.producer("shipments")

    with untranslated(tenant), consumer.transaction(max_messages=2, timeout=30, session=sessionmaker(tenant)) as tx:
        assert len(tx.messages) == 2
        tx.session.execute(insert(business).values(number=1))
        producer.produce(Message(b"shipped"), session=tx.session)
    with untranslated(tenant), tenant.connect() as connection:
        with consumer.transaction(max_messages=2, timeout=30, session=connection) as tx:
            assert len(tx.messages) == 2
            tx.connection.execute(insert(business).values(number=2))
        assert connection.get_execution_options()["schema_translate_map"] == MAP

    assert rows(tenant) == 2
    assert mq.admin.describe_topic("shipments").messages == 1


def test_handlers_in_transactions_are_not_translated(make_mq: MakeMQ, tenant: Engine) -> None:
    mq = make_mq()
    mq.producer("orders").produce_many([Message(b"%d" % number, key=b"k") for number in range(3)])
    consumer = mq.consumer("orders", "billing")

    def handle(message: ReceivedMessage, session: Session) -> None:
        session.execute(insert(business).values(number=int(message.value)))
        if message.offset == 1:
            raise ArithmeticError
        if message.value == b"2":
            consumer.stop()

    with untranslated(tenant):
        consumer.run(
            handle,
            transaction=True,
            session=sessionmaker(tenant),
            retry=Retry(max_attempts=1),
            idle_seconds=30,
            handle_signals=False,
        )

    assert rows(tenant) == 2


def test_an_mq_on_a_translating_engine_uses_its_own_tables_and_lends_translating_sessions(
    tenant: Engine, engine: Engine, database: DatabaseUnderTest
) -> None:
    with untranslated(tenant), MQ(tenant, schema=database.schema) as mq:
        mq.create_topic("orders", 1)
        mq.producer("orders").produce(Message(b"1"))
        mq.producer("orders").schedule(Message(b"2"), delay_seconds=0)
        Staged(engine, database).until_all_moved()
        with mq.consumer("orders", "billing") as consumer:
            finish(consumer, 1)
            with consumer.transaction(timeout=30) as tx:
                assert len(tx.messages) == 1
                tx.session.execute(insert(business).values(number=1))
        assert mq.engine is tenant
        assert {lag.lag for lag in mq.admin.lag()} == {0}

    assert rows(tenant) == 1
    assert tenant.get_execution_options()["schema_translate_map"] == MAP


def test_migrations_on_a_translating_connection_are_not_translated(tenant: Engine, database: DatabaseUnderTest) -> None:
    def there(connection: Connection, schema: str | None) -> bool:
        return inspect(connection).has_table("sqlmq_topic", schema=schema)

    with tenant.begin() as connection:
        migrate.downgrade(connection, schema=database.schema)
        assert not there(connection, database.schema)
        migrate.upgrade(connection, schema=database.schema)
        migrate.check(connection, schema=database.schema)

        assert there(connection, database.schema)
        assert not there(connection, "tenant")
        assert connection.get_execution_options()["schema_translate_map"] == MAP


@pytest.mark.parametrize(
    ("database", "driver"),
    [
        ("postgres", "postgresql+psycopg"),
        ("postgres-schema", "postgresql+asyncpg"),
        ("sqlite", "sqlite+aiosqlite"),
    ],
    indirect=["database"],
)
def test_sessions_on_drivers_for_asyncio_are_not_translated(
    tenant: Engine, database: DatabaseUnderTest, driver: str
) -> None:
    async def use() -> None:
        engine = create_async_engine(make_url(database.url).set(drivername=driver))
        if not database.is_postgres:
            event.listen(engine.sync_engine, "connect", lambda connection, _: attach_asynchronously(connection))
        translating = engine.execution_options(schema_translate_map=MAP)
        async with AsyncMQ(database.url, schema=database.schema) as mq:
            producer = await mq.producer("orders")
            with untranslated(translating.sync_engine):
                async with AsyncSession(translating) as session, session.begin():
                    await session.execute(insert(business).values(number=1))
                    await producer.produce(Message(b"1"), session=session)
                    later = await producer.schedule(Message(b"2"), delay_seconds=LONG, session=session)
                    assert await mq.admin.cancel_delayed(later.id, session=session) == [later.id]
                consumer = await mq.consumer("orders", "billing")
                async with consumer.transaction(timeout=30, session=async_sessionmaker(translating)) as tx:
                    assert len(tx.messages) == 1
                    await tx.session.execute(insert(business).values(number=2))
        await engine.dispose()

    asyncio.run(use())

    assert rows(tenant) == 2


def attach_asynchronously(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA database_list")
    file = cursor.fetchall()[0][2]
    cursor.execute(f"ATTACH DATABASE '{file}.tenant' AS tenant")
    cursor.close()
