"""Consuming: every message reaches every group, in order, and is done when the next one is asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import pytest

from sqlmq import Message, ReceivedMessage
from sqlmq.errors import ConsumerClosedError
from tests.support.waiting import PATIENCE_SECONDS, finish, receive, slack_seconds, until, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from sqlmq import MQ, Consumer
    from tests.conftest import MakeMQ
    from tests.support.queue_state import QueueState


def send(mq: MQ, count: int, *, topic: str = "orders", partitions: int = 1) -> None:
    """Put 0, 1, 2, ... into each partition of *topic*."""
    mq.create_topic(topic, partitions)
    producer = mq.producer(topic)
    for partition in range(partitions):
        futures = [producer.submit(Message(b"%d" % i), partition=partition) for i in range(count)]
        for future in futures:
            future.result(PATIENCE_SECONDS)


def position(mq: MQ, topic: str = "orders", group: str = "billing") -> int:
    """What the group has finished, over all partitions."""
    return sum(partition.position for partition in mq.admin.describe_group(topic, group).partitions)


def in_thread(call: Callable[[], object]) -> None:
    """Run *call* in a thread that then ends."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(call).result(PATIENCE_SECONDS)


def wait_until_waiting(consumer: Consumer) -> None:
    until(lambda: consumer._core.is_waiting, "the consumer to wait for messages")


# --- Order, and waiting ---


def test_messages_come_in_the_order_of_their_partition(mq: MQ) -> None:
    send(mq, 20)
    consumer = mq.consumer("orders", "billing")

    messages = [consumer.consume(timeout=PATIENCE_SECONDS) for _ in range(20)]

    assert values(messages) == [b"%d" % i for i in range(20)]
    assert [message.offset for message in messages] == list(range(20))


def test_each_partitions_messages_come_in_order(mq: MQ) -> None:
    send(mq, 50, partitions=4)

    messages = receive(mq.consumer("orders", "billing"), 200)

    for partition in range(4):
        own = [message for message in messages if message.partition == partition]
        assert values(own) == [b"%d" % i for i in range(50)]


def test_no_partition_waits_until_another_is_read_to_the_end(mq: MQ) -> None:
    send(mq, 100, partitions=3)

    consumer = mq.consumer("orders", "billing")

    messages = [consumer.consume(timeout=PATIENCE_SECONDS) for _ in range(30)]

    assert Counter(message.partition for message in messages) == {0: 10, 1: 10, 2: 10}


def test_consume_raises_timeout_error_when_nothing_came(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")

    with pytest.raises(TimeoutError, match=r"'orders' within 0\.1 seconds"):
        consumer.consume(timeout=0.1)


def test_consume_waits_as_long_as_it_was_told(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        consumer.consume(timeout=0.3)

    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_poll_gives_an_empty_list_when_nothing_came(mq: MQ, timeout: float) -> None:
    assert mq.consumer("orders", "billing").poll(timeout=timeout) == []


def test_poll_with_timeout_0_finds_what_is_there(mq: MQ) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")

    assert values(consumer.poll(timeout=0)) == [b"0", b"1", b"2"]


def test_consume_with_timeout_0_finds_what_is_there(mq: MQ) -> None:
    send(mq, 1)

    assert mq.consumer("orders", "billing").consume(timeout=0).value == b"0"


def test_poll_gives_no_more_than_asked_for(mq: MQ) -> None:
    send(mq, 10)
    consumer = mq.consumer("orders", "billing")

    assert [len(consumer.poll(4, timeout=PATIENCE_SECONDS)) for _ in range(3)] == [4, 4, 2]


def test_poll_gives_what_there_is_without_waiting_for_more(mq: MQ) -> None:
    send(mq, 3)
    began = time.monotonic()

    messages = mq.consumer("orders", "billing").poll(100, timeout=PATIENCE_SECONDS)

    assert len(messages) == 3
    assert time.monotonic() - began < PATIENCE_SECONDS / 2


def test_a_waiting_consumer_gets_what_its_own_process_produces_at_once(make_mq: MakeMQ) -> None:
    mq = make_mq(poll_min_seconds=60, poll_max_seconds=60)
    consumer, producer = mq.consumer("orders", "billing"), mq.producer("orders")
    consumer.poll(timeout=0)

    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(consumer.consume, PATIENCE_SECONDS)
        wait_until_waiting(consumer)
        producer.produce(Message(b"42"))

        assert received.result(PATIENCE_SECONDS / 2).value == b"42"


@pytest.mark.pgbouncer
def test_a_waiting_consumer_gets_what_another_mq_produces_soon(make_mq: MakeMQ) -> None:
    here, there = make_mq(), make_mq()
    consumer, producer = here.consumer("orders", "billing"), there.producer("orders")
    consumer.poll(timeout=0)

    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(consumer.consume, PATIENCE_SECONDS)
        wait_until_waiting(consumer)
        producer.produce(Message(b"42"))
        produced_at = time.monotonic()

        assert received.result(PATIENCE_SECONDS).value == b"42"
        assert time.monotonic() - produced_at < 3 + slack_seconds()


def test_a_message_longer_than_the_read_ahead_limit_arrives(make_mq: MakeMQ) -> None:
    mq = make_mq(prefetch_bytes=1_000)
    mq.create_topic("orders", 1)
    sizes = [10, 5_000, 10, 990, 2_000, 3_000]
    mq.producer("orders").produce_many(Message(bytes(size), b"k") for size in sizes)

    messages = receive(mq.consumer("orders", "billing"), len(sizes))

    assert [len(message.value) for message in messages] == sizes


def test_no_more_bytes_are_read_ahead_than_allowed(make_mq: MakeMQ) -> None:
    mq = make_mq(prefetch_bytes=1_000)
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(bytes(300))] * 10)
    consumer = mq.consumer("orders", "billing")

    messages = consumer.poll(10, timeout=PATIENCE_SECONDS)
    (progress,) = consumer._core.coordinator.assigned.values()

    assert len(messages) + progress.prefetched <= 3


def test_no_more_messages_are_read_ahead_than_allowed(make_mq: MakeMQ) -> None:
    mq = make_mq(prefetch=10)
    send(mq, 30, partitions=2)
    consumer = mq.consumer("orders", "billing")

    consumer.consume(timeout=PATIENCE_SECONDS)

    assert sum(progress.prefetched for progress in consumer._core.coordinator.assigned.values()) <= 9


@pytest.mark.pgbouncer
def test_a_large_backlog_comes_whole_and_in_order(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many(Message(b"%d" % i) for i in range(10_000))

    messages = receive(mq.consumer("orders", "billing"), 10_000)

    assert values(messages) == [b"%d" % i for i in range(10_000)]


def test_old_positions_are_removed(make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch, queue_state: QueueState) -> None:
    monkeypatch.setattr("sqlmq.operations.consume.PRUNE_EVERY", 10)
    mq = make_mq()
    send(mq, 50)
    consumer = mq.consumer("orders", "billing")

    for _ in range(50):
        finish(consumer, 1)

    count = queue_state.count("SELECT count(*) FROM sqlmq_group_offset")
    assert count <= 11
    assert position(mq) == 50


def test_what_owners_before_have_left_is_removed(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq = make_mq()
    send(mq, 12, partitions=3)
    for _ in range(4):
        with mq.consumer("orders", "billing") as consumer:
            finish(consumer, 9)

    count = queue_state.count("SELECT count(*) FROM sqlmq_group_offset")
    assert count <= 2 * 3
    assert position(mq) == 36


# --- Iterating ---


def test_a_consumer_is_iterated_message_by_message(mq: MQ) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")
    received = []

    for message in consumer:
        received.append(message.value)
        if len(received) == 3:
            break

    assert received == [b"0", b"1", b"2"]


WAYS_TO_ITERATE: dict[str, Callable[[Consumer], Iterator[ReceivedMessage]]] = {
    "messages": lambda consumer: consumer.messages(),
    "consume_chan": lambda consumer: consumer.consume_chan(),
    "for": iter,
}


@pytest.fixture(params=WAYS_TO_ITERATE)
def iterate(request: pytest.FixtureRequest) -> Callable[[Consumer], Iterator[ReceivedMessage]]:
    return WAYS_TO_ITERATE[request.param]


def test_iteration_over_a_closed_consumer_is_refused_at_the_call(
    mq: MQ, iterate: Callable[[Consumer], Iterator[ReceivedMessage]]
) -> None:
    consumer = mq.consumer("orders", "billing")
    consumer.close()

    with pytest.raises(ConsumerClosedError):
        iterate(consumer)


def test_iteration_that_has_not_begun_ends_when_the_consumer_closes(
    mq: MQ, iterate: Callable[[Consumer], Iterator[ReceivedMessage]]
) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")
    messages = iterate(consumer)

    consumer.close()

    assert list(messages) == []


def test_iteration_ends_when_the_consumer_closes(
    mq: MQ, iterate: Callable[[Consumer], Iterator[ReceivedMessage]]
) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")
    received = []

    for message in iterate(consumer):
        received.append(message.value)
        if len(received) == 3:
            consumer.close()

    assert received == [b"0", b"1", b"2"]


def test_iteration_that_waits_ends_when_another_thread_closes_the_consumer(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")

    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(list, consumer)
        wait_until_waiting(consumer)
        consumer.close()

        assert received.result(PATIENCE_SECONDS) == []


@pytest.mark.parametrize("closed", ["consumer", "mq"])
def test_a_thread_that_waits_for_a_message_is_told_of_the_close(
    make_mq: MakeMQ, closed: Literal["consumer", "mq"]
) -> None:
    mq = make_mq(poll_min_seconds=60, poll_max_seconds=60)
    consumer = mq.consumer("orders", "billing")

    with ThreadPoolExecutor(2) as threads:
        waiting: list[Future[Any]] = [threads.submit(consumer.consume), threads.submit(consumer.poll)]
        until(lambda: consumer._core.wakeups.waiters == 2, "both threads to wait")
        (mq if closed == "mq" else consumer).close()

        for call in waiting:
            with pytest.raises(ConsumerClosedError):
                call.result(PATIENCE_SECONDS)


def test_a_closed_consumer_refuses_every_call(mq: MQ) -> None:
    send(mq, 1)
    consumer = mq.consumer("orders", "billing")

    consumer.close()

    for call in (consumer.consume, consumer.poll, consumer.commit, lambda: consumer.consume(timeout=0)):
        with pytest.raises(ConsumerClosedError, match="'orders' in group 'billing'"):
            call()


def test_closing_a_consumer_again_is_no_error(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")

    for _ in range(3):
        consumer.close()

    assert consumer.closed


# --- When a message is done ---


def test_a_message_is_done_when_the_next_one_is_asked_for(mq: MQ) -> None:
    send(mq, 3)
    with mq.consumer("orders", "billing") as consumer:
        consumer.consume(timeout=PATIENCE_SECONDS)
        consumer.consume(timeout=PATIENCE_SECONDS)

    assert position(mq) == 1
    assert mq.consumer("orders", "billing").consume(timeout=PATIENCE_SECONDS).value == b"1"


def test_asking_finishes_even_when_nothing_more_comes(mq: MQ) -> None:
    send(mq, 1)
    with mq.consumer("orders", "billing") as consumer:
        consumer.consume(timeout=PATIENCE_SECONDS)
        consumer.poll(timeout=0)

    assert position(mq) == 1


def test_a_message_is_not_done_by_reading_it(mq: MQ) -> None:
    send(mq, 3)
    with mq.consumer("orders", "billing") as consumer:
        receive(consumer, 3)

    assert position(mq) == 0
    assert values(receive(mq.consumer("orders", "billing"), 3)) == [b"0", b"1", b"2"]


def test_a_crash_delivers_what_was_not_done_again(make_mq: MakeMQ, queue_state: QueueState) -> None:
    crashing, other = make_mq(commit_interval_seconds=0.05), make_mq()
    send(crashing, 3)
    consumer = crashing.consumer("orders", "billing")
    consumer.consume(timeout=PATIENCE_SECONDS)
    consumer.consume(timeout=PATIENCE_SECONDS)
    until(lambda: position(other) == 1, "the first message to be committed")

    crashing._background.heartbeat.stop()
    crashing._background.housekeeping.stop()
    queue_state.expire_leases()

    assert values(receive(other.consumer("orders", "billing"), 2)) == [b"1", b"2"]


def test_leaving_a_loop_by_an_exception_does_not_finish_the_message(mq: MQ) -> None:
    send(mq, 3)

    def handle() -> None:
        with mq.consumer("orders", "billing") as consumer:
            for message in consumer:
                if message.value == b"1":
                    raise RuntimeError

    with pytest.raises(RuntimeError):
        handle()

    assert values(receive(mq.consumer("orders", "billing"), 2)) == [b"1", b"2"]


def test_a_message_whose_handler_raised_comes_again_when_the_same_thread_asks(mq: MQ) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")
    handled: list[bytes] = []

    def handle() -> None:
        for message in consumer:
            if message.value == b"1" and b"1" not in handled:
                handled.append(b"1")
                raise RuntimeError
            handled.append(message.value)
            if len(handled) == 4:
                consumer.commit()
                break

    with pytest.raises(RuntimeError):
        handle()
    handle()

    assert handled == [b"0", b"1", b"1", b"2"]
    assert position(mq) == 3


def test_breaking_out_of_a_loop_does_not_finish_the_message(mq: MQ) -> None:
    send(mq, 3)
    with mq.consumer("orders", "billing") as consumer:
        for _ in consumer:
            break

    assert position(mq) == 0


def test_commit_finishes_what_was_received(mq: MQ) -> None:
    send(mq, 5)
    consumer = mq.consumer("orders", "billing")
    consumer.poll(3, timeout=PATIENCE_SECONDS)

    consumer.commit()

    assert position(mq) == 3


def test_commit_with_nothing_received_is_no_error(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")

    for _ in range(2):
        consumer.commit()

    assert position(mq) == 0


def test_commit_does_not_finish_what_another_thread_has(mq: MQ) -> None:
    send(mq, 2)
    consumer = mq.consumer("orders", "billing")
    with ThreadPoolExecutor(1) as threads:
        threads.submit(consumer.consume, PATIENCE_SECONDS).result(PATIENCE_SECONDS)
        consumer.consume(timeout=PATIENCE_SECONDS)

        consumer.commit()

        assert position(mq) == 0


def test_what_was_finished_is_committed_without_being_asked(make_mq: MakeMQ) -> None:
    mq = make_mq(commit_interval_seconds=0.05)
    send(mq, 2)
    consumer = mq.consumer("orders", "billing")

    consumer.consume(timeout=PATIENCE_SECONDS)
    consumer.consume(timeout=PATIENCE_SECONDS)

    until(lambda: position(mq) == 1, "the first message to be committed")


@pytest.mark.pgbouncer
def test_commits_are_batched_and_flushed_by_close(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq = make_mq(commit_interval_seconds=60)
    send(mq, 20)
    consumer = mq.consumer("orders", "billing")

    for _ in range(20):
        consumer.consume(timeout=PATIENCE_SECONDS)
    before = position(mq)
    consumer.close()

    commits = queue_state.count("SELECT count(*) FROM sqlmq_group_offset")
    assert (before, position(mq), commits) == (0, 19, 1)


def test_closing_the_mq_commits_what_was_finished(make_mq: MakeMQ) -> None:
    closing, other = make_mq(commit_interval_seconds=60), make_mq()
    send(other, 2)
    finishing = closing.consumer("orders", "billing")
    receive(finishing, 2)
    finishing.poll(timeout=0)

    closing.close()

    assert position(other) == 2


# --- At most once ---


def test_with_ack_before_a_message_is_done_when_it_is_handed_out(mq: MQ) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing", ack="on_delivery")

    consumer.consume(timeout=PATIENCE_SECONDS)

    assert position(mq) == 1


def test_with_ack_before_nothing_is_delivered_twice(make_mq: MakeMQ, queue_state: QueueState) -> None:
    crashing, other = make_mq(), make_mq()
    send(crashing, 3)
    crashing.consumer("orders", "billing", ack="on_delivery").poll(2, timeout=PATIENCE_SECONDS)

    crashing._background.heartbeat.stop()
    crashing._background.housekeeping.stop()
    queue_state.expire_leases()

    assert values(receive(other.consumer("orders", "billing"), 1)) == [b"2"]


# --- Where a group starts ---


def test_a_new_group_starts_at_the_earliest_message(mq: MQ) -> None:
    send(mq, 3)

    assert values(receive(mq.consumer("orders", "billing"), 3)) == [b"0", b"1", b"2"]


def test_a_group_that_starts_at_the_latest_gets_what_comes_after_it_was_made(mq: MQ) -> None:
    send(mq, 3, partitions=3)
    consumer = mq.consumer("orders", "billing", start="latest")

    mq.producer("orders").produce(Message(b"new"))

    assert values(receive(consumer, 1)) == [b"new"]


def test_where_a_group_starts_is_decided_once(make_mq: MakeMQ) -> None:
    here, there = make_mq(), make_mq()
    send(here, 3)
    here.consumer("orders", "billing", start="latest").close()
    here.producer("orders").produce(Message(b"new"))

    consumer = there.consumer("orders", "billing", start="earliest")

    assert values(receive(consumer, 1)) == [b"new"]


def test_start_latest_means_nothing_for_a_group_that_exists(mq: MQ) -> None:
    send(mq, 3)
    mq.consumer("orders", "billing").close()

    assert values(receive(mq.consumer("orders", "billing", start="latest"), 3)) == [b"0", b"1", b"2"]


def test_a_group_goes_on_where_it_was(mq: MQ) -> None:
    send(mq, 3)
    with mq.consumer("orders", "billing") as consumer:
        consumer.poll(2, timeout=PATIENCE_SECONDS)
        consumer.commit()

    assert values(receive(mq.consumer("orders", "billing"), 1)) == [b"2"]


def test_groups_are_independent(mq: MQ) -> None:
    send(mq, 3)
    billing, shipping = mq.consumer("orders", "billing"), mq.consumer("orders", "shipping")

    finish(billing, 3)
    received = receive(shipping, 3)

    assert values(received) == [b"0", b"1", b"2"]
    assert (position(mq, group="billing"), position(mq, group="shipping")) == (3, 0)


def test_groups_of_one_name_on_two_topics_are_independent(mq: MQ) -> None:
    send(mq, 2, topic="aa")
    send(mq, 3, topic="bb")

    finish(mq.consumer("aa", "billing"), 2)

    assert len(receive(mq.consumer("bb", "billing"), 3)) == 3


def test_the_lag_of_a_group_is_what_it_has_not_finished(mq: MQ) -> None:
    send(mq, 5)
    consumer = mq.consumer("orders", "billing")
    consumer.poll(2, timeout=PATIENCE_SECONDS)
    consumer.commit()

    description = mq.admin.describe_group("orders", "billing")

    assert (description.lag, description.members) == (3, (consumer.name,))
    assert [partition.owner for partition in description.partitions] == [consumer.name]


# --- Many threads ---


def test_threads_that_share_a_consumer_get_each_message_once(mq: MQ) -> None:
    send(mq, 100, partitions=3)
    consumer = mq.consumer("orders", "billing")
    received: list[tuple[int | None, int | None]] = []

    def work() -> None:
        for message in consumer:
            received.append((message.partition, message.offset))
            if len(received) >= 300:
                break
        consumer.commit()
        consumer.close()

    with ThreadPoolExecutor(8) as threads:
        for call in [threads.submit(work) for _ in range(8)]:
            call.exception(PATIENCE_SECONDS)  # the first to end closes the consumer to the others

    assert Counter(received) == Counter((partition, offset) for partition in range(3) for offset in range(100))


def test_asking_in_one_thread_does_not_finish_what_another_has(mq: MQ) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")
    has_first, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        consumer.consume(timeout=PATIENCE_SECONDS)
        has_first.set()
        may_end.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(hold)
        assert has_first.wait(PATIENCE_SECONDS)
        receive(consumer, 2)
        consumer.commit()
        committed = position(mq)
        may_end.set()
        holding.result(PATIENCE_SECONDS)

    assert committed == 0


def test_what_a_dead_thread_had_is_delivered_again(mq: MQ) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")

    in_thread(lambda: consumer.consume(timeout=PATIENCE_SECONDS))

    assert values(receive(consumer, 3)) == [b"0", b"1", b"2"]


def test_what_a_dead_thread_had_is_delivered_again_although_others_went_on(mq: MQ) -> None:
    send(mq, 3)
    consumer = mq.consumer("orders", "billing")
    with ThreadPoolExecutor(1) as threads:
        threads.submit(consumer.consume, PATIENCE_SECONDS).result(PATIENCE_SECONDS)
        receive(consumer, 2)

    again = consumer.poll(timeout=PATIENCE_SECONDS)

    assert again[0].value == b"0"


def test_finishing_after_a_dead_threads_messages_came_again_commits_all(mq: MQ) -> None:
    send(mq, 5)
    consumer = mq.consumer("orders", "billing")
    in_thread(lambda: consumer.poll(2, timeout=PATIENCE_SECONDS))

    deadline = time.monotonic() + PATIENCE_SECONDS
    while position(mq) < 5 and time.monotonic() < deadline:
        consumer.poll(1, timeout=0)
        consumer.commit()

    assert position(mq) == 5


def test_what_another_thread_has_in_hand_stays_finishable_when_a_thread_dies(mq: MQ) -> None:
    send(mq, 4)
    consumer = mq.consumer("orders", "billing")
    with ThreadPoolExecutor(1) as threads:
        threads.submit(consumer.consume, PATIENCE_SECONDS).result(PATIENCE_SECONDS)
        mine = receive(consumer, 1)
    # The thread is dead with offset 0 in hand; offset 1 is this thread's.

    again = receive(consumer, 4)
    consumer.commit()

    assert values(mine) == [b"1"]
    assert values(again)[0] == b"0"
    assert position(mq) == 4
