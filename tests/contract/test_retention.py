"""Retention: what exceeds a topic's limits goes, what groups still need stays, and nothing is lost in silence."""

from __future__ import annotations

import logging
import threading
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import EvictedError, Message, ReceivedMessage, Retention, UnknownTopicError
from sqlmq.errors import MQClosedError, OffsetGapError
from sqlmq.operations import retention as operations_retention
from tests.support.failing import AT_ONCE, MUCH_LATER, GroupRunner, Handler, produce
from tests.support.retention import DAY, AgedTopic, aged_topic, take
from tests.support.waiting import at_once, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest, MakeMQ

WEEK = Retention(max_age_seconds=7 * DAY)


topic = pytest.fixture(aged_topic)


# --- Limits ---


def test_without_limits_everything_stays(topic: AgedTopic) -> None:
    topic.put(10, days_old=1000)

    assert topic.trim() == 0
    assert topic.stored() == list(range(10))


def test_messages_older_than_seconds_go(topic: AgedTopic) -> None:
    topic.put(5, days_old=8)
    topic.put(3, days_old=6)
    topic.keep(WEEK)

    assert topic.trim() == 5
    assert topic.start == 5
    assert topic.stored() == [5, 6, 7]


def test_only_the_newest_messages_stay(topic: AgedTopic) -> None:
    topic.put(10)
    topic.keep(Retention(max_messages=4))

    assert topic.trim() == 6
    assert topic.stored() == [6, 7, 8, 9]


def test_the_oldest_go_while_there_are_too_many_bytes(topic: AgedTopic) -> None:
    topic.put(10, value=b"x" * 97)  # and a key of 3
    topic.keep(Retention(max_bytes=450))

    assert topic.trim() == 6
    assert topic.stored() == [6, 7, 8, 9]


def test_bytes_are_counted_on_as_messages_come_and_go(topic: AgedTopic) -> None:
    topic.keep(Retention(max_bytes=450, max_messages=100))
    kept = []
    for size in (97, 97, 397, 17):
        topic.put(5, value=b"x" * size)
        topic.trim()
        kept.append(topic.stored())

    # Of the large ones, of 400 each, one fits; of the small ones, of 20, all five with it would be 500.
    assert kept == [[1, 2, 3, 4], [6, 7, 8, 9], [14], [15, 16, 17, 18, 19]]


def test_bytes_are_counted_anew_after_a_time_without_that_limit(topic: AgedTopic) -> None:
    topic.put(10, value=b"x" * 97)
    for retention in (Retention(max_bytes=900), Retention(max_messages=5), Retention(max_bytes=400)):
        topic.keep(retention)
        topic.trim()

    assert topic.stored() == [6, 7, 8, 9]


def test_what_exceeds_any_limit_goes(topic: AgedTopic) -> None:
    topic.put(5, days_old=8)
    topic.put(5, value=b"x" * 97)
    topic.keep(Retention(max_age_seconds=7 * DAY, max_bytes=300, max_messages=9))

    topic.trim()

    assert topic.stored() == [7, 8, 9]


def test_a_message_that_is_older_than_one_before_it_waits_for_that(topic: AgedTopic) -> None:
    topic.put(2, days_old=8)
    topic.put(1)
    topic.put(2, days_old=8)
    topic.keep(WEEK)

    topic.trim()

    assert topic.stored() == [2, 3, 4]


def test_a_round_with_nothing_to_do_says_so(topic: AgedTopic) -> None:
    topic.put(3)
    topic.keep(Retention(max_age_seconds=DAY, max_bytes=1000, max_messages=10))

    assert topic.mq.admin.apply_retention() == []


def test_topics_without_limits_are_left_alone_by_a_round_for_all(topic: AgedTopic, mq: MQ) -> None:
    mq.producer("invoices").produce(Message(b"1"))
    topic.put(3)
    topic.keep(Retention(max_messages=1))

    (trimmed,) = mq.admin.apply_retention()

    assert (trimmed.topic, trimmed.partition, trimmed.start_offset, trimmed.messages) == ("orders", 0, 2, 2)
    assert mq.admin.describe_topic("invoices").messages == 1


def test_limits_can_be_given_when_a_topic_is_made_and_taken_away_later(mq: MQ) -> None:
    mq.create_topic("orders", 1, retention=WEEK)
    seen = mq.admin.describe_topic("orders").retention

    mq.admin.set_retention("orders", Retention())

    assert seen == WEEK
    assert mq.admin.describe_topic("orders").retention == Retention()


def test_retention_of_an_unknown_topic_is_refused(mq: MQ) -> None:
    for act in (
        lambda: mq.admin.set_retention("orders", WEEK),
        lambda: mq.admin.apply_retention("orders"),
        lambda: mq.admin.evictions("orders"),
    ):
        with pytest.raises(UnknownTopicError):
            act()


def test_a_retention_has_to_be_one(mq: MQ) -> None:
    mq.create_topic("orders")

    with pytest.raises(TypeError, match="Retention"):
        mq.admin.set_retention("orders", 7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Retention"):
        mq.create_topic("orders", retention=7)  # type: ignore[arg-type]


def test_a_closed_mq_trims_nothing(mq: MQ) -> None:
    mq.close()

    with pytest.raises(MQClosedError):
        mq.admin.apply_retention()


# --- What comes after ---


def test_offsets_go_on_after_everything_was_deleted(topic: AgedTopic) -> None:
    topic.put(5, days_old=8)
    topic.keep(WEEK)
    topic.trim()

    result = topic.producer.produce(Message(b"next"))

    assert (topic.start, result.offset) == (5, 5)
    assert topic.stored() == [5]


def test_a_new_group_begins_with_the_oldest_message_kept(topic: AgedTopic, mq: MQ) -> None:
    topic.put(10)
    topic.keep(Retention(max_messages=3))
    topic.trim()

    assert take(mq.consumer("orders", "billing"), 3) == [7, 8, 9]


def test_deleting_a_topic_leaves_nothing_of_what_was_to_be_deleted(
    topic: AgedTopic, mq: MQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic.put(10)
    topic.keep(Retention(max_messages=3))
    with monkeypatch.context() as patch:
        patch.setattr(operations_retention, "delete", lambda *_: None)
        topic.trim()
    assert topic.count() == 10

    mq.delete_topics("orders")

    assert topic.count() == 0


# --- Protection ---


def test_what_a_group_has_not_committed_stays(topic: AgedTopic) -> None:
    topic.put(10, days_old=8)
    topic.read("billing", 4)
    topic.keep(WEEK)

    assert topic.trim() == 4
    assert topic.stored() == [4, 5, 6, 7, 8, 9]


def test_the_slowest_group_counts(topic: AgedTopic) -> None:
    topic.put(10)
    topic.read("fast", 8)
    topic.read("slow", 2)
    topic.keep(Retention(max_messages=1))

    topic.trim()

    assert topic.start == 2


def test_a_group_that_has_committed_nothing_protects_from_where_it_starts(topic: AgedTopic, mq: MQ) -> None:
    topic.put(10, days_old=8)
    mq.consumer("orders", "billing")
    topic.keep(WEEK)

    assert topic.trim() == 0


def test_a_group_that_starts_at_the_end_protects_only_what_comes_after(topic: AgedTopic, mq: MQ) -> None:
    topic.put(10)
    mq.consumer("orders", "billing", start="latest")
    topic.put(2)
    topic.keep(Retention(max_messages=1))

    topic.trim()

    assert topic.start == 10


def test_what_is_committed_later_goes_later(topic: AgedTopic, mq: MQ) -> None:
    topic.put(10, days_old=8)
    topic.keep(WEEK)
    consumer = mq.consumer("orders", "billing")
    starts = []
    for count in (3, 7):
        take(consumer, count)
        topic.trim()
        starts.append(topic.start)

    assert starts == [3, 10]


def test_a_group_without_members_protects_until_it_expires(topic: AgedTopic) -> None:
    topic.put(10)
    topic.read("billing", 2)
    topic.keep(Retention(max_messages=1, group_expiry_seconds=3 * DAY))
    starts = []
    for days in (2.9, 3.1):
        topic.let_pass("billing", days=days)
        topic.trim()
        starts.append(topic.start)

    assert starts == [2, 9]


def test_a_live_group_never_expires(topic: AgedTopic, make_mq: MakeMQ) -> None:
    topic.put(10)
    consumer = make_mq(lease_seconds=1e6).consumer("orders", "billing")
    topic.let_pass("billing", days=8)
    topic.keep(Retention(max_messages=1))

    topic.trim()

    assert topic.start == 0
    assert not consumer.closed


@pytest.mark.parametrize("sign", ["sqlmq_claim SET changed_at", "sqlmq_group_offset SET committed_at"])
def test_a_commit_or_a_claim_handed_back_is_a_sign_of_life(
    topic: AgedTopic, sign: str, database: DatabaseUnderTest
) -> None:
    topic.put(10)
    topic.read("billing", 2)
    topic.keep(Retention(max_messages=1))
    topic.let_pass("billing", days=8)
    now = (
        "clock_timestamp()" if database.is_postgres else "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    )
    topic.state.execute(f"UPDATE {sign} = {now}")

    topic.trim()

    assert topic.start == 2


def test_an_expired_group_loses_exactly_what_it_had_not_read_and_the_log_says_so(
    topic: AgedTopic, caplog: pytest.LogCaptureFixture
) -> None:
    topic.put(10)
    topic.read("billing", 2)
    topic.let_pass("billing", days=8)
    topic.keep(Retention(max_messages=4))

    topic.trim()

    assert topic.losses() == [("billing", "unread", 2, 6)]
    (record,) = [one for one in caplog.records if one.name == "sqlmq.background"]
    assert record.levelno == logging.WARNING
    assert "'billing' has lost the messages orders/0@2 to 5 unread" in record.message


def test_losses_that_follow_each_other_are_told_as_one(topic: AgedTopic) -> None:
    topic.put(10)
    topic.read("billing", 2)
    topic.let_pass("billing", days=8)
    for messages in (6, 4, 1):
        topic.keep(Retention(max_messages=messages))
        topic.trim()

    (eviction,) = topic.mq.admin.evictions("orders")

    assert (eviction.start_offset, eviction.end_offset, eviction.messages) == (2, 9, 7)
    assert (eviction.topic, eviction.partition) == ("orders", 0)


def test_without_protection_groups_lose_what_exceeds_the_limits(topic: AgedTopic, mq: MQ) -> None:
    topic.put(10)
    mq.consumer("orders", "billing")
    topic.keep(Retention(max_messages=4, protect_groups=False))

    topic.trim()

    assert topic.start == 6
    assert topic.losses() == [("billing", "unread", 0, 6)]


def test_after_max_seconds_protected_messages_go_and_the_log_says_which(
    topic: AgedTopic, mq: MQ, caplog: pytest.LogCaptureFixture
) -> None:
    topic.put(4, days_old=31)
    topic.put(4, days_old=8)
    topic.put(2)
    mq.consumer("orders", "new")
    topic.read("billing", 2)
    topic.read("audit", 6)
    topic.keep(Retention(max_age_seconds=7 * DAY, protect_max_seconds=30 * DAY))

    topic.trim()

    assert topic.start == 4
    assert sorted(topic.losses()) == [("billing", "unread", 2, 4), ("new", "unread", 0, 4)]
    records = [one for one in caplog.records if one.name == "sqlmq.background"]
    assert [one.levelno for one in records] == [logging.ERROR] * 2
    assert any("'billing' has lost the messages orders/0@2 to 3 unread" in one.message for one in records)


def test_max_seconds_deletes_nothing_that_is_within_the_limits(topic: AgedTopic, mq: MQ) -> None:
    topic.put(10, days_old=100)
    mq.consumer("orders", "billing")
    topic.keep(Retention(max_messages=7, protect_max_seconds=30 * DAY))

    topic.trim()

    assert topic.start == 3


# --- What a group has set aside ---


@pytest.fixture
def runner(database: DatabaseUnderTest, topic: AgedTopic) -> Iterator[GroupRunner]:
    del topic
    runner = GroupRunner(database)
    yield runner
    runner.mq.close()


def test_a_parked_message_keeps_the_log_from_there_on(topic: AgedTopic, mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:1", "b:2", "a:bad", "b:3", "a:4")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(mq.admin.parked("orders", "billing").list("waiting")) == 2, "both set aside")
        until(lambda: mq.admin.describe_group("orders", "billing").lag == 0, "everything read")
        topic.keep(Retention(max_messages=1))

        topic.trim()

        assert topic.stored() == [2, 3, 4]


def test_a_dead_letter_keeps_the_log_until_it_is_discarded(topic: AgedTopic, mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:1", "a:bad", "a:2", "a:3")
    runner.run(Handler(b"bad"), retry=AT_ONCE)
    topic.keep(Retention(max_messages=1))
    topic.trim()
    before = topic.start

    mq.admin.parked("orders", "billing").discard(partition=0, offset=1)
    topic.trim()

    assert (before, topic.start) == (1, 3)


def test_after_max_seconds_a_dead_letter_goes_and_the_log_says_so(
    topic: AgedTopic, mq: MQ, runner: GroupRunner, caplog: pytest.LogCaptureFixture
) -> None:
    produce(mq, "a:1", "a:bad", "a:2", "a:3")
    runner.run(Handler(b"bad"), retry=AT_ONCE)
    topic.keep(Retention(max_messages=1, protect_max_seconds=30 * DAY))
    topic.state.execute("UPDATE sqlmq_message SET created_at = (SELECT min(created_at) FROM sqlmq_topic)")
    old = (
        "created_at - interval '31 days'"
        if "postgres" in runner.mq.engine.dialect.name
        else "created_at - 2678400000000"
    )
    topic.state.execute(f"UPDATE sqlmq_message SET created_at = {old}")

    topic.trim()

    assert topic.stored() == [3]
    assert topic.losses() == [("billing", "parked", 1, 2)]
    assert mq.admin.parked("orders", "billing").list() == []
    (record,) = [one for one in caplog.records if one.name == "sqlmq.background"]
    assert record.levelno == logging.ERROR
    assert "lost the parked messages orders/0@1 to 1" in record.message


# --- A reader that has lost something ---


def lose(topic: AgedTopic, *, read: int = 2, kept: int = 4) -> None:
    """Have the group billing, which has read some, lose what follows up to the last."""
    topic.put(10)
    topic.read("billing", read)
    topic.let_pass("billing", days=8)
    topic.keep(Retention(max_messages=kept))
    topic.trim()


def test_reading_what_was_evicted_is_an_error_that_names_it_each_time(topic: AgedTopic, mq: MQ) -> None:
    lose(topic)
    consumer = mq.consumer("orders", "billing")

    for _ in range(2):
        with pytest.raises(EvictedError, match=r"orders/0@2 to 5.*'billing'.*on_evicted='earliest'") as caught:
            consumer.poll(timeout=5)
        assert (caught.value.topic, caught.value.group, caught.value.partition) == ("orders", "billing", 0)
        assert (caught.value.start, caught.value.end) == (2, 6)

    assert mq.admin.describe_group("orders", "billing").partitions[0].position == 2


def test_a_reader_may_go_on_with_the_earliest_and_is_told_what_it_lost(
    topic: AgedTopic, mq: MQ, caplog: pytest.LogCaptureFixture
) -> None:
    lose(topic)
    consumer = mq.consumer("orders", "billing", on_evicted="earliest")

    assert take(consumer, 4) == [6, 7, 8, 9]
    assert mq.admin.describe_group("orders", "billing").lag == 0
    (said,) = [one.message for one in caplog.records if one.name == "sqlmq.consumer"]
    assert "orders/0@2 to 5" in said
    assert "goes on at offset 6" in said


def test_a_reader_learns_of_it_even_if_the_log_is_empty(topic: AgedTopic, mq: MQ) -> None:
    topic.put(10, days_old=8)
    topic.read("billing", 2)
    topic.let_pass("billing", days=8)
    topic.keep(WEEK)
    topic.trim()

    with mq.consumer("orders", "billing") as strict, pytest.raises(EvictedError, match="orders/0@2 to 9"):
        strict.poll(timeout=0)
    with mq.consumer("orders", "billing", on_evicted="earliest") as patient:
        assert patient.poll(timeout=0) == []

    assert mq.admin.describe_group("orders", "billing").lag == 0


def test_a_group_that_had_read_nothing_learns_what_it_lost(topic: AgedTopic, mq: MQ) -> None:
    mq.consumer("orders", "billing").close()
    topic.put(10)
    topic.let_pass("billing", days=8)
    topic.keep(Retention(max_messages=4))
    topic.trim()

    with pytest.raises(EvictedError, match="orders/0@0 to 5"):
        mq.consumer("orders", "billing").poll(timeout=5)


def test_a_group_that_stays_behind_protects_what_is_left_and_never_moves_the_start_back(
    topic: AgedTopic, mq: MQ
) -> None:
    lose(topic)
    topic.keep(Retention(max_messages=1, max_bytes=1))
    with mq.consumer("orders", "billing") as consumer, pytest.raises(EvictedError):
        consumer.poll(timeout=5)
    topic.put(2)

    assert topic.trim() == 0
    assert topic.start == 6
    assert topic.stored() == list(range(6, 12))


def test_a_loop_ends_with_the_error(topic: AgedTopic, mq: MQ) -> None:
    lose(topic)

    with pytest.raises(EvictedError):
        next(iter(mq.consumer("orders", "billing")))


def test_a_run_ends_with_the_error_or_goes_on(topic: AgedTopic, mq: MQ) -> None:
    lose(topic)
    seen: list[int] = []

    def handle(message: ReceivedMessage) -> None:
        seen.append(message.offset)

    with pytest.raises(EvictedError):
        mq.consumer("orders", "billing").run(handle, idle_seconds=0, handle_signals=False)
    assert seen == []
    mq.consumer("orders", "billing", on_evicted="earliest").run(handle, idle_seconds=0, handle_signals=False)

    assert seen == [6, 7, 8, 9]


def test_a_transaction_raises_or_goes_on(topic: AgedTopic, mq: MQ, caplog: pytest.LogCaptureFixture) -> None:
    lose(topic)
    with mq.consumer("orders", "billing") as strict, pytest.raises(EvictedError, match="orders/0@2 to 5"):
        strict.transaction(timeout=5).__enter__()

    with mq.consumer("orders", "billing", on_evicted="earliest") as patient:
        with patient.transaction(timeout=5) as tx:
            offsets = [message.offset for message in tx.messages]
        with patient.transaction(timeout=0) as tx:
            assert list(tx.messages) == []

    assert offsets == [6, 7, 8, 9]
    assert mq.admin.describe_group("orders", "billing").lag == 0
    assert any("orders/0@2 to 5" in one.message for one in caplog.records if one.name == "sqlmq.consumer")


def test_a_hole_that_retention_has_not_made_is_still_another_error(topic: AgedTopic, mq: MQ) -> None:
    topic.put(5)
    topic.state.execute("DELETE FROM sqlmq_message WHERE msg_offset < 2")

    with pytest.raises(OffsetGapError):
        mq.consumer("orders", "billing", on_evicted="earliest").poll(timeout=5)


def test_an_unknown_policy_is_refused(mq: MQ) -> None:
    with pytest.raises(ValueError, match="on_evicted"):
        mq.consumer("orders", "billing", on_evicted="latest")  # type: ignore[arg-type]


# --- Steps, crashes, others ---


class CrashError(Exception):
    """The process is gone at this point."""


@pytest.mark.sync_only("a round is the same with asyncio")
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("survived", range(8))
def test_a_round_that_ends_anywhere_is_finished_by_the_next(
    topic: AgedTopic, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    topic.put(25)
    topic.read("billing", 22)
    topic.keep(Retention(max_messages=4, max_bytes=1000))
    monkeypatch.setattr(operations_retention, "DELETE_MESSAGES", 10)
    steps = 0

    def dying(step: Any) -> Any:
        def run(*arguments: Any) -> Any:
            nonlocal steps
            done = step(*arguments)
            steps += 1
            if steps > survived:
                raise CrashError  # with everything done and nothing committed
            return done

        return run

    with monkeypatch.context() as patch:
        for name in ("plan", "advance", "delete", "groups_losing_parked"):
            patch.setattr(operations_retention, name, dying(getattr(operations_retention, name)))
        crashed = []
        try:
            topic.trim()
        except ExceptionGroup as group:
            crashed = [type(error) for error in group.exceptions]
    after_crash = topic.stored()
    start = topic.start

    topic.trim()

    assert crashed == ([CrashError] if survived < 7 else [])
    assert after_crash == list(range(25 - len(after_crash), 25))
    assert start in (0, 21)
    assert len(after_crash) >= 25 - start
    assert topic.start == 21
    assert topic.stored() == [21, 22, 23, 24]
    assert topic.trim() == 0


def test_much_is_deleted_in_several_transactions(topic: AgedTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations_retention, "DELETE_MESSAGES", 10)
    monkeypatch.setattr(operations_retention, "_WINDOW", 7)
    topic.put(95, days_old=8)
    topic.put(5)
    topic.keep(Retention(max_age_seconds=7 * DAY, max_bytes=10**6))

    assert topic.trim() == 95
    assert topic.stored() == [95, 96, 97, 98, 99]


def test_a_round_goes_so_far_and_the_next_goes_on(topic: AgedTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations_retention, "ADVANCE_MESSAGES", 30)
    topic.put(100, value=b"x" * 7)
    topic.keep(Retention(max_bytes=100))

    deleted: list[int] = []
    while not deleted or deleted[-1]:
        deleted.append(topic.trim())

    assert sum(deleted) == 90
    assert max(deleted) == 30
    assert len(topic.stored()) == 10


def test_many_rounds_at_once_delete_everything_once(
    topic: AgedTopic, make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations_retention, "DELETE_MESSAGES", 10)
    topic.put(200)
    topic.read("billing", 150)
    topic.let_pass("billing", days=8)
    topic.keep(Retention(max_messages=10, max_bytes=10**6))
    queues = [make_mq() for _ in range(4)]

    rounds = at_once(lambda mq=mq: mq.admin.apply_retention("orders") for mq in queues)  # type: ignore[misc]
    topic.trim()

    assert sum(trimmed.messages for trimmed in chain.from_iterable(rounds)) <= 190
    assert topic.stored() == list(range(190, 200))
    assert topic.losses() == [("billing", "unread", 150, 190)]


@pytest.mark.pgbouncer
def test_rounds_among_producers_and_consumers_lose_nothing(
    topic: AgedTopic, make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations_retention, "DELETE_MESSAGES", 7)
    topic.keep(Retention(max_messages=5))
    consumer = topic.mq.consumer("orders", "billing")
    total, stopped = 600, threading.Event()
    maintaining = make_mq()

    def produce_all() -> list[int]:
        offsets = []
        for _ in range(total // 20):
            offsets += [result.offset for result in topic.producer.produce_many([Message(b"x")] * 20)]
        return offsets

    def consume_all() -> list[int]:
        try:
            seen: list[int] = []
            while len(seen) < total:
                seen += take(consumer, 20)
            return seen
        finally:
            stopped.set()

    def trim_on() -> list[int]:
        while not stopped.is_set():
            maintaining.admin.apply_retention("orders")
        return []

    produced, consumed, _ = at_once([produce_all, consume_all, trim_on])
    topic.trim()

    assert produced == list(range(total))
    assert consumed == list(range(total))
    assert topic.stored() == list(range(total - 5, total))
    assert topic.losses() == []


def test_a_group_that_joins_after_the_plan_is_not_passed_over(
    topic: AgedTopic, mq: MQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic.put(10)
    topic.keep(Retention(max_messages=4))
    plan = operations_retention.plan

    def planned_just_before(*arguments: Any) -> Any:
        planned = plan(*arguments)
        mq.consumer("orders", "new")
        return planned

    with monkeypatch.context() as patch:
        patch.setattr(operations_retention, "plan", planned_just_before)
        topic.trim()

    assert topic.start == 0
    assert topic.stored() == list(range(10))
