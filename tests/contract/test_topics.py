"""Topics: made once, found again, deleted with everything in them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from sqlmq import Message, UnknownTopicError
from sqlmq.errors import TopicConflictError, UnknownGroupError
from sqlmq.model.partitioner import partition_for_key
from tests.support.waiting import at_once, finish, receive, values

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import MakeMQ
    from tests.support.queue_state import QueueState


def numbers(mq: MQ, topic: str) -> list[int]:
    return [partition.partition for partition in mq.admin.describe_topic(topic).partitions]


# --- Made ---


def test_a_topic_has_the_partitions_asked_for_numbered_from_0(mq: MQ) -> None:
    mq.create_topic("orders", 5)

    assert numbers(mq, "orders") == [0, 1, 2, 3, 4]


def test_a_topic_has_three_partitions_unless_told_otherwise(mq: MQ) -> None:
    mq.create_topic("orders")

    assert numbers(mq, "orders") == [0, 1, 2]


def test_a_topic_has_the_default_partitions_of_the_mq_unless_told_otherwise(make_mq: MakeMQ) -> None:
    mq = make_mq(default_partitions=5)

    mq.create_topic("orders")
    mq.create_topic("invoices", 2)

    assert [len(numbers(mq, name)) for name in ("orders", "invoices")] == [5, 2]


def test_creating_a_topic_again_is_no_error_and_changes_nothing(mq: MQ) -> None:
    mq.create_topic("orders", 5)
    mq.producer("orders").produce(Message(b"kept"))

    mq.create_topic("orders", 7)

    assert numbers(mq, "orders") == [0, 1, 2, 3, 4]
    assert mq.admin.describe_topic("orders").messages == 1


@pytest.mark.parametrize(("wanted", "warned"), [(7, True), (5, False), (3, False), (None, False)])
def test_a_topic_that_exists_with_fewer_partitions_than_asked_for_is_told(
    mq: MQ, caplog: pytest.LogCaptureFixture, wanted: int | None, *, warned: bool
) -> None:
    mq.create_topic("orders", 5)

    with caplog.at_level(logging.WARNING, "sqlmq"):
        mq.create_topic("orders", wanted)

    told = [record.getMessage() for record in caplog.records if getattr(record, "sqlmq_event", "") == "topic smaller"]
    assert len(told) == warned
    assert all("with 5 partition(s), not 7" in text for text in told)


def test_creating_tells_whether_the_topic_was_made(mq: MQ) -> None:
    made = [mq.create_topic("orders") for _ in range(2)]

    assert made == [True, False]


@pytest.mark.pgbouncer
def test_a_topic_created_by_many_at_once_is_made_once(make_mq: MakeMQ) -> None:
    queues = [make_mq(), make_mq()]

    made = at_once(lambda mq=queues[i % 2]: mq.create_topic("orders", 4) for i in range(8))  # type: ignore[misc]

    assert sorted(made) == [False] * 7 + [True]
    assert numbers(queues[0], "orders") == [0, 1, 2, 3]


def test_different_topics_can_be_created_at_once(make_mq: MakeMQ) -> None:
    queues = [make_mq(), make_mq()]

    at_once(lambda i=i: queues[i % 2].create_topic(f"topic-{i}", 2) for i in range(8))  # type: ignore[misc]

    assert queues[0].admin.topics() == [f"topic-{i}" for i in range(8)]


def test_names_are_told_apart_by_case(mq: MQ) -> None:
    mq.create_topic("Orders", 1)
    mq.create_topic("orders", 2)

    assert numbers(mq, "Orders") == [0]
    assert numbers(mq, "orders") == [0, 1]


def test_topics_are_listed_in_order(mq: MQ) -> None:
    for name in ("cc", "aa", "bb"):
        mq.create_topic(name)

    assert mq.admin.topics() == ["aa", "bb", "cc"]


def test_a_topic_made_by_one_mq_is_seen_by_another(make_mq: MakeMQ) -> None:
    here, there = make_mq(), make_mq()
    there.admin.topics()

    here.create_topic("orders")

    assert there.admin.topics() == ["orders"]


# --- Made on the way ---


def test_a_producer_creates_a_missing_topic_with_three_partitions(mq: MQ) -> None:
    mq.producer("orders")

    assert numbers(mq, "orders") == [0, 1, 2]


def test_a_consumer_creates_a_missing_topic_with_three_partitions(mq: MQ) -> None:
    mq.consumer("orders", "billing")

    assert numbers(mq, "orders") == [0, 1, 2]


def test_how_many_partitions_a_missing_topic_gets_can_be_chosen(make_mq: MakeMQ) -> None:
    mq = make_mq(default_partitions=8)

    mq.producer("orders")

    assert numbers(mq, "orders") == list(range(8))


def test_a_producer_of_a_missing_topic_is_refused_when_topics_are_not_created(make_mq: MakeMQ) -> None:
    mq = make_mq(create_topics=False)

    with pytest.raises(UnknownTopicError, match="sqlmq topics create orders"):
        mq.producer("orders")

    assert mq.admin.topics() == []


def test_a_consumer_of_a_missing_topic_is_refused_when_topics_are_not_created(make_mq: MakeMQ) -> None:
    mq = make_mq(create_topics=False)

    with pytest.raises(UnknownTopicError):
        mq.consumer("orders", "billing")

    assert mq.admin.topics() == []


def test_producers_made_by_many_at_once_share_one_topic(make_mq: MakeMQ) -> None:
    queues = [make_mq(), make_mq()]

    producers = at_once(lambda mq=queues[i % 2]: mq.producer("orders") for i in range(8))  # type: ignore[misc]
    for producer in producers:
        producer.produce_with_partition(Message(b""), 0)

    assert [partition.end_offset for partition in queues[0].admin.describe_topic("orders").partitions] == [8, 0, 0]


# --- The partitioner ---


@pytest.mark.parametrize("partitioner", ["murmur2", "fnv1a", "crc32"])
def test_keys_go_where_the_topics_partitioner_says(mq: MQ, partitioner: str) -> None:
    mq.create_topic("orders", 16, partitioner=partitioner)
    keys = [f"customer {i}".encode() for i in range(30)]

    results = mq.producer("orders").produce_many(Message(b"", key) for key in keys)

    assert [result.partition for result in results] == [partition_for_key(partitioner, key, 16) for key in keys]


def test_the_partitioner_is_kept_with_the_topic(make_mq: MakeMQ) -> None:
    make_mq().create_topic("orders", partitioner="crc32")

    assert make_mq().admin.describe_topic("orders").partitioner == "crc32"


def test_a_topic_is_partitioned_as_kafka_does_unless_told_otherwise(mq: MQ) -> None:
    mq.create_topic("orders")

    assert mq.admin.describe_topic("orders").partitioner == "murmur2"


def test_creating_a_topic_again_with_another_partitioner_is_refused(mq: MQ) -> None:
    mq.create_topic("orders", partitioner="crc32")

    with pytest.raises(TopicConflictError, match="'crc32', not 'fnv1a'"):
        mq.create_topic("orders", partitioner="fnv1a")

    assert mq.admin.describe_topic("orders").partitioner == "crc32"


def test_creating_a_topic_again_without_naming_a_partitioner_is_no_conflict(mq: MQ) -> None:
    mq.create_topic("orders", partitioner="crc32")

    assert mq.create_topic("orders") is False


# --- Deleted ---


def test_deleting_a_topic_removes_it(mq: MQ) -> None:
    mq.create_topic("orders")
    mq.create_topic("kept")

    assert mq.delete_topics("orders") == ["orders"]
    assert mq.admin.topics() == ["kept"]


def test_deleting_an_unknown_topic_is_no_error(mq: MQ) -> None:
    mq.create_topic("orders")

    assert mq.delete_topics("unknown", "orders", "unknown") == ["orders"]


def test_deleting_no_topic_deletes_none(mq: MQ) -> None:
    mq.create_topic("orders")

    assert mq.delete_topics() == []
    assert mq.admin.topics() == ["orders"]


def test_several_topics_are_deleted_together(mq: MQ) -> None:
    for name in ("aa", "bb", "cc"):
        mq.create_topic(name)

    assert sorted(mq.delete_topics("cc", "aa")) == ["aa", "cc"]
    assert mq.admin.topics() == ["bb"]


def test_deleting_a_topic_leaves_no_row_of_it(mq: MQ, queue_state: QueueState) -> None:
    producer = mq.producer("orders")
    producer.produce_many(Message(bytes(10), b"%d" % i) for i in range(100))
    with mq.consumer("orders", "billing") as consumer:
        finish(consumer, 100)

    mq.delete_topics("orders")

    for table in ("topic", "partition", "message", "group", "member", "claim", "group_offset"):
        assert queue_state.count(f"SELECT count(*) FROM sqlmq_{table}") == 0, table


def test_deleting_a_topic_leaves_others_alone(mq: MQ) -> None:
    mq.producer("orders").produce_many([Message(b"gone", b"k")] * 3)
    mq.producer("kept").produce_many([Message(b"kept", b"k")] * 3)

    mq.delete_topics("orders")

    assert values(receive(mq.consumer("kept", "billing"), 3)) == [b"kept"] * 3


def test_a_topic_with_more_messages_than_one_transaction_deletes_is_deleted_whole(
    mq: MQ, queue_state: QueueState
) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many(Message(b"") for _ in range(10_001))

    mq.delete_topics("orders")

    assert queue_state.count("SELECT count(*) FROM sqlmq_message") == 0


def test_a_recreated_topic_starts_at_offset_0_without_messages(mq: MQ) -> None:
    mq.create_topic("orders", 2)
    mq.producer("orders").produce_many([Message(b"old", b"k")] * 5)

    mq.delete_topics("orders")
    mq.create_topic("orders", 1)
    result = mq.producer("orders").produce(Message(b"new"))

    assert result == ("orders", 0, 0)
    assert mq.admin.describe_topic("orders").messages == 1


def test_a_recreated_topic_has_no_groups(mq: MQ) -> None:
    mq.producer("orders").produce(Message(b"old"))
    with mq.consumer("orders", "billing") as consumer:
        finish(consumer, 1)

    mq.delete_topics("orders")
    mq.create_topic("orders")

    assert mq.admin.groups("orders") == []
    with pytest.raises(UnknownGroupError):
        mq.admin.describe_group("orders", "billing")


def test_a_group_of_a_recreated_topic_reads_from_its_beginning(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"old")] * 5)
    with mq.consumer("orders", "billing") as consumer:
        finish(consumer, 5)

    mq.delete_topics("orders")
    mq.create_topic("orders", 1)
    mq.producer("orders").produce(Message(b"new"))

    assert values(receive(mq.consumer("orders", "billing"), 1)) == [b"new"]


def test_describing_a_deleted_topic_is_refused(mq: MQ) -> None:
    mq.create_topic("orders")
    mq.delete_topics("orders")

    with pytest.raises(UnknownTopicError):
        mq.admin.describe_topic("orders")


def test_a_producer_of_a_deleted_topic_is_refused(mq: MQ) -> None:
    producer = mq.producer("orders")
    producer.produce(Message(b""))

    mq.delete_topics("orders")

    for _ in range(2):
        with pytest.raises(UnknownTopicError):
            producer.produce(Message(b""))


def test_a_producer_is_refused_when_another_mq_deleted_its_topic(make_mq: MakeMQ) -> None:
    here, there = make_mq(), make_mq()
    producer = here.producer("orders")

    there.delete_topics("orders")

    with pytest.raises(UnknownTopicError):
        producer.produce_many([Message(b"")])
    with pytest.raises(UnknownTopicError):
        producer.submit(Message(b"")).result(30)


def test_a_producer_goes_on_with_a_recreated_topic_at_its_next_call(mq: MQ) -> None:
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")
    producer.produce(Message(b"old"))
    mq.delete_topics("orders")
    mq.create_topic("orders", 1)

    with pytest.raises(UnknownTopicError):
        producer.produce(Message(b"told"))

    assert producer.produce(Message(b"new")) == ("orders", 0, 0)


def test_a_consumer_of_a_deleted_topic_is_refused(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")
    consumer.poll(timeout=0)

    mq.delete_topics("orders")

    with pytest.raises(UnknownTopicError):
        consumer.consume(timeout=30)


def test_a_consumer_that_owns_partitions_is_refused_soon_after_another_mq_deleted_its_topic(make_mq: MakeMQ) -> None:
    here, there = make_mq(lease_seconds=1), make_mq()
    consumer = here.consumer("orders", "billing")
    consumer.poll(timeout=0)

    there.delete_topics("orders")

    with pytest.raises(UnknownTopicError):
        consumer.consume(timeout=30)


def test_a_consumer_waiting_for_a_message_is_told_that_its_topic_was_deleted(make_mq: MakeMQ) -> None:
    here, there = make_mq(lease_seconds=1), make_mq()
    consumer = here.consumer("orders", "billing")

    def wait() -> None:
        with pytest.raises(UnknownTopicError):
            consumer.consume(timeout=30)

    at_once([wait, lambda: there.delete_topics("orders") and None])


def test_a_consumer_of_a_deleted_topic_is_refused_although_a_new_one_has_its_name(make_mq: MakeMQ) -> None:
    mq = make_mq(lease_seconds=1)
    consumer = mq.consumer("orders", "billing")
    consumer.poll(timeout=0)

    mq.delete_topics("orders")
    mq.producer("orders").produce(Message(b"new"))

    with pytest.raises(UnknownTopicError):
        consumer.consume(timeout=30)


def test_committing_what_was_read_of_a_deleted_topic_is_refused(mq: MQ) -> None:
    mq.producer("orders").produce(Message(b""))
    consumer = mq.consumer("orders", "billing")
    receive(consumer, 1)

    mq.delete_topics("orders")

    with pytest.raises(UnknownTopicError):
        consumer.commit()


def test_a_consumer_of_a_deleted_topic_closes_without_an_error(mq: MQ) -> None:
    mq.producer("orders").produce(Message(b""))
    consumer = mq.consumer("orders", "billing")
    receive(consumer, 1)

    mq.delete_topics("orders")

    consumer.close()


def test_a_message_produced_while_the_topic_is_deleted_is_refused_or_deleted_with_it(
    make_mq: MakeMQ, queue_state: QueueState
) -> None:
    here, there = make_mq(), make_mq()
    producer = here.producer("orders")

    def produce() -> None:
        with pytest.raises(UnknownTopicError):  # noqa: PT012 - until it is refused
            while True:
                producer.produce(Message(b""))

    at_once([produce, produce, lambda: there.delete_topics("orders") and None])

    assert queue_state.count("SELECT count(*) FROM sqlmq_message") == 0
