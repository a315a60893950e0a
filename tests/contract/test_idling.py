"""Consumers that have waited for long are looked for together: they cost next to nothing, and miss nothing by it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from sqlmq import Message, ReceivedMessage
from sqlmq.errors import ConsumerClosedError
from sqlmq.operations import poll
from tests.support.poller import RARELY, poll_for_all, unwatched
from tests.support.waiting import PATIENCE_SECONDS, settle, until, values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from sqlalchemy import Connection

    from sqlmq import MQ, Consumer
    from tests.conftest import MakeMQ
    from tests.support.queue_state import QueueState

SOON: dict[str, Any] = {"poll_min_seconds": 0.1, "poll_max_seconds": 0.2, "notify": False}


@contextmanager
def waiting(*consumers: Consumer) -> Iterator[list[Future[list[ReceivedMessage]]]]:
    """A thread for each of *consumers*, in which it waits for a message, and rests; closed in the end."""
    with ThreadPoolExecutor(len(consumers)) as threads, ExitStack() as closing:
        answers = [threads.submit(_poll, consumer) for consumer in consumers]
        for consumer in consumers:
            closing.callback(consumer.close)
        until(lambda: all(consumer._core.wakeups.delegated for consumer in consumers), "all to rest")
        yield answers


def _poll(consumer: Consumer) -> list[ReceivedMessage]:
    try:
        return consumer.poll(timeout=2 * PATIENCE_SECONDS)
    except ConsumerClosedError:
        return []


def group_of(mq: MQ, members: int, *, partitions: int) -> list[Consumer]:
    mq.create_topic("orders", partitions)
    consumers = [mq.consumer("orders", "billing") for _ in range(members)]
    settle(*consumers)
    return consumers


def wake_ups(consumers: Sequence[Consumer]) -> list[int]:
    return [consumer._core.wakeups.count for consumer in consumers]


def statements_of_looks(mq: MQ, consumers: Sequence[Consumer], *, rounds: int) -> int:
    found: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        found.append(statement)

    event.listen(mq.engine, "before_cursor_execute", note)
    for _ in range(rounds):
        poll_for_all(mq, consumers)
    event.remove(mq.engine, "before_cursor_execute", note)
    return len([statement for statement in found if "sqlmq_message" in statement or "sqlmq_claim" in statement])


# --- What it costs ---


def test_many_consumers_that_rest_cost_two_statements_a_look_as_one_does(make_mq: MakeMQ) -> None:
    mq = unwatched(make_mq(**RARELY))
    consumers = group_of(mq, 20, partitions=20)

    with waiting(*consumers):
        of_twenty = statements_of_looks(mq, consumers, rounds=3)

    assert of_twenty == 3 * 2


def test_a_consumer_that_rests_is_not_woken_by_looks_that_find_nothing(make_mq: MakeMQ) -> None:
    mq = unwatched(make_mq(**RARELY))
    consumers = group_of(mq, 3, partitions=3)

    with waiting(*consumers):
        before = wake_ups(consumers)
        for _ in range(3):
            poll_for_all(mq, consumers)

        assert wake_ups(consumers) == before


def test_a_message_wakes_of_many_consumers_only_the_one_whose_it_is(make_mq: MakeMQ) -> None:
    mq = unwatched(make_mq(**RARELY))
    consumers = group_of(mq, 6, partitions=6)
    owner = next(number for number, consumer in enumerate(consumers) if consumer.partitions == (3,))

    with waiting(*consumers) as answers:
        before = wake_ups(consumers)
        mq.producer("orders").produce_with_partition(Message(b"42"), 3)

        assert values(answers[owner].result(PATIENCE_SECONDS)) == [b"42"]
        woken = [after - count for after, count in zip(wake_ups(consumers), before, strict=True)]
        assert woken == [int(number == owner) for number in range(6)]


# --- That nothing is missed by it ---


@pytest.mark.pgbouncer
def test_a_look_for_all_finds_what_another_process_has_produced(make_mq: MakeMQ) -> None:
    here, there = unwatched(make_mq(**RARELY)), make_mq(notify=False)
    consumers = group_of(here, 2, partitions=2)

    with waiting(*consumers) as answers:
        there.producer("orders").produce_with_partition(Message(b"42"), consumers[0].partitions[0])
        until(lambda: here._background.poller.poll_now(at_groups=True), "a lookout at work")

        assert values(answers[0].result(PATIENCE_SECONDS)) == [b"42"]


def test_a_consumer_that_rests_gets_what_another_process_produces_by_the_clock(make_mq: MakeMQ) -> None:
    here, there = unwatched(make_mq(**SOON)), make_mq(notify=False)
    (consumer,) = group_of(here, 1, partitions=2)

    with waiting(consumer) as (answer,):
        until(lambda: consumer._core.wakeups.polled_at > 0, "a look for whoever rests")
        there.producer("orders").produce(Message(b"42"))

        assert values(answer.result(PATIENCE_SECONDS)) == [b"42"]


def test_looks_that_fail_lose_nothing_and_are_told_once(
    make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = unwatched(make_mq(**SOON)), make_mq(notify=False)
    (consumer,) = group_of(here, 1, partitions=2)
    failures = threading.Semaphore(0)

    def fail(*_arguments: object, **_options: object) -> None:
        failures.release()
        message = "on purpose"
        raise ValueError(message)

    with waiting(consumer) as (answer,):
        monkeypatch.setattr(poll, "poll", fail)
        assert all(failures.acquire(timeout=PATIENCE_SECONDS) for _ in range(3))
        there.producer("orders").produce(Message(b"42"))

        assert values(answer.result(PATIENCE_SECONDS)) == [b"42"]
        assert caplog.text.count("The shared poll failed") == 1


def test_a_look_that_hangs_holds_up_neither_messages_nor_heartbeats(
    make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = unwatched(make_mq(**SOON, lease_seconds=1)), make_mq(notify=False)
    (consumer,) = group_of(here, 1, partitions=2)
    hangs, may_go_on = threading.Event(), threading.Event()
    look = poll.poll

    def hang(*arguments: Any, **options: Any) -> Any:
        hangs.set()
        may_go_on.wait(PATIENCE_SECONDS)
        return look(*arguments, **options)

    with waiting(consumer) as (answer,):
        monkeypatch.setattr(poll, "poll", hang)
        try:
            assert hangs.wait(PATIENCE_SECONDS)
            trusted_until = consumer._core.coordinator._lease_valid_until
            there.producer("orders").produce(Message(b"42"))

            assert values(answer.result(PATIENCE_SECONDS / 2)) == [b"42"]
            until(lambda: consumer._core.coordinator._lease_valid_until > trusted_until, "a heartbeat")
        finally:
            may_go_on.set()


def test_a_thread_that_died_is_replaced_when_somebody_waits_again(make_mq: MakeMQ) -> None:
    mq = unwatched(make_mq(**RARELY))
    (consumer,) = group_of(mq, 1, partitions=1)
    consumer.poll(timeout=0.01)
    mq._background.poller.close()
    mq._background.poller._stopping.clear()

    with waiting(consumer):
        until(lambda: mq._background.poller.poll_now(at_groups=False), "another thread")
        poll_for_all(mq, [consumer])


def test_consumers_that_wait_for_a_transaction_are_woken_however_many_they_are(make_mq: MakeMQ) -> None:
    mq = unwatched(make_mq(**RARELY))
    mq.create_topic("orders", 6)
    consumers = [mq.consumer("orders", "billing") for _ in range(6)]

    def take(consumer: Consumer) -> list[bytes]:
        with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
            return values(tx.messages)

    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(take, consumer) for consumer in consumers]
        until(lambda: all(consumer._core.wakeups.self_polling for consumer in consumers), "all to wait")
        for partition in range(6):
            mq.producer("orders").produce_with_partition(Message(b"42"), partition)

        assert [answer.result(PATIENCE_SECONDS / 2) for answer in answers] == [[b"42"]] * 6


# --- That groups change while all rest ---


def test_the_partitions_of_a_dead_member_are_taken_over_by_one_that_rests(
    make_mq: MakeMQ, queue_state: QueueState
) -> None:
    dying, other = unwatched(make_mq(**SOON)), unwatched(make_mq(**SOON))
    dying.create_topic("orders", 4)
    dead, survivor = dying.consumer("orders", "billing"), other.consumer("orders", "billing")
    settle(dead, survivor)

    # The dead one does not wait: a consumer that does sends a heartbeat itself when none was sent for it.
    with waiting(survivor):
        dying._background.heartbeat.stop()
        dying._background.housekeeping.stop()
        queue_state.expire_lease(dead)

        until(lambda: survivor.partitions == (0, 1, 2, 3), "the survivor to take over")


def test_a_member_that_joins_gets_its_share_while_all_rest(make_mq: MakeMQ) -> None:
    here, there = unwatched(make_mq(**SOON)), unwatched(make_mq(**SOON))
    (old,) = group_of(here, 1, partitions=4)

    with waiting(old), waiting(there.consumer("orders", "billing")):
        until(lambda: len(old.partitions) == 2, "a share to be handed over")


def test_what_a_member_of_many_leaves_behind_is_taken_at_once_while_all_rest(make_mq: MakeMQ) -> None:
    mq = unwatched(make_mq(**RARELY))
    *staying, leaving = group_of(mq, 7, partitions=7)

    with waiting(*staying):
        leaving.close()

        until(lambda: sum(len(one.partitions) for one in staying) == 7, "the rest to take over", seconds=15)


# --- What has to be looked for by whoever waits ---


def test_nobody_looks_for_a_consumer_of_which_somebody_has_a_message_in_hand(make_mq: MakeMQ) -> None:
    mq = make_mq(**RARELY)
    (consumer,) = group_of(mq, 1, partitions=1)
    assert consumer._core.poll_request() is not None

    mq.producer("orders").produce(Message(b"42"))
    consumer.consume(timeout=PATIENCE_SECONDS)

    assert consumer._core.poll_request() is None
    consumer.commit()
    assert consumer._core.poll_request() is not None


def test_nobody_looks_for_a_consumer_that_is_not_sure_of_its_lease(make_mq: MakeMQ) -> None:
    mq = make_mq(**RARELY)
    (consumer,) = group_of(mq, 1, partitions=1)

    consumer._core.membership_lost()

    assert consumer._core.poll_request() is None


def test_a_member_that_was_expelled_joins_again_while_it_rests(make_mq: MakeMQ) -> None:
    mq = unwatched(make_mq(**{**RARELY, "lease_seconds": 3.0}))
    (consumer,) = group_of(mq, 1, partitions=1)
    before = consumer._core.member_id

    with waiting(consumer):
        other = make_mq(**RARELY)
        with other.engine.begin() as connection:
            member = other._database.dialect.tables.member
            connection.execute(member.delete().where(member.c.id == before))

        until(lambda: consumer._core.member_id != before and consumer.partitions == (0,), "the member to be back")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_file_that_could_not_be_watched_is_watched_again(make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlmq.background.poller._WATCH_AGAIN_SECONDS", 0.01)
    mq, other = make_mq(**RARELY), make_mq(**RARELY)
    (consumer,) = group_of(mq, 1, partitions=1)
    dialect = mq._database.dialect
    watch, failures = dialect.change_token, 0

    def fail_twice(conn: Connection) -> int | None:
        nonlocal failures
        if failures == 2:
            return watch(conn)
        failures += 1
        raise OSError

    monkeypatch.setattr(dialect, "change_token", fail_twice)
    with waiting(consumer) as (answer,):
        until(lambda: failures == 2, "two failures")
        other.producer("orders").produce(Message(b"1"))

        assert values(answer.result(PATIENCE_SECONDS)) == [b"1"]
