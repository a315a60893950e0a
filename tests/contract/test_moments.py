"""Moments are neither sorted nor only in the past: nothing is skipped for it, and nothing waits until a clock has caught up."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlmq import Message, ReceivedMessage, Retention, Retry
from sqlmq.operations.admin import reset
from tests.support.handlers import Recorder, drain, numbered, parked_rows, send
from tests.support.retention import DAY, AgedTopic, aged_topic
from tests.support.waiting import finish, receive, until, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq import MQ, Consumer
    from tests.conftest import MakeMQ
    from tests.support.application import Application
    from tests.support.queue_state import QueueState

HOUR = 3_600.0
BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)
COUNT = 60


def append(mq: MQ, state: QueueState, moments: Sequence[datetime]) -> None:
    """Append a message for each of *moments*, by which it seems to have been appended."""
    send(mq, numbered(len(moments)))
    on_sqlite = state.engine.dialect.name == "sqlite"
    for offset, moment in enumerate(moments):
        at = round(moment.timestamp() * 1e6) if on_sqlite else moment
        state.execute("UPDATE sqlmq_message SET created_at = :at WHERE msg_offset = :offset", at=at, offset=offset)


def first_since(moments: Sequence[datetime], moment: datetime) -> int:
    return next((offset for offset, one in enumerate(moments) if one >= moment), len(moments))


# --- From a moment on ---


def test_a_start_at_a_moment_skips_no_message_in_a_log_that_is_not_sorted(mq: MQ, queue_state: QueueState) -> None:
    chosen = random.Random(5)
    # Ten seconds apart, but four of ten messages look as old as the first ones.
    moments = [
        BEGIN + timedelta(seconds=chosen.randrange(40) if offset >= 8 and chosen.random() < 0.4 else 10 * offset)
        for offset in range(COUNT)
    ]
    append(mq, queue_state, moments)

    found = {}
    for seconds in range(-5, 10 * COUNT + 10, 35):
        since = BEGIN + timedelta(seconds=seconds)
        mq.consumer("orders", f"since-{seconds}", start=since).close()
        (partition,) = mq.admin.describe_group("orders", f"since-{seconds}").partitions
        found[since] = partition.position

    assert found == {since: first_since(moments, since) for since in found}


def test_a_reset_to_a_moment_skips_no_message_after_the_clock_was_set_back_by_days(
    mq: MQ, queue_state: QueueState
) -> None:
    moments = [BEGIN + timedelta(days=day) for day in (0, 1, 2, 3, 4, 0, 0, 1, 1, 2, 5)]
    append(mq, queue_state, moments)
    mq.consumer("orders", "billing").close()

    for since in (BEGIN + timedelta(days=day) for day in (1, 2, 3, 4, 5, 6)):
        assert mq.admin.preview_reset("orders", "billing", since)[0].to_offset == first_since(moments, since)


@pytest.mark.parametrize("hours_back", [0.0, 0.9])
def test_a_log_of_which_little_is_read_skips_no_message_though_the_clock_was_set_back_by_an_hour(
    mq: MQ, queue_state: QueueState, monkeypatch: pytest.MonkeyPatch, hours_back: float
) -> None:
    monkeypatch.setattr(reset, "READ_MESSAGES", 1)
    monkeypatch.setattr(reset, "READ_LEAST_MESSAGES", 1)
    monkeypatch.setattr(reset, "_WINDOW", 3)
    steps = [timedelta(minutes=5 * offset, hours=0 if offset < COUNT // 2 else -hours_back) for offset in range(COUNT)]
    moments = [BEGIN + step for step in steps]
    append(mq, queue_state, moments)
    mq.consumer("orders", "billing").close()

    for since in (BEGIN + timedelta(minutes=17 * number) for number in range(20)):
        assert mq.admin.preview_reset("orders", "billing", since)[0].to_offset == first_since(moments, since)


@pytest.mark.parametrize("year", [1, 9998])
def test_the_ends_of_the_calendar_are_moments_too(mq: MQ, year: int) -> None:
    send(mq, numbered(3))
    mq.consumer("orders", "billing").close()

    (change,) = mq.admin.preview_reset("orders", "billing", datetime(year, 1, 1, tzinfo=UTC))

    assert change.to_offset == (0 if year == 1 else 3)


def test_a_message_is_as_old_as_its_append_and_not_as_the_beginning_of_its_transaction(
    mq: MQ, app: Application
) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    with app.session() as session:
        session.execute(text("SELECT 1"))  # the transaction begins
        producer.produce(Message(b"plain"))
        producer.produce(Message(b"published"), session=session)
        session.commit()

    plain, published = receive(mq.consumer("orders", "billing"), 2)

    assert values([plain, published]) == [b"plain", b"published"]
    assert plain.timestamp <= published.timestamp
    assert values(receive(mq.consumer("orders", "since", start=plain.timestamp), 2)) == [b"plain", b"published"]


# --- Ages are never negative ---


@pytest.mark.parametrize("seconds", [600.0, 10 * 365 * DAY], ids=["ten minutes", "ten years"])
def test_a_member_that_died_before_the_clock_was_set_back_is_dead(
    make_mq: MakeMQ, queue_state: QueueState, seconds: float
) -> None:
    mq = make_mq(lease_seconds=60)
    send(mq, numbered(4), partitions=2)
    dead = mq.consumer("orders", "billing")
    receive(dead, 1)
    queue_state.set_clock_back(seconds)

    with make_mq(lease_seconds=60).consumer("orders", "billing") as consumer:
        received = receive(consumer, 4)

    assert sorted(values(received)) == [b"0", b"1", b"2", b"3"]
    described = [member for member in mq.admin.members("orders", "billing") if member.name == dead.name]
    assert all(member.heartbeat_seconds >= 0 for member in described)


def test_a_clock_that_was_adjusted_ends_no_lease(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq = make_mq(lease_seconds=60)
    send(mq, numbered(4))
    owner = mq.consumer("orders", "billing")
    receive(owner, 1)
    queue_state.set_clock_back(30)

    (member,) = mq.admin.members("orders", "billing")
    assert member.is_live
    assert mq.consumer("orders", "billing").poll(timeout=0) == []
    assert member.heartbeat_seconds == 0
    assert member.heartbeat_ahead_seconds > 25


def test_the_views_agree_with_the_library_about_who_is_alive(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq = make_mq(lease_seconds=60)
    send(mq, numbered(2))
    receive(mq.consumer("orders", "billing"), 1)

    alive = {}
    for seconds in (30, 100):  # 30 and 130 seconds ahead
        queue_state.set_clock_back(seconds)
        alive[seconds] = (
            [member.is_live for member in mq.admin.members("orders", "billing")],
            mq.admin.describe_group("orders", "billing").members != (),
            mq.admin.lag("orders", "billing")[0].owner is not None,
            queue_state.count("SELECT members FROM sqlmq_topic_stats"),
        )

    assert alive == {30: ([True], True, True, 1), 100: ([False], False, False, 0)}


def test_partitions_are_shared_out_at_once_among_members_that_joined_before_the_clock_was_set_back(
    make_mq: MakeMQ, queue_state: QueueState
) -> None:
    mq = make_mq(lease_seconds=60)
    send(mq, numbered(8), partitions=4)
    first = mq.consumer("orders", "billing")
    first.poll(timeout=0)
    queue_state._set_back(-600, member="joined_at", claim="changed_at")

    second = make_mq(lease_seconds=60).consumer("orders", "billing")

    def shares() -> list[int]:
        for consumer in (first, second):
            consumer.poll(timeout=0)
        return [len(first.partitions), len(second.partitions)]

    second.poll(timeout=0)
    queue_state._set_back(-600, member="joined_at")

    # While the second seems to have joined just now, the first would keep all for half a lease.
    until(lambda: shares() == [2, 2], "two partitions each")


@pytest.mark.parametrize("is_whole_row_ahead", [True, False])
def test_a_retry_from_before_the_clock_was_set_back_is_no_further_away_than_its_delay(
    mq: MQ, queue_state: QueueState, is_whole_row_ahead: bool
) -> None:
    send(mq, numbered(4, keys=2))
    # Of a moment that is ahead alone, only the longest delay is known.
    retry = Retry(max_attempts=5, backoff_seconds=0.01, max_delay_seconds=2 * HOUR if is_whole_row_ahead else 0.05)
    stop_after_failure(mq, retry)
    if is_whole_row_ahead:
        queue_state.set_clock_back(HOUR)
    else:
        queue_state._set_back(-HOUR, parked="due_at")

    summary = drain(mq.consumer("orders", "billing"), Recorder(), retry=retry)

    assert summary.handled == 4
    assert parked_rows(mq) == []


def stop_after_failure(mq: MQ, retry: Retry) -> None:
    """Let the attempt at message 0 fail, and end the run before the next one."""
    consumer = mq.consumer("orders", "billing")

    def handler(message: ReceivedMessage) -> None:
        if message.value == b"0":
            consumer.stop()
            raise ArithmeticError

    consumer.run(handler, retry=retry, handle_signals=False)


def test_transactions_serve_a_partition_next_that_was_served_before_the_clock_was_set_back(
    mq: MQ, queue_state: QueueState
) -> None:
    mq.create_topic("orders", 2)
    producer = mq.producer("orders")
    for partition in (0, 1):
        for number in range(4):
            producer.produce_with_partition(Message(b"%d" % number), partition)
    consumer = mq.consumer("orders", "billing")
    take_in_transaction(consumer)
    queue_state.set_clock_back(HOUR)

    partitions = [take_in_transaction(consumer) for _ in range(3)]

    assert set(partitions) == {0, 1}


def take_in_transaction(consumer: Consumer) -> int:
    with consumer.transaction(max_messages=1, timeout=0) as tx:
        (message,) = tx.messages
        return message.partition


def test_a_group_whose_activity_lies_ahead_is_not_taken_to_be_at_work(mq: MQ, queue_state: QueueState) -> None:
    send(mq, numbered(4))
    finish(mq.consumer("orders", "billing"), 2)
    queue_state.execute("DELETE FROM sqlmq_member")
    queue_state.set_clock_back(HOUR)

    problems = {problem.code: problem for problem in mq.admin.diagnose_group("orders", "billing", stuck_seconds=5)}

    assert "no-members" in problems


def test_doctor_says_that_the_clock_was_set_back(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq = make_mq()
    send(mq, numbered(4))
    finish(mq.consumer("orders", "billing"), 1)
    assert "clock-set-back" not in {problem.code for problem in mq.admin.diagnose()}
    queue_state.set_clock_back(HOUR)

    (found,) = (problem for problem in mq.admin.diagnose() if problem.code == "clock-set-back")

    assert (found.topic, found.group) == ("orders", "billing")
    assert float(str(found.details["seconds"])) == pytest.approx(HOUR, abs=60)


# --- Retention ---


topic = pytest.fixture(aged_topic)


def test_a_message_of_the_future_keeps_none_behind_it_that_is_too_old(topic: AgedTopic) -> None:
    topic.put(2, days_old=8)
    topic.put(1, days_old=-365)
    topic.put(2, days_old=8)
    topic.put(2, days_old=1)
    topic.keep(Retention(max_age_seconds=7 * DAY))

    topic.trim()

    assert topic.stored() == [5, 6]


def test_a_message_of_the_future_is_kept_while_none_behind_it_is_too_old(topic: AgedTopic) -> None:
    topic.put(2, days_old=8)
    topic.put(1, days_old=-365)
    topic.put(2, days_old=1)
    topic.keep(Retention(max_age_seconds=7 * DAY))

    topic.trim()

    assert topic.stored() == [2, 3, 4]


def test_a_group_of_the_far_future_protects_nothing(topic: AgedTopic) -> None:
    topic.put(4)
    topic.read("billing", 1)
    topic.let_pass("billing", days=-365)
    topic.keep(Retention(max_messages=1, group_expiry_seconds=7 * DAY))

    topic.trim()

    assert topic.stored() == [3]
