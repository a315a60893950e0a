"""What the library tells of lag, members and the reasons why a group waits, and a topic watched from outside."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import Message, UnknownTopicError
from sqlmq.errors import InvalidPartitionError, UnknownGroupError
from tests.support.failing import AT_ONCE, MUCH_LATER, ONCE, GroupRunner, Handler, produce
from tests.support.waiting import finish, receive, until, values

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import MakeMQ
    from tests.support.queue_state import QueueState


def kinds(mq: MQ, **options: Any) -> list[tuple[str, int | None]]:
    return [(one.code, one.partition) for one in mq.admin.diagnose_group("orders", "billing", **options)]


# --- Lag ---


def test_lag_is_told_in_messages_and_seconds_with_owner_and_commit(mq: MQ, queue_state: QueueState) -> None:
    mq.create_topic("orders", 2)
    mq.producer("orders").submit(Message(b"1"), partition=0).result(10)
    mq.producer("orders").submit(Message(b"2"), partition=0).result(10)
    consumer = mq.consumer("orders", "billing", name="me")
    receive(consumer, 1)
    consumer.commit()
    queue_state.make_older(100)

    first, second = mq.admin.lag("orders", "billing")

    assert (first.topic, first.group, first.partition, first.owner) == ("orders", "billing", 0, "me")
    assert (first.position, first.end_offset, first.lag) == (1, 2, 1)
    assert 100 <= first.lag_seconds < 160
    assert first.committed_at is not None
    assert timedelta(seconds=99) < datetime.now(UTC) - first.committed_at < timedelta(seconds=160)
    assert (first.waiting, first.dead) == (0, 0)
    assert (second.partition, second.lag, second.lag_seconds, second.committed_at) == (1, 0, 0.0, None)


def test_lag_of_all_groups_comes_in_order_and_can_be_narrowed(mq: MQ) -> None:
    for topic, group in (("orders", "b"), ("orders", "a"), ("clicks", "b")):
        mq.create_topic(topic, 1)
        mq.consumer(topic, group)

    assert [(one.topic, one.group) for one in mq.admin.lag()] == [("clicks", "b"), ("orders", "a"), ("orders", "b")]
    assert [(one.topic, one.group) for one in mq.admin.lag("orders")] == [("orders", "a"), ("orders", "b")]
    assert [(one.topic, one.group) for one in mq.admin.lag(group="b")] == [("clicks", "b"), ("orders", "b")]
    assert mq.admin.lag(group="nobody") == []


def test_lag_of_what_is_not_there_is_an_error(mq: MQ) -> None:
    mq.create_topic("orders", 1)

    with pytest.raises(UnknownTopicError):
        mq.admin.lag("nothing")
    with pytest.raises(UnknownGroupError):
        mq.admin.lag("orders", "nobody")


def test_lag_counts_what_is_set_aside_and_dead_letters(mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:bad", "b:bad", "c:good")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(mq.admin.parked("orders", "billing").list("waiting")) == 2, "both set aside")
    produce(mq, "d:worse")
    with runner.running(Handler(b"worse"), retry=ONCE):
        until(lambda: len(mq.admin.parked("orders", "billing").list("dead")) == 1, "a dead letter")

    (lag,) = mq.admin.lag("orders", "billing")
    group = mq.admin.describe_group("orders", "billing")

    assert (lag.lag, lag.waiting, lag.dead) == (0, 2, 1)
    assert (group.lag, group.waiting, group.dead, group.lag_seconds) == (0, 2, 1, 0.0)


# --- Topics, members ---


def test_a_topic_tells_what_it_takes_and_how_fast_it_grows(mq: MQ, queue_state: QueueState) -> None:
    mq.create_topic("orders", 2)
    mq.producer("orders").produce_many([Message(b"x" * 1_000, b"old") for _ in range(30)])
    queue_state.make_older(90)
    mq.producer("orders").produce_many([Message(b"x" * 1_000, b"old") for _ in range(12)])

    topic = mq.admin.describe_topic("orders")

    full, empty = sorted(topic.partitions, key=lambda one: -one.messages)
    assert full.messages == 42
    assert topic.messages_per_second == full.messages_per_second == pytest.approx(12 / 60)
    assert 42_000 < topic.estimated_bytes < 60_000
    assert full.newest_at is not None
    assert datetime.now(UTC) - full.newest_at < timedelta(seconds=60)
    assert (empty.messages_per_second, empty.estimated_bytes, empty.newest_at) == (0.0, 0, None)


def test_members_are_told_with_their_partitions_and_heartbeats(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq, dying = make_mq(lease_seconds=60), make_mq()
    mq.create_topic("orders", 2)
    mq.consumer("orders", "billing", name="first").poll(timeout=0)
    second_consumer = dying.consumer("orders", "billing", name="second")
    dying._background.heartbeat.stop()
    dying._background.housekeeping.stop()
    queue_state.expire_lease(second_consumer)

    first, second = mq.admin.members("orders", "billing")

    assert (first.name, first.is_live, first.partitions) == ("first", True, (0, 1))
    assert (second.name, second.is_live, second.partitions) == ("second", False, ())
    assert 0 <= first.heartbeat_seconds < first.lease_seconds == 60
    assert datetime.now(UTC) - first.joined_at < timedelta(seconds=60)
    with pytest.raises(UnknownGroupError):
        mq.admin.members("orders", "nobody")


# --- Why a group waits ---


def test_a_group_that_gets_on_has_no_findings(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    produce(mq, "a:1")
    consumer = mq.consumer("orders", "billing")
    finish(consumer, 1)
    produce(mq, "a:2")

    assert kinds(mq) == []


def test_a_group_without_members_is_found(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    mq.consumer("orders", "billing").close()
    produce(mq, "a:1")

    (found,) = mq.admin.diagnose_group("orders", "billing")

    assert (found.code, found.partition) == ("no-members", None)
    assert "1 message waits" in found.summary
    assert "sqlmq run" in found.remedy


def test_an_owner_that_does_not_get_on_is_found(mq: MQ, queue_state: QueueState) -> None:
    mq.create_topic("orders", 1)
    produce(mq, "a:1", "a:2")
    consumer = mq.consumer("orders", "billing", name="the reader")
    receive(consumer, 1)
    queue_state.make_older(100)

    (found,) = mq.admin.diagnose_group("orders", "billing")

    assert (found.code, found.partition) == ("no-progress", 0)
    assert "the reader" in found.summary
    assert "offset 0" in found.summary
    assert kinds(mq, stuck_seconds=10_000) == []


def test_a_partition_that_no_live_member_owns_is_found(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    produce(mq, "a:1")
    mq.consumer("orders", "billing")

    assert kinds(mq) == [("no-owner", 0)]


def test_a_stopped_message_is_found_with_the_command_that_goes_on(
    mq: MQ, runner: GroupRunner, queue_state: QueueState
) -> None:
    produce(mq, "a:bad", "b:good")
    runner.run(Handler(b"bad"), retry=AT_ONCE, on_failure="stop")
    queue_state.make_older(20)

    found = {one.code: one for one in mq.admin.diagnose_group("orders", "billing")}

    assert set(found) == {"no-members", "blocked-partition"}
    assert "offset 0 has failed 3 times, with ValueError" in found["blocked-partition"].summary
    assert "sqlmq parked retry orders --group billing --partition 0 --offset 0" in found["blocked-partition"].remedy


def test_blocked_keys_and_dead_letters_are_found(mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:bad", "b:bad", "c:good")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(mq.admin.parked("orders", "billing").list("waiting")) == 2, "both set aside")
    produce(mq, "d:worse")
    with runner.running(Handler(b"worse"), retry=ONCE):
        until(lambda: len(mq.admin.parked("orders", "billing").list("dead")) == 1, "a dead letter")

    blocked, dead = mq.admin.diagnose_group("orders", "billing")

    assert (blocked.code, dead.code) == ("blocked-keys", "dead-letters")
    assert "1 other key waits" in blocked.summary
    assert "--state dead" in dead.remedy


# --- Watching ---


def test_tail_gives_what_comes_from_now_on_and_leaves_no_trace(mq: MQ) -> None:
    mq.create_topic("orders", 2)
    produce(mq, "a:before")
    watched = mq.admin.tail("orders", timeout=20)
    produce(mq, "a:1", "b:2")

    seen = [next(watched), next(watched)]

    assert sorted(values(seen)) == [b"1", b"2"]
    assert {message.topic for message in seen} == {"orders"}
    assert mq.admin.groups("orders") == []


def test_tail_gives_the_last_messages_of_all_partitions_first(mq: MQ, queue_state: QueueState) -> None:
    mq.create_topic("orders", 2)
    producer = mq.producer("orders")
    for value, partition in ((b"1", 0), (b"2", 1), (b"3", 0)):
        producer.submit(Message(value), partition=partition).result(10)
        queue_state.make_older(1)

    assert values(list(mq.admin.tail("orders", last=2, timeout=0))) == [b"2", b"3"]
    assert values(list(mq.admin.tail("orders", last=9, partitions=[0], timeout=0))) == [b"1", b"3"]
    assert values(list(mq.admin.tail("orders", offset=1, timeout=0))) == [b"3"]
    assert list(mq.admin.tail("orders", timeout=0)) == []


def test_tail_of_many_messages_gives_the_newest_in_order(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"%d" % number) for number in range(1_500)])

    assert values(list(mq.admin.tail("orders", last=1_000, timeout=0))) == [
        b"%d" % number for number in range(500, 1_500)
    ]
    assert len(list(mq.admin.tail("orders", offset=0, timeout=0))) == 1_500


def test_tail_ends_with_the_mq(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.create_topic("orders", 1)
    watched = mq.admin.tail("orders")
    seen: list[Message] = []
    watching = threading.Thread(target=lambda: seen.extend(watched))
    watching.start()

    mq.close()
    watching.join(20)

    assert not watching.is_alive()
    assert seen == []


def test_a_tail_that_has_ended_stays_at_its_end(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    watched = mq.admin.tail("orders", timeout=0)
    assert list(watched) == []

    mq.producer("orders").produce(Message(b"late"))

    assert list(watched) == []


def test_tail_of_a_topic_that_is_deleted_says_so(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    watched = mq.admin.tail("orders", timeout=20)

    mq.delete_topics("orders")
    mq.create_topic("orders", 1)

    with pytest.raises(UnknownTopicError):
        next(watched)
    assert list(watched) == []


def test_tail_refuses_a_partition_that_the_topic_does_not_have(mq: MQ) -> None:
    mq.create_topic("orders", 2)

    with pytest.raises(InvalidPartitionError):
        mq.admin.tail("orders", partitions=[2])
