"""Rows are locked in the order of their ids, whatever asks for them, so that no two transactions wait for each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from sqlmq import Message, Retry
from sqlmq.dialects import Dialect, dialect_named
from sqlmq.model.partitioner import partition_for_key
from tests.support.blocking import acknowledge
from tests.support.waiting import PATIENCE_SECONDS, receive, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Column

    from sqlmq import MQ, ReceivedMessage
    from tests.conftest import DatabaseUnderTest

    Action: TypeAlias = Callable[[], object]

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)

LAST_FIRST = (2, 1, 0)
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


@pytest.fixture
def dialect(engine: Engine, database: DatabaseUnderTest) -> Dialect:
    return dialect_named(engine.dialect.name, database.schema)


@pytest.fixture
def messages() -> list[Message]:
    """One for each partition of a topic of three, the last partition first."""
    keys = [
        next(key for key in candidates() if partition_for_key("murmur2", key, 3) == number) for number in LAST_FIRST
    ]
    return [Message(b"", key) for key in keys]


def candidates() -> list[bytes]:
    return [b"%d" % number for number in range(100)]


def check_locks(engine: Engine, ids: Column[int], action: Action) -> None:
    """Assert that *action* waits for the row with the lowest of *ids* before it locks any other."""
    with ThreadPoolExecutor(1) as threads, engine.connect() as holder, engine.connect() as observer:
        # Inside a transaction, pg_stat_activity would not change.
        observer.execution_options(isolation_level="AUTOCOMMIT")
        first, *others = holder.execute(select(ids).order_by(ids)).scalars()
        holder.execute(select(ids).where(ids == first).with_for_update(key_share=True)).all()
        acting = threads.submit(action)
        until(lambda: observer.execute(WAITING).scalar_one() > 0 or acting.done(), "it waits for the lock")
        is_waiting = not acting.done()
        probe = select(ids).where(ids.in_(others)).order_by(ids).with_for_update(skip_locked=True)
        unlocked = list(observer.execute(probe).scalars())
        holder.rollback()
        acting.result(PATIENCE_SECONDS)

    assert is_waiting
    assert unlocked == others


def together(mq: MQ, _engine: Engine, messages: list[Message]) -> Action:
    producer = mq.producer("orders")
    return lambda: producer.produce_many(messages)


def in_a_transaction(mq: MQ, engine: Engine, messages: list[Message]) -> Action:
    producer = mq.producer("orders")

    def publish() -> None:
        with Session(engine) as session, session.begin():
            for message in messages:
                producer.produce(message, session=session)

    return publish


def growth(mq: MQ, _engine: Engine, _messages: list[Message]) -> Action:
    return lambda: mq.admin.add_partitions("orders", 6)


@pytest.mark.parametrize("prepare", [together, in_a_transaction, growth])
def test_partitions_are_locked_in_order_of_id(
    mq: MQ,
    engine: Engine,
    dialect: Dialect,
    messages: list[Message],
    prepare: Callable[[MQ, Engine, list[Message]], Action],
) -> None:
    mq.create_topic("orders", 3)

    check_locks(engine, dialect.tables.partition.c.id, prepare(mq, engine, messages))


@pytest.mark.parametrize("count", [1, 2])
def test_an_append_waits_for_the_transaction_that_has_locked_its_partition(
    mq: MQ, engine: Engine, dialect: Dialect, count: int
) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")

    check_locks(engine, dialect.tables.partition.c.id, lambda: producer.produce_many([Message(b"")] * count))


def commit(mq: MQ) -> Action:
    consumer = mq.consumer("orders", "billing")
    receive(consumer, 3)
    mq._background.housekeeping.stop()  # it would commit, too
    acknowledge(consumer)
    return consumer.commit


def reset(mq: MQ) -> Action:
    with mq.consumer("orders", "billing") as consumer:
        receive(consumer, 3)
    return lambda: mq.admin.reset_group("orders", "billing", "earliest")


def decision(mq: MQ) -> Action:
    def fail(message: ReceivedMessage) -> None:
        raise ValueError(message.partition)

    consumer = mq.consumer("orders", "billing")
    consumer.run(fail, on_failure="dead", retry=Retry(max_attempts=1), idle_seconds=0.1, handle_signals=False)
    return lambda: mq.admin.parked("orders", "billing").retry(everything=True)


@pytest.mark.parametrize("prepare", [commit, reset, decision])
def test_claims_are_locked_in_order_of_partition(
    mq: MQ, engine: Engine, dialect: Dialect, messages: list[Message], prepare: Callable[[MQ], Action]
) -> None:
    mq.create_topic("orders", 3)
    mq.producer("orders").produce_many(messages)

    check_locks(engine, dialect.tables.claim.c.partition_id, prepare(mq))
