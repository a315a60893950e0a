"""Loops over a consumer: what is read for them is theirs one message at a time, whatever else happens meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sqlmq import Message, ReceivedMessage
from tests.support.waiting import PATIENCE_SECONDS, receive, until, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import MQ, Consumer
    from tests.conftest import MakeMQ

COUNT = 40


def numbers(*ranges: range) -> list[bytes]:
    return [b"%d" % i for one in ranges for i in one]


def send(mq: MQ, count: int = COUNT, *, partitions: int = 1) -> None:
    mq.create_topic("orders", partitions)
    for partition in range(partitions):
        for value in numbers(range(count)):
            mq.producer("orders").submit(Message(value), partition=partition).result(PATIENCE_SECONDS)


def position(mq: MQ) -> int:
    return sum(partition.position for partition in mq.admin.describe_group("orders", "billing").partitions)


def take(consumer: Consumer, count: int) -> list[bytes]:
    """Take *count* messages in a loop, and leave it at the last one."""
    taken: list[bytes] = []
    for message in consumer:
        taken.append(message.value)
        if len(taken) == count:
            break
    return taken


def placed(messages: list[ReceivedMessage]) -> list[tuple[int | None, bytes]]:
    return [(message.partition, message.value) for message in messages]


def in_another_thread(call: Callable[[], list[ReceivedMessage]]) -> list[ReceivedMessage]:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result(PATIENCE_SECONDS)


def test_each_message_of_a_loop_is_done_when_the_next_is_asked_for(make_mq: MakeMQ) -> None:
    mq = make_mq(commit_interval_seconds=0.05)
    send(mq)
    consumer = mq.consumer("orders", "billing")

    for message in consumer:
        if message.value == b"7":
            until(lambda: position(mq) == 7, "the seven before to be committed")
            break

    assert position(mq) == 7


def test_another_thread_gets_what_a_loop_has_not_taken_yet(mq: MQ) -> None:
    send(mq)
    consumer = mq.consumer("orders", "billing")
    others: list[bytes] = []
    mine: list[bytes] = []

    for message in consumer:
        mine.append(message.value)
        if len(mine) == 3:
            others += values(in_another_thread(lambda: consumer.poll(5, timeout=PATIENCE_SECONDS)))
        if len(mine) == 10:
            break

    # The other thread ended without finishing its five, so they come again, after whatever this one has in hand.
    assert mine[:3] == numbers(range(3))
    assert others == numbers(range(3, 8))
    assert set(mine) >= set(others)


def test_loops_of_two_threads_share_what_comes(mq: MQ) -> None:
    send(mq)
    consumer = mq.consumer("orders", "billing")
    all_taken = threading.Event()
    taken: list[bytes] = []

    def loop() -> None:
        for message in consumer:
            taken.append(message.value)
            if len(taken) >= COUNT:
                all_taken.set()

    with ThreadPoolExecutor(2) as threads:
        loops = [threads.submit(loop), threads.submit(loop)]
        assert all_taken.wait(PATIENCE_SECONDS)
        consumer.close()
        for running in loops:
            running.result(PATIENCE_SECONDS)

    assert sorted(taken) == sorted(numbers(range(COUNT)))


def test_asking_inside_a_loop_goes_on_where_the_loop_is(mq: MQ) -> None:
    send(mq)
    consumer = mq.consumer("orders", "billing")
    taken: list[bytes] = []

    for message in consumer:
        taken += values([message, *consumer.poll(3, timeout=PATIENCE_SECONDS)])
        if len(taken) >= 16:
            break

    assert taken == numbers(range(16))


def test_committing_inside_a_loop_finishes_the_message_in_hand(mq: MQ) -> None:
    send(mq)
    consumer = mq.consumer("orders", "billing")
    positions: list[int] = []

    for _ in consumer:
        consumer.commit()
        positions.append(position(mq))
        if len(positions) == 3:
            break

    assert positions == [1, 2, 3]


def test_a_loop_that_was_left_is_followed_by_one_from_the_same_message_on(mq: MQ) -> None:
    send(mq)
    consumer = mq.consumer("orders", "billing")

    assert take(consumer, 5) == numbers(range(5))
    assert take(consumer, 5) == numbers(range(4, 9))


def test_a_loop_ends_in_the_middle_when_another_thread_closes_the_consumer(mq: MQ) -> None:
    send(mq)
    consumer = mq.consumer("orders", "billing")
    taken: list[bytes] = []

    def close() -> list[ReceivedMessage]:
        consumer.close()
        return []

    for message in consumer:
        taken.append(message.value)
        if len(taken) == 4:
            in_another_thread(close)

    assert taken == numbers(range(4))
    assert position(mq) == 3


def test_a_loop_hands_nothing_out_once_its_lease_is_in_doubt(mq: MQ) -> None:
    send(mq)
    consumer = mq.consumer("orders", "billing")
    asked = []

    for message in consumer:
        if message.value == b"3":
            consumer._core.membership_lost()
            asked.append(consumer._core._polled_at)
        if message.value == b"4":
            asked.append(consumer._core._polled_at)
            break

    # Before it went on it asked, so it has made sure that it is still a member.
    assert asked[0] < asked[1]


def test_a_partition_changes_hands_while_its_owner_loops(mq: MQ) -> None:
    send(mq, partitions=2)
    first = mq.consumer("orders", "billing")
    taken = placed(first.poll(1, timeout=PATIENCE_SECONDS))
    assert len(first.partitions) == 2
    second = mq.consumer("orders", "billing")

    for message in first:
        taken += placed([message])
        # It asks, so its share is a partition; and finishes what it got.
        taken += placed(second.poll(timeout=0))
        if second.partitions:
            break
    (number,) = second.partitions
    mine = [value for partition, value in taken if partition == number]
    mine += values(receive(second, COUNT - len(mine)))

    assert mine == numbers(range(COUNT))


@pytest.mark.parametrize("prefetch", [1, 2, 5, 7])
@pytest.mark.pgbouncer
def test_whatever_is_read_ahead_comes_once_and_in_order(make_mq: MakeMQ, prefetch: int) -> None:
    mq = make_mq(prefetch=prefetch)
    send(mq, partitions=3)
    consumer = mq.consumer("orders", "billing")
    taken: dict[int | None, list[bytes]] = {}

    for message in consumer:
        taken.setdefault(message.partition, []).append(message.value)
        if sum(map(len, taken.values())) == 3 * COUNT:
            break

    assert taken == {number: numbers(range(COUNT)) for number in range(3)}


def test_more_partitions_than_one_look_reads_from_are_all_served(make_mq: MakeMQ) -> None:
    mq = make_mq(prefetch=20)
    mq.create_topic("orders", 100)
    producer = mq.producer("orders")
    for future in [producer.submit(Message(b"%d" % i), partition=number) for i in range(3) for number in range(100)]:
        future.result(PATIENCE_SECONDS)

    messages = receive(mq.consumer("orders", "billing"), 300)

    taken = {number: [m.value for m in messages if m.partition == number] for number in range(100)}
    assert taken == {number: numbers(range(3)) for number in range(100)}


def test_a_partition_with_one_message_does_not_wait_for_many_with_many(make_mq: MakeMQ) -> None:
    mq = make_mq(prefetch=20)
    mq.create_topic("orders", 90)
    producer = mq.producer("orders")
    for number in (*range(20), *range(70, 90)):
        futures = [producer.submit(Message(b"%d" % i), partition=number) for i in range(40)]
        futures[-1].result(PATIENCE_SECONDS)
    producer.produce_with_partition(Message(b"alone"), 45)
    consumer = mq.consumer("orders", "billing")

    before = 0
    for message in consumer:
        if message.value == b"alone":
            break
        before += 1

    assert before < 1_000


def test_what_is_read_while_a_loop_is_left_is_not_handed_out_twice(make_mq: MakeMQ) -> None:
    mq = make_mq(prefetch=8)
    send(mq, 200)
    consumer = mq.consumer("orders", "billing")
    taken: list[bytes] = []

    while len(taken) < 200:
        # The one at which a loop was left comes again first.
        del taken[-1:]
        taken += take(consumer, min(7, 200 - len(taken)))

    assert taken == numbers(range(200))


def test_large_and_small_values_come_in_order(make_mq: MakeMQ) -> None:
    mq = make_mq(prefetch=20, prefetch_bytes=100_000)
    mq.create_topic("orders", 2)
    sizes = [10, 4_000, 10, 60_000, 1, 0, 5_000, 200_000, 3, 49_000, 4_999, 5_001] * 3
    mq.producer("orders").produce_many(
        Message(b"%03d" % i + bytes(size), b"a" if i % 2 else b"b") for i, size in enumerate(sizes)
    )
    consumer = mq.consumer("orders", "billing")

    messages = receive(consumer, len(sizes))

    by_key = {key: [int(m.value[:3]) for m in messages if m.key == key] for key in (b"a", b"b")}
    assert by_key == {b"a": list(range(1, len(sizes), 2)), b"b": list(range(0, len(sizes), 2))}
    assert sorted(len(m.value) - 3 for m in messages) == sorted(sizes)


def test_positions_may_be_committed_without_waiting_for_the_disk(make_mq: MakeMQ) -> None:
    mq = make_mq(durable_commits=False)
    send(mq)
    consumer = mq.consumer("orders", "billing")

    receive(consumer, COUNT)
    consumer.commit()

    assert position(mq) == COUNT
