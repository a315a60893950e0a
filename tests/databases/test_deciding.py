"""Decisions about parked messages: whom they wait for, and what they leave for the partition's next owner."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection, Engine, select, text

from sqlmq import DatabaseBusyError
from sqlmq.dialects import Dialect, dialect_named
from sqlmq.operations.admin import parked as admin_parked
from sqlmq.operations.admin.parked import ParkedFilter
from sqlmq.store import groups, offsets, parked, topics
from sqlmq.store.offsets import Commit
from sqlmq.store.parked import ParkedRecord
from tests.support.failing import ONCE, GroupRunner, Handler, produce
from tests.support.waiting import PATIENCE_SECONDS, finish, until

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest


@pytest.fixture
def dialect(engine: Engine, database: DatabaseUnderTest) -> Dialect:
    return dialect_named(engine.dialect.name, database.schema)


def lock_claims(connection: Connection, dialect: Dialect) -> None:
    connection.execute(select(dialect.tables.claim).with_for_update(key_share=True)).all()


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_a_decision_waits_for_what_the_owner_is_writing(
    mq: MQ, runner: GroupRunner, connection: Connection, engine: Engine, dialect: Dialect, verb: str
) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    with ThreadPoolExecutor(1) as threads, engine.connect() as observer:
        lock_claims(connection, dialect)
        decision = threads.submit(getattr(mq.admin.parked("orders", "billing"), verb), 0, 0)
        until(lambda: observer.execute(waiting).scalar_one() > 0 or decision.done(), "it waits for the lock")
        wanted_partitions = not decision.done()
        connection.rollback()

        assert decision.result(PATIENCE_SECONDS) == 1
    assert wanted_partitions


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_decision_does_not_wait_for_ever(
    mq: MQ, runner: GroupRunner, connection: Connection, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)
    monkeypatch.setattr(admin_parked, "LOCK_SECONDS", 0.01)
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)
    lock_claims(connection, dialect)

    with pytest.raises(DatabaseBusyError):
        mq.admin.parked("orders", "billing").discard(0, 0)

    connection.rollback()
    assert len(mq.admin.parked("orders", "billing").list()) == 1


@pytest.mark.parametrize(("in_flight_to", "left"), [(None, None), (1, None), (2, None), (5, 5)])
def test_what_was_in_hand_behind_a_discarded_message_stays_suspect(
    mq: MQ, runner: GroupRunner, engine: Engine, dialect: Dialect, in_flight_to: int | None, left: int | None
) -> None:
    produce(mq, "a:stopped")
    runner.run(Handler())
    with engine.begin() as connection:
        topic = topics.find(connection, dialect, "orders")
        assert topic is not None
        (partition_id,) = topic.partition_ids
        group = groups.get(connection, dialect, topic, "billing")
        offsets.insert_all(connection, dialect, group, [Commit(partition_id, 7, in_flight_to and 7 + in_flight_to)])
        parked.put(connection, dialect, group, ParkedRecord(partition_id, 7, b"a", "stopped", 5))

    with engine.begin() as connection:
        count, _ = admin_parked.discard(connection, dialect, "orders", "billing", ParkedFilter(state="stopped"))

    with engine.connect() as connection:
        standing = offsets.positions_in_flight(connection, dialect, group, [partition_id])[partition_id]
    assert count == 1
    assert standing == Commit(partition_id, 8, left and 7 + left)


@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_a_message_that_stopped_a_partition_which_others_have_read_on_is_a_message_like_others(
    mq: MQ, runner: GroupRunner, verb: str
) -> None:
    produce(mq, "a:bad", "b:next")
    runner.run(Handler(b"bad"), retry=ONCE, on_failure="stop")
    with mq.consumer("orders", "billing") as consumer:
        finish(consumer, 2)
    handler = Handler()

    getattr(mq.admin.parked("orders", "billing"), verb)(0, 0)
    runner.run(handler)

    assert handler.given == ([b"bad"] if verb == "retry" else [])
    assert mq.admin.parked("orders", "billing").list() == []
    assert mq.admin.describe_group("orders", "billing").lag == 0
