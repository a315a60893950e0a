"""Retention beside others: locks that somebody keeps, producers that must not wait, the thread that trims by itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine

from sqlmq import DatabaseBusyError, Message, Retention
from sqlmq.background import retention
from sqlmq.dialects import dialect_named
from sqlmq.operations import retention as operations_retention
from sqlmq.store import retention as store_retention
from sqlmq.store import topics
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest, MakeMQ

POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def other(database: DatabaseUnderTest) -> Iterator[Engine]:
    engine = create_engine(database.url)
    yield engine
    engine.dispose()


def fill(mq: MQ, partitions: int) -> None:
    mq.create_topic("orders", partitions, retention=Retention(max_messages=1))
    for partition in range(partitions):
        for _ in range(5):
            mq.producer("orders").produce_with_partition(Message(b"x"), partition)


def starts(mq: MQ) -> list[int]:
    return [partition.start_offset for partition in mq.admin.describe_topic("orders").partitions]


@POSTGRES
def test_a_partition_whose_lock_somebody_keeps_is_left_to_the_next_round(
    mq: MQ, other: Engine, database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations_retention, "LOCK_SECONDS", 0.05)
    fill(mq, 3)
    dialect = dialect_named("postgresql", database.schema)
    with other.connect() as connection:
        topic = topics.find(connection, dialect, "orders")
        assert topic is not None
        topics.lock_partition(connection, dialect, topic.partition_ids[1])

        with pytest.raises(ExceptionGroup) as caught:
            mq.admin.apply_retention()

    assert [type(error) for error in caught.value.exceptions] == [DatabaseBusyError]
    assert starts(mq) == [4, 0, 4]
    mq.admin.apply_retention()
    assert starts(mq) == [4, 4, 4]


@POSTGRES
def test_a_producer_does_not_wait_for_messages_that_are_being_deleted(
    mq: MQ, other: Engine, database: DatabaseUnderTest
) -> None:
    fill(mq, 1)
    dialect = dialect_named("postgresql", database.schema)
    with other.connect() as connection:
        topic = topics.find(connection, dialect, "orders")
        assert topic is not None
        assert store_retention.keep_from_purge(connection, dialect, topic.partition_ids[0]) == (0, 0)

        result = mq.producer("orders").produce(Message(b"x"), timeout=10)

    assert result.offset == 5


@BOTH
def test_whoever_has_a_consumer_trims_without_being_told(mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "ROUND_SECONDS", 0.01)
    fill(mq, 1)
    mq.create_topic("invoices")

    mq.consumer("invoices", "audit")

    until(lambda: starts(mq) == [4], "the messages deleted")


@BOTH
def test_a_round_that_fails_is_tried_again(
    mq: MQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "ROUND_SECONDS", 0.01)
    fill(mq, 1)
    failures = iter([ValueError("not this time")])
    plan = operations_retention.plan

    def failing_once(*arguments: object) -> object:
        for failure in failures:
            raise failure
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(operations_retention, "plan", failing_once)

    mq.consumer("orders", "audit", start="latest")

    until(lambda: starts(mq) == [4], "the messages deleted")
    (warning,) = [one for one in caplog.records if one.name == "sqlmq.background"]
    assert warning.levelno == logging.WARNING
    assert "not this time" in warning.message


@BOTH
def test_without_a_consumer_no_thread_trims(make_mq: MakeMQ) -> None:
    mq = make_mq()

    mq.producer("orders").produce(Message(b"x"))

    assert mq._background.retention._thread is None
