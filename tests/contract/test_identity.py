"""Ids that come to mean something else: what is sent, read or committed for one topic never reaches another."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, create_engine, delete, event, insert, select, text

from sqlmq import MQ, FencedError, Message, UnknownTopicError
from sqlmq.errors import SqlmqError
from sqlmq.operations import membership
from sqlmq.schema import tables
from tests.support.waiting import receive, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, Table

    from sqlmq import Consumer, Producer
    from tests.conftest import DatabaseUnderTest, MakeMQ

LONG = 3_600.0


class Rows:
    """The rows of all our tables, which are emptied and restored as test suites and backups do it."""

    def __init__(self, engine: Engine, schema: str | None) -> None:
        self._engine = engine
        self._schema = schema
        self._tables: list[Table] = list(tables(schema).metadata.tables.values())
        self._saved: dict[str, list[dict[str, Any]]] = {}

    def empty(self) -> None:
        """Delete all rows, and let all ids that come from sequences begin at 1 again."""
        with self._engine.begin() as connection:
            self._empty(connection)

    def save(self) -> None:
        """Dump all rows."""
        with self._engine.connect() as connection:
            for table in self._tables:
                self._saved[table.name] = [dict(row) for row in connection.execute(select(table)).mappings()]

    def restore(self) -> None:
        """Restore what was saved, in the place of all rows."""
        with self._engine.begin() as connection:
            self._empty(connection)
            for table in self._tables:
                if self._saved[table.name]:
                    connection.execute(insert(table), self._saved[table.name])

    def _empty(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            prefix = f"{self._schema}." if self._schema else ""
            names = ", ".join(prefix + table.name for table in self._tables)
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
            return
        for table in self._tables:
            connection.execute(delete(table))
        connection.execute(text("DELETE FROM sqlite_sequence"))


@pytest.fixture
def rows(engine: Engine, database: DatabaseUnderTest) -> Rows:
    return Rows(engine, database.schema)


def send_later(producer: Producer) -> object:
    return producer.schedule(Message(b"an order", key=b"k"), delay_seconds=0.0)


WAYS: dict[str, Callable[[Producer], object]] = {
    "produce": lambda producer: producer.produce(Message(b"an order", key=b"k")),
    "produce_with_partition": lambda producer: producer.produce_with_partition(Message(b"an order"), 1),
    "submit": lambda producer: producer.submit(Message(b"an order")).result(30),
    "produce_many with keys": lambda producer: producer.produce_many([Message(b"an order", key=b"k")] * 2),
    "produce_many without keys": lambda producer: producer.produce_many([Message(b"an order")] * 2),
    "more than a statement takes": lambda producer: producer.produce_many([Message(b"an order")] * 5_001),
    "schedule": send_later,
}


@pytest.mark.parametrize("send", [pytest.param(send, id=name.replace(" ", "-")) for name, send in WAYS.items()])
def test_a_producer_of_a_topic_that_was_emptied_away_sends_nothing_to_another(
    make_mq: MakeMQ, rows: Rows, send: Callable[[Producer], object]
) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")
    rows.empty()
    other.create_topic("payments", 3)

    with pytest.raises(UnknownTopicError):
        send(producer)

    assert other.admin.describe_topic("payments").messages == 0
    assert other.admin.delayed("payments") == []


def test_a_producer_looks_a_topic_that_was_made_anew_up_by_its_name_again(make_mq: MakeMQ, rows: Rows) -> None:
    mq = make_mq()
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")
    producer.produce(Message(b"gone"))
    rows.empty()
    mq.create_topic("payments", 3)
    mq.create_topic("orders", 3)

    with pytest.raises(UnknownTopicError):
        producer.produce(Message(b"refused"))
    producer.produce(Message(b"new"))

    assert mq.admin.describe_topic("payments").messages == 0
    assert values(receive(mq.consumer("orders", "billing"), 1)) == [b"new"]


def test_a_producer_of_a_topic_that_a_restored_dump_does_not_have_sends_nothing_to_another(
    make_mq: MakeMQ, rows: Rows
) -> None:
    mq = make_mq()
    mq.create_topic("orders", 3)
    rows.save()
    mq.create_topic("invoices", 3)
    orders, invoices = mq.producer("orders"), mq.producer("invoices")
    rows.restore()
    mq.create_topic("payments", 3)

    orders.produce(Message(b"an order"))
    with pytest.raises(UnknownTopicError):
        invoices.produce(Message(b"an invoice"))

    assert mq.admin.describe_topic("payments").messages == 0
    assert mq.admin.describe_topic("orders").messages == 1


def test_a_partition_that_a_restored_dump_does_not_have_is_not_one_of_another_topic(
    make_mq: MakeMQ, rows: Rows
) -> None:
    mq = make_mq()
    mq.create_topic("orders", 1)
    rows.save()
    mq.admin.add_partitions("orders", 4)
    producer = mq.producer("orders")
    rows.restore()
    mq.create_topic("payments", 3)
    mq.admin.add_partitions("orders", 4)

    with pytest.raises(UnknownTopicError):
        producer.produce(Message(b"an order"), partition=2)

    assert mq.admin.describe_topic("payments").messages == 0


def beside_another(make_mq: MakeMQ, rows: Rows) -> tuple[Consumer, MQ, Consumer]:
    """A consumer with messages whose topic was emptied away; another MQ; and a consumer of another topic there."""
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"order %d" % number) for number in range(5)])
    old = mq.consumer("orders", "billing")
    assert len(receive(old, 5)) == 5
    rows.empty()
    other.create_topic("payments", 1)
    other.producer("payments").produce_many([Message(b"payment %d" % number) for number in range(8)])
    new = other.consumer("payments", "audit")
    assert receive(new, 1)
    return old, other, new


def test_a_consumer_commits_nothing_for_the_group_of_another_topic(make_mq: MakeMQ, rows: Rows) -> None:
    old, other, new = beside_another(make_mq, rows)

    with pytest.raises((UnknownTopicError, FencedError)):
        old.commit()
    with suppress(SqlmqError):
        old.close()

    new.close()
    (partition,) = other.admin.describe_group("payments", "audit").partitions
    assert partition.position == 0
    assert values(receive(other.consumer("payments", "audit"), 8)) == [b"payment %d" % number for number in range(8)]


def test_a_consumer_reads_nothing_of_another_topic(make_mq: MakeMQ, rows: Rows) -> None:
    old, _, _ = beside_another(make_mq, rows)

    with pytest.raises(UnknownTopicError):
        receive(old, 1)


@pytest.mark.sync_only("the block has a form of its own there, of the same steps")
def test_a_transaction_takes_nothing_of_another_topic(make_mq: MakeMQ, rows: Rows) -> None:
    old, _, new = beside_another(make_mq, rows)
    new.close()

    with pytest.raises(UnknownTopicError), old.transaction(timeout=0) as tx:
        assert tx.messages == []


@pytest.mark.sync_only("heartbeats are sent by threads in both worlds")
def test_a_heartbeat_keeps_no_member_of_another_group_alive(make_mq: MakeMQ, rows: Rows) -> None:
    old, other, new = beside_another(make_mq, rows)
    database = other._database

    alive = database.write(membership.heartbeat, [old._core.member_id, new._core.member_id])

    assert alive == {new._core.member_id}


@pytest.mark.sync_only("members are the same in both worlds")
def test_a_member_that_a_restored_dump_does_not_have_commits_nothing_for_its_successor(
    make_mq: MakeMQ, rows: Rows
) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"%d" % number) for number in range(8)])
    rows.save()
    old = mq.consumer("orders", "billing")
    assert len(receive(old, 8)) == 8
    rows.restore()
    new = other.consumer("orders", "billing")
    assert receive(new, 1)

    with pytest.raises(FencedError):
        old.commit()

    (partition,) = other.admin.describe_group("orders", "billing").partitions
    assert partition.position == 0


def test_an_id_of_a_delayed_message_from_before_cancels_no_other(make_mq: MakeMQ, rows: Rows) -> None:
    mq = make_mq()
    mq.create_topic("orders", 1)
    old = mq.producer("orders").schedule(Message(b"an order"), delay_seconds=LONG)
    rows.empty()
    mq.create_topic("payments", 1)
    new = mq.producer("payments").schedule(Message(b"a payment"), delay_seconds=LONG)

    assert mq.admin.cancel_delayed(old.id) == []

    assert mq.admin.delayed("payments") == [new]
    assert mq.admin.cancel_delayed(new.id) == [new.id]


@pytest.mark.sync_only("about rows alone")
def test_ids_ascend_and_none_is_given_out_again(make_mq: MakeMQ, rows: Rows, engine: Engine) -> None:
    mq = make_mq()
    names = [f"topic{number}" for number in range(8)]
    schema = tables(mq.schema)
    seen: list[set[int]] = []
    for _ in range(3):
        for name in names:
            mq.create_topic(name, 2)
            mq.consumer(name, "billing").close()
        mq.admin.add_partitions(names[0], 4)
        with engine.connect() as connection:
            topics = connection.execute(select(schema.topic.c.id, schema.topic.c.name)).all()
            of_topic = select(schema.partition.c.topic_id, schema.partition.c.number, schema.partition.c.id)
            partitions = connection.execute(
                of_topic.order_by(schema.partition.c.topic_id, schema.partition.c.number)
            ).all()
            groups = connection.execute(select(schema.group.c.id)).scalars().all()
        rows.empty()
        seen.append({*(row.id for row in topics), *(row.id for row in partitions), *groups})

        assert [name for _, name in sorted(topics)] == names
        for topic_id, _ in topics:
            ids = [row.id for row in partitions if row.topic_id == topic_id]
            assert ids == sorted(ids)
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]


@pytest.mark.sync_only("about rows alone")
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_ids_do_not_repeat_where_the_application_seeds_the_random_numbers(
    database: DatabaseUnderTest, rows: Rows, engine: Engine
) -> None:
    seeded = create_engine(database.url)

    @event.listens_for(seeded, "connect")
    def seed(connection: Any, _: object) -> None:
        connection.execute("SELECT setseed(0.5)")
        connection.commit()

    schema = tables(database.schema)
    seen = []
    for _ in range(2):
        with MQ(seeded, schema=database.schema) as mq:
            mq.create_topic("orders", 1)
        with engine.connect() as connection:
            seen.append(connection.execute(select(schema.topic.c.id)).scalar_one())
        rows.empty()
        seeded.dispose()
    seeded.dispose()

    assert seen[0] != seen[1]
