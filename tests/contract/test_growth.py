"""Topics get more partitions while they are used: no key's messages change their order, and nobody has to be told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlmq import Message, ReceivedMessage, UnknownTopicError
from sqlmq.errors import InvalidPartitionError
from sqlmq.model.validation import MAX_PARTITIONS
from sqlmq.operations.admin import topics
from tests.support.delayed import LONG, Staged, look_now, without_polling
from tests.support.failing import MUCH_LATER, ONCE, GroupRunner, Handler, produce
from tests.support.queue_state import QueueState
from tests.support.waiting import PATIENCE_SECONDS, at_once, finish, receive, settle, until, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from sqlmq import MQ, Consumer, Producer
    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.application import Application

STAYS, LEAVES_TWICE, LEAVES_FIRST, LEAVES_SECOND = b"0", b"1", b"4", b"5"
"""With 1, 2 and 4 partitions these are in 0, 0, 0; 0, 1, 3; 0, 1, 1; 0, 0, 2."""
KEYS = [b"%d" % number for number in range(20)]

POSTGRES = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)


@pytest.fixture
def log(engine: Engine, database: DatabaseUnderTest) -> Callable[[], dict[int, list[str]]]:
    """What is in the log of `orders`, by partition."""
    return lambda: QueueState(engine, database.schema).texts("orders")


def send(producer: Producer, key: bytes | None, *texts: str) -> None:
    for one in texts:
        producer.produce(Message(one.encode(), key))


def partitions(mq: MQ, topic: str = "orders") -> int:
    return len(mq.admin.describe_topic(topic).partitions)


def has_nothing(consumer: Consumer) -> bool:
    """Whether nothing comes, although the consumer has looked at its group."""
    consumer._core.coordinator.recheck_group_soon()
    return not any(consumer.poll(timeout=0) for _ in range(3))


# --- What it does ---


@pytest.mark.pgbouncer
def test_a_topic_gets_more_partitions(mq: MQ) -> None:
    mq.create_topic("orders", 2)

    assert mq.admin.add_partitions("orders", 6)

    topic = mq.admin.describe_topic("orders")
    assert [partition.partition for partition in topic.partitions] == [0, 1, 2, 3, 4, 5]
    assert [partition.start_offset for partition in topic.partitions] == [0] * 6


def test_one_that_has_as_many_stays_as_it_is(mq: MQ) -> None:
    mq.create_topic("orders", 2)

    assert not mq.admin.add_partitions("orders", 2)
    assert mq.admin.add_partitions("orders", 4)
    assert not mq.admin.add_partitions("orders", 4)

    assert partitions(mq) == 4


def test_what_is_no_multiple_is_refused(mq: MQ) -> None:
    mq.create_topic("orders", 4)
    mq.create_topic("largest", MAX_PARTITIONS)

    for topic, wanted, said in (
        ("orders", 2, "It grows to a multiple, such as 8, 12, 16, so"),
        ("orders", 6, "Topic 'orders' has 4 partitions and can't have 6"),
        ("orders", MAX_PARTITIONS + 1, "A topic has 1 to"),
        ("orders", 0, "A topic has 1 to"),
        ("largest", MAX_PARTITIONS - 1, "is the maximum"),
    ):
        with pytest.raises(InvalidPartitionError, match=said) as caught:
            mq.admin.add_partitions(topic, wanted)
        assert caught.value.partition == wanted

    assert partitions(mq) == 4


def test_an_unknown_topic_can_not_grow(mq: MQ) -> None:
    with pytest.raises(UnknownTopicError):
        mq.admin.add_partitions("orders", 4)


def test_many_at_once_make_each_partition_once(make_mq: MakeMQ) -> None:
    queues = [make_mq() for _ in range(4)]
    queues[0].create_topic("orders", 1)

    added = at_once([partial(mq.admin.add_partitions, "orders", 8) for mq in queues])

    assert sorted(added) == [False, False, False, True]
    assert partitions(queues[0]) == 8


def test_a_topic_that_has_grown_leaves_no_row_when_it_is_deleted(mq: MQ, queue_state: QueueState) -> None:
    mq.create_topic("orders", 1)
    send(mq.producer("orders"), STAYS, "a")
    mq.admin.add_partitions("orders", 2)
    mq.admin.add_partitions("orders", 4)

    mq.delete_topics("orders")
    mq.create_topic("orders", 2)

    assert queue_state.count("SELECT count(*) FROM sqlmq_partition_parent") == 0
    assert queue_state.count("SELECT count(*) FROM sqlmq_partition") == 2


# --- Producers ---


@pytest.mark.pgbouncer
@pytest.mark.parametrize("many", [False, True])
def test_producers_that_know_nothing_of_it_go_to_the_new_partitions(
    make_mq: MakeMQ, log: Callable[[], dict[int, list[str]]], *, many: bool
) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    producer = other.producer("orders")
    send(producer, STAYS, "before")
    mq.admin.add_partitions("orders", 4)

    messages = [Message(b"key " + key, key) for key in (STAYS, LEAVES_TWICE, LEAVES_FIRST, LEAVES_SECOND)]
    results = producer.produce_many(messages) if many else [producer.produce(message) for message in messages]

    assert [result.partition for result in results] == [0, 3, 1, 2]
    assert log() == {0: ["before", "key 0"], 1: ["key 4"], 2: ["key 5"], 3: ["key 1"]}


def test_messages_without_a_key_go_to_the_new_partitions_too(make_mq: MakeMQ) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    producer = other.producer("orders")
    mq.admin.add_partitions("orders", 4)

    results = [producer.produce(Message(b"a")) for _ in range(4)]
    results += [one for _ in range(4) for one in producer.produce_many([Message(b"b"), Message(b"b")])]

    assert {result.partition for result in results} == {0, 1, 2, 3}


def test_a_partition_that_is_new_can_be_named(make_mq: MakeMQ) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    producer = other.producer("orders")
    mq.admin.add_partitions("orders", 4)

    assert producer.produce_with_partition(Message(b"a", STAYS), 3).partition == 3
    with pytest.raises(InvalidPartitionError):
        producer.produce_with_partition(Message(b"a"), 4)


def test_more_than_one_statement_takes_goes_to_the_new_partitions_as_a_whole(make_mq: MakeMQ) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    producer = other.producer("orders")
    mq.admin.add_partitions("orders", 4)

    results = producer.produce_many([Message(b"", KEYS[number % 20]) for number in range(6_000)])

    assert len({(result.partition, result.offset) for result in results}) == 6_000
    assert sum(partition.messages for partition in mq.admin.describe_topic("orders").partitions) == 6_000


@pytest.mark.parametrize(
    ("level", "count"),
    [
        (None, 1),
        (None, 40),
        (None, 6_000),
        ("REPEATABLE READ", 1),
        ("REPEATABLE READ", 6_000),
        ("SERIALIZABLE", 40),
    ],
)
def test_a_transaction_of_the_applications_goes_to_the_new_partitions(
    make_mq: MakeMQ, engine: Engine, app: Application, database: DatabaseUnderTest, level: str | None, count: int
) -> None:
    if level == "REPEATABLE READ" and not database.is_postgres:
        level = "SERIALIZABLE"
    mq, other = without_polling(make_mq()), make_mq()
    mq.create_topic("orders", 1)
    mq.create_topic("bills", 1)
    producer, bills = other.producer("orders"), other.producer("bills")
    with (app if level is None else app.at(level)).session() as session:
        mq.admin.add_partitions("bills", 4)
        published = producer.produce_many([Message(b"a", LEAVES_TWICE)] * count, session=session)
        published += bills.produce_many([Message(b"b", LEAVES_TWICE)] * count, session=session)
        published.append(bills.produce_with_partition(Message(b"pinned", LEAVES_TWICE), 0, session=session))
        session.commit()

    look_now(mq)
    assert [len(QueueState(engine, database.schema).texts("orders")[0])] == [count]
    found = QueueState(engine, database.schema).texts("bills")
    assert {number: len(bodies) for number, bodies in found.items()} == {0: 1, 3: count}
    assert {one.partition for one in published} == {0, 3}
    assert bills.produce(Message(b"c", LEAVES_TWICE)).partition == 3


@POSTGRES
def test_a_transaction_that_began_before_is_moved_to_the_new_partitions(
    make_mq: MakeMQ, engine: Engine, app: Application, database: DatabaseUnderTest
) -> None:
    mq = without_polling(make_mq())
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    with app.at("REPEATABLE READ").session() as session:
        session.execute(text("SELECT 1"))
        mq.admin.add_partitions("orders", 4)
        producer.produce_with_partition(Message(b"knows"), 3)
        producer.produce(Message(b"0", STAYS), session=session)
        producer.produce(Message(b"1", LEAVES_TWICE), session=session)
        session.commit()

    look_now(mq)
    assert QueueState(engine, database.schema).texts("orders") == {0: ["0"], 3: ["knows", "1"]}


@POSTGRES
def test_sql_goes_to_the_new_partitions(mq: MQ, engine: Engine, database: DatabaseUnderTest) -> None:
    mq.create_topic("orders", 1)
    mq.admin.add_partitions("orders", 4)
    prefix = f"{database.schema}." if database.schema else ""

    with engine.begin() as connection:
        row = connection.execute(text(f"SELECT * FROM {prefix}sqlmq_produce('orders', '1', 'a')")).one()

    assert tuple(row) == (3, 0)


def test_a_delayed_message_goes_where_its_key_has_gone(
    make_mq: MakeMQ, engine: Engine, database: DatabaseUnderTest, log: Callable[[], dict[int, list[str]]]
) -> None:
    mq, other = without_polling(make_mq()), without_polling(make_mq())
    staged = Staged(engine, database)
    mq.create_topic("orders", 1)
    producer = other.producer("orders")
    for key in (STAYS, LEAVES_TWICE, LEAVES_FIRST, None):
        producer.schedule(Message(b"%r" % key, key), delay_seconds=LONG)
    mq.admin.add_partitions("orders", 2)
    mq.admin.add_partitions("orders", 4)
    later = producer.schedule(Message(b"later", LEAVES_SECOND), delay_seconds=LONG)

    staged.make_due()
    look_now(mq)

    assert later.partition == 2
    assert log() == {0: ["b'0'", "None"], 1: ["b'4'"], 2: ["later"], 3: ["b'1'"]}


def test_copies_of_dead_letters_go_to_the_new_partitions(make_mq: MakeMQ, database: DatabaseUnderTest) -> None:
    mq = make_mq()
    mq.create_topic("orders", 1)
    mq.create_topic("again", 1)
    produce(mq, "1:bad")
    runner = GroupRunner(database)
    runner.run(Handler(b"bad"), retry=ONCE)
    runner.mq.close()
    mq.admin.add_partitions("again", 4)

    (copy,) = mq.admin.parked("orders", "billing").copy_to("again", everything=True)

    assert copy.partition == 3


# --- Consumers ---


@pytest.mark.pgbouncer
def test_a_group_reads_the_new_partitions_when_it_is_done_with_the_old_one(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    send(producer, LEAVES_TWICE, "old")
    mq.admin.add_partitions("orders", 4)
    send(producer, LEAVES_TWICE, "new")

    assert values(receive(consumer, 1)) == [b"old"]
    assert consumer.partitions == (0,)
    (finding,) = [one for one in mq.admin.diagnose_group("orders", "billing") if one.partition == 3]
    assert finding.code == "partition-barrier"
    assert "partition 0" in finding.summary
    assert "offset 1" in finding.summary

    assert values(receive(consumer, 1)) == [b"new"]
    consumer.commit()
    assert mq.admin.describe_group("orders", "billing").lag == 0
    until(lambda: has_nothing(consumer) and consumer.partitions == (0, 1, 2, 3), "all partitions")


def test_a_partition_does_not_wait_for_others_than_its_own_origin(mq: MQ) -> None:
    mq.create_topic("orders", 2)
    producer, consumer, other = (
        mq.producer("orders"),
        mq.consumer("orders", "billing"),
        mq.consumer("orders", "billing"),
    )
    producer.produce_with_partition(Message(b"slow"), 0)
    producer.produce_with_partition(Message(b"fast"), 1)
    settled = {message.value: one for one in (consumer, other) for message in _first(one)}
    mq.admin.add_partitions("orders", 4)
    send(producer, LEAVES_TWICE, "new of 1")
    send(producer, LEAVES_SECOND, "new of 0")

    settled[b"fast"].commit()

    assert values(receive(settled[b"fast"], 1)) == [b"new of 1"]
    settled[b"fast"].commit()
    assert has_nothing(settled[b"fast"])
    settled[b"slow"].commit()
    until(lambda: b"new of 0" in values(_any(consumer, other)), "what waited")


def _first(consumer: Consumer) -> list[ReceivedMessage]:
    return receive(consumer, 1)


def _any(*consumers: Consumer) -> list[ReceivedMessage]:
    return [message for one in consumers for message in one.poll(timeout=0)]


def test_the_new_partitions_of_each_group_wait_for_that_group_alone(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer, fast, slow = mq.producer("orders"), mq.consumer("orders", "fast"), mq.consumer("orders", "slow")
    send(producer, LEAVES_TWICE, "old")
    receive(slow, 1)
    finish(fast, 1)
    mq.admin.add_partitions("orders", 2)
    send(producer, LEAVES_TWICE, "new")

    assert values(finish(fast, 1)) == [b"new"]
    assert slow.partitions == (0,)
    assert values(receive(slow, 1)) == [b"new"]


def test_a_partition_that_nothing_went_to_keeps_the_order_all_the_same(mq: MQ) -> None:
    """The key goes from 0 to 1 to 3, and has no message while it is in 1."""
    mq.create_topic("orders", 1)
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    send(producer, LEAVES_TWICE, "old")
    mq.admin.add_partitions("orders", 2)
    mq.admin.add_partitions("orders", 4)
    send(producer, LEAVES_TWICE, "new")

    assert values(receive(consumer, 1)) == [b"old"]
    assert consumer.partitions == (0,)
    assert values(receive(consumer, 1)) == [b"new"]


def test_what_waits_to_be_tried_again_holds_the_new_partitions_up(mq: MQ, database: DatabaseUnderTest) -> None:
    mq.create_topic("orders", 1)
    produce(mq, "1:bad", "0:good")
    runner = GroupRunner(database)
    handler = Handler(b"bad")
    with runner.running(handler, retry=MUCH_LATER):
        handler.has_begun(b"good")
        mq.admin.add_partitions("orders", 2)
        produce(mq, "1:new", "0:old partition")
        handler.has_begun(b"old partition")
        (finding,) = [one for one in mq.admin.diagnose_group("orders", "billing") if one.partition == 1]
        assert finding.code == "partition-barrier"

        handler.failing.clear()
        mq.admin.parked("orders", "billing").retry(0, 0)
        handler.has_begun(b"new")

    runner.mq.close()
    assert handler.given == [b"bad", b"good", b"old partition", b"bad", b"new"]


def test_dead_letters_hold_nothing_up(mq: MQ, database: DatabaseUnderTest) -> None:
    mq.create_topic("orders", 1)
    produce(mq, "1:bad")
    runner = GroupRunner(database)
    handler = Handler(b"bad")
    runner.run(handler, retry=ONCE)
    mq.admin.add_partitions("orders", 2)
    produce(mq, "1:new")

    runner.run(handler, retry=ONCE)
    runner.mq.close()

    assert handler.given == [b"bad", b"new"]


def test_a_group_that_begins_later_reads_in_the_same_order(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    send(producer, LEAVES_TWICE, "0", "1")
    mq.admin.add_partitions("orders", 2)
    send(producer, LEAVES_TWICE, "2", "3")
    mq.admin.add_partitions("orders", 4)
    send(producer, LEAVES_TWICE, "4", "5")

    assert values(receive(mq.consumer("orders", "late"), 6)) == [b"%d" % number for number in range(6)]


def test_a_group_that_begins_at_the_latest_reads_all_partitions_at_once(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    send(producer, LEAVES_TWICE, "old")
    mq.admin.add_partitions("orders", 4)
    consumer = mq.consumer("orders", "late", start="latest")
    settle(consumer)
    send(producer, LEAVES_TWICE, "new")

    assert consumer.partitions == (0, 1, 2, 3)
    assert values(receive(consumer, 1)) == [b"new"]


def test_a_group_that_is_moved_back_reads_in_the_same_order_again(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    send(producer, LEAVES_TWICE, "0", "1")
    mq.admin.add_partitions("orders", 4)
    send(producer, LEAVES_TWICE, "2", "3")
    with mq.consumer("orders", "billing") as consumer:
        finish(consumer, 4)

    mq.admin.reset_group("orders", "billing", "earliest")

    with mq.consumer("orders", "billing") as consumer:
        assert values(receive(consumer, 4)) == [b"0", b"1", b"2", b"3"]


def test_what_retention_has_deleted_holds_nothing_up(mq: MQ) -> None:
    from sqlmq import Retention

    mq.create_topic("orders", 1, retention=Retention(max_messages=1, protect_groups=False))
    producer = mq.producer("orders")
    consumer = mq.consumer("orders", "billing", on_evicted="earliest")
    send(producer, STAYS, "0", "1", "2")
    mq.admin.add_partitions("orders", 2)
    send(producer, LEAVES_TWICE, "new")
    send(producer, STAYS, "3", "4")
    mq.admin.apply_retention("orders")

    assert sorted(values(finish(consumer, 2))) == [b"4", b"new"]


def test_a_consumer_can_seek_in_a_new_partition(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    consumer = mq.consumer("orders", "billing")
    settle(consumer)
    mq.admin.add_partitions("orders", 2)
    send(mq.producer("orders"), LEAVES_TWICE, "0", "1")
    finish(consumer, 2)

    consumer.seek(1, 1)

    assert values(receive(consumer, 1)) == [b"1"]


@pytest.mark.pgbouncer
def test_transactions_read_the_new_partitions_in_order(make_mq: MakeMQ) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    producer, consumer, second = mq.producer("orders"), mq.consumer("orders", "g"), other.consumer("orders", "g")
    send(producer, LEAVES_TWICE, "0", "1")
    mq.admin.add_partitions("orders", 4)
    send(producer, LEAVES_TWICE, "2", "3")
    seen = []

    with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS) as block:
        seen += values(block.messages)
    if mq.engine.dialect.name != "sqlite":
        with consumer.transaction(max_messages=1, timeout=PATIENCE_SECONDS) as block:
            with second.transaction(timeout=0) as nothing:
                assert nothing.messages == []
            seen += values(block.messages)
    while len(seen) < 4:
        with second.transaction(max_messages=1, timeout=PATIENCE_SECONDS) as block:
            seen += values(block.messages)

    assert seen == [b"0", b"1", b"2", b"3"]


def test_doctor_takes_no_offence_at_a_partition_that_is_not_read_yet(mq: MQ) -> None:
    from sqlmq import DoctorLimits

    mq.create_topic("orders", 1)
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    send(producer, LEAVES_TWICE, "old")
    receive(consumer, 1)
    mq.admin.add_partitions("orders", 2)
    send(producer, LEAVES_TWICE, "new")

    problems = mq.admin.diagnose(DoctorLimits(stuck_seconds=0.0))

    assert "no-owner" not in {problem.code for problem in problems}


# --- Together ---


@pytest.mark.slow
@pytest.mark.sync_only("it takes seconds, and is about the log")
def test_keys_keep_their_order_while_a_topic_grows_under_load(make_mq: MakeMQ) -> None:
    rounds, grown = 60, [2, 4, 8]
    queues = [make_mq() for _ in range(5)]
    queues[0].create_topic("orders", 1)
    seen: dict[tuple[bytes | None, int], None] = {}

    def produce_keys(mq: MQ, keys: list[bytes]) -> None:
        producer = mq.producer("orders")
        for number in range(rounds):
            messages = [Message(b"%d" % number, key) for key in keys]
            if number % 2:
                producer.produce_many(messages)
            else:
                for message in messages:
                    producer.produce(message)

    def grow(mq: MQ) -> None:
        for step, wanted in enumerate(grown, 1):
            until(lambda: _total(mq) >= step * rounds * len(KEYS) // 4, "some messages")  # noqa: B023 - used at once
            mq.admin.add_partitions("orders", wanted)

    def consume(mq: MQ) -> None:
        with mq.consumer("orders", "billing") as consumer:
            while len(seen) < rounds * len(KEYS):
                # What changes hands may come twice: the first time counts.
                for message in consumer.poll(10, timeout=0.2):
                    seen.setdefault((message.key, int(message.value)))

    at_once(
        [
            lambda: produce_keys(queues[0], KEYS[:10]),
            lambda: produce_keys(queues[1], KEYS[10:]),
            lambda: grow(queues[2]),
            lambda: consume(queues[3]),
            lambda: consume(queues[4]),
        ]
    )

    for key in KEYS:
        assert [number for one, number in seen if one == key] == list(range(rounds))
    assert partitions(queues[0]) == 8


def _total(mq: MQ) -> int:
    return sum(partition.messages for partition in mq.admin.describe_topic("orders").partitions)


@POSTGRES
def test_a_transaction_that_does_not_end_keeps_a_topic_from_growing_and_nobody_from_producing(
    mq: MQ, engine: Engine, database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "LOCK_SECONDS", 0.05)
    mq.create_topic("orders", 2)
    producer = mq.producer("orders")
    prefix = f"{database.schema}." if database.schema else ""

    with engine.begin() as connection:
        connection.execute(text(f"SELECT FROM {prefix}sqlmq_partition WHERE number = 1 FOR NO KEY UPDATE"))
        with ThreadPoolExecutor(1) as threads:
            growing = threads.submit(lambda: mq.admin.add_partitions("orders", 4))
            for _ in range(10):
                producer.produce_with_partition(Message(b"a"), 0)
            connection.rollback()
            assert growing.result(PATIENCE_SECONDS)
