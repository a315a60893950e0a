"""What is different behind PgBouncer in transaction mode. That all else is the same is shown in `contract`, by `--pgbouncer`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import Connection, NullPool, create_engine, text

from sqlmq import MQ, Message
from sqlmq.errors import DatabaseError
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest, MakeMQ

pytestmark = pytest.mark.pgbouncer


def prepares(mq: MQ) -> bool:
    with mq.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        return driver.prepare_threshold is not None


@pytest.mark.parametrize("database", ["postgres", "pgbouncer"], indirect=True)
def test_statements_are_prepared_only_where_sessions_do_not_change_hands(mq: MQ, database: DatabaseUnderTest) -> None:
    assert prepares(mq) == (database.kind == "postgres")

    mq.engine.dispose()
    assert prepares(mq) == (database.kind == "postgres"), "a later connection is treated as the first"


@pytest.mark.parametrize("database", ["pgbouncer"], indirect=True)
def test_sessions_do_change_hands_here(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, poolclass=NullPool)
    pid = text("SELECT pg_backend_pid()")

    with engine.connect() as one, engine.connect() as other:
        before = one.scalar(pid)
        one.commit()
        # Whichever it takes, this one's transaction is open when the next begins.
        assert other.scalar(pid) == before
        assert one.scalar(pid) != before


@pytest.mark.parametrize("database", ["pgbouncer"], indirect=True)
def test_an_engine_that_prepares_statements_is_told_what_to_do(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, connect_args={"prepare_threshold": 0})

    def ask_on_changing_sessions(mq: MQ, other: Connection) -> None:
        for _ in range(20):
            mq.admin.topics()
            other.execute(text("SELECT 1"))

    with MQ(engine) as mq, engine.connect() as other, pytest.raises(DatabaseError, match="'prepare_threshold': None"):
        ask_on_changing_sessions(mq, other)
    engine.dispose()


@pytest.mark.parametrize("database", ["pgbouncer"], indirect=True)
def test_notices_do_not_arrive_and_that_is_said_once(
    make_mq: MakeMQ, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.background.listener._ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("sqlmq.background.listener._UNREACHABLE_SECONDS", 0.2)
    listening, producing = make_mq(poll_max_seconds=0.1), make_mq()
    producer = producing.producer("orders")
    consumer = listening.consumer("orders", "billing")

    def said() -> list[str]:
        return [record.message for record in caplog.records if "notifications do not arrive" in record.message]

    with caplog.at_level(logging.WARNING):
        assert consumer.poll(timeout=0) == []
        for number in range(10):
            producer.produce(Message(b"%d" % number))
            assert [message.value for message in consumer.poll(timeout=10)] == [b"%d" % number]
            consumer.poll(timeout=0.2)
        until(lambda: said() != [], "the warning")

    assert len(said()) == 1
