"""The connection that is kept from one append to the next: tested after its rest, given back, and only ever one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import QueuePool, create_engine

from sqlmq import MQ, Message
from sqlmq.database.append_connection import AppendConnection
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest, MakeMQ

POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)


def pool_of(mq: MQ) -> QueuePool:
    assert isinstance(mq.engine.pool, QueuePool)
    return mq.engine.pool


def assert_that_so_many_are_out(mq: MQ, count: int) -> None:
    pool = pool_of(mq)
    # What the MQ does in the background has one now and then.
    until(lambda: pool.checkedout() == count, f"{count} connections out of the pool")


def kept_by(mq: MQ) -> psycopg.Connection[object]:
    (kept,) = mq._database._append_connection._kept
    connection = kept.connection.connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


@POSTGRES
def test_appends_one_after_the_other_go_by_one_connection(mq: MQ) -> None:
    producer = mq.producer("orders")
    producer.produce(Message(b"0"))
    first = kept_by(mq)

    producer.produce_many([Message(b"1"), Message(b"2")])

    assert kept_by(mq) is first


@POSTGRES
def test_a_connection_that_broke_while_it_rested_is_replaced(mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlmq.database.watchdog._IDLE_SECONDS", 0.0)
    producer = mq.producer("orders")
    producer.produce_with_partition(Message(b"before"), 0)
    kept_by(mq).close()

    result = producer.produce_with_partition(Message(b"after"), 0)

    assert result.offset == 1
    assert_that_so_many_are_out(mq, 1)


@POSTGRES
def test_closing_gives_the_connection_back(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.producer("orders").produce(Message(b"1"))
    pool, connection = pool_of(mq), kept_by(mq)

    mq.close()

    assert pool.checkedout() == 0
    assert connection.closed


@POSTGRES
def test_disposing_of_the_engine_closes_the_connection(mq: MQ) -> None:
    producer = mq.producer("orders")
    producer.produce_with_partition(Message(b"0"), 0)
    connection = kept_by(mq)

    mq.engine.dispose()

    assert connection.closed
    assert producer.produce_with_partition(Message(b"1"), 0).offset == 1


@POSTGRES
def test_a_connection_given_back_does_not_commit_by_itself_any_more(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.producer("orders").produce(Message(b"1"))
    spare, connection = mq._database._append_connection, kept_by(mq)
    before = connection.autocommit

    spare.take().close()

    assert (before, connection.autocommit) == (True, False)
    assert_that_so_many_are_out(mq, 0)


@POSTGRES
def test_of_connections_in_use_at_once_one_is_kept(mq: MQ) -> None:
    spare = AppendConnection(mq.engine, mq._database.dialect, mq._database.watchdog, keeps=True)
    taken = [spare.take(), spare.take(), spare.take()]

    for one in taken:
        spare.give(one)

    assert_that_so_many_are_out(mq, 1)
    spare.close()
    assert_that_so_many_are_out(mq, 0)


@POSTGRES
def test_none_is_kept_of_an_engine_that_others_use(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, pool_size=1, max_overflow=0)
    with MQ(engine) as mq:
        mq.producer("orders").produce(Message(b"1"))

        assert_that_so_many_are_out(mq, 0)
    engine.dispose()
