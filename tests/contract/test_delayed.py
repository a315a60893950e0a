"""Delayed messages: stored at once, in the log when they are due, taken back until then."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from sqlmq import DelayedMessage, Message, UnknownTopicError
from sqlmq.background import scheduler
from sqlmq.errors import (
    InvalidPartitionError,
    InvalidTopicError,
    MessageTooLargeError,
    MQClosedError,
    ProducerClosedError,
)
from sqlmq.operations import staging
from sqlmq.store import staged as staged_rows
from tests.support.delayed import FUTURE, LONG, PAST, Staged, look_now, without_polling
from tests.support.queue_state import QueueState
from tests.support.waiting import PATIENCE_SECONDS, at_once, receive, until, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from sqlmq import MQ, Producer
    from tests.conftest import DatabaseUnderTest, MakeMQ

EITHER = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
MESSAGES = [
    Message(b"\x00\xff", b"\xff\x00", {"a": "\u00e4\U0001f600\"'{},"}),
    Message(b"", b""),
    Message(b"no key"),
    Message(b"no headers", b"k", {}),
    Message(bytes(range(256)), b"k", {"": "", "null": "NULL"}),
]


def log(engine: Engine, database: DatabaseUnderTest, topic: str = "orders") -> list[str]:
    found = QueueState(engine, database.schema).texts(topic)
    return [value for values in found.values() for value in values]


@pytest.fixture
def mq(make_mq: MakeMQ) -> MQ:
    """A queue that looks for what is due twenty times a second, not once."""
    return make_mq(poll_max_seconds=0.05)


def facts(message: Message) -> tuple[bytes, bytes | None, dict[str, str]]:
    return message.value, message.key, dict(message.headers)


# --- Stored ---


@pytest.mark.pgbouncer
def test_a_delayed_message_is_in_the_log_when_it_is_due_and_not_before(mq: MQ, staged: Staged) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    producer.schedule(Message(b"later"), delay_seconds=LONG)
    producer.produce(Message(b"now"))
    look_now(mq)

    assert values(receive(consumer, 1)) == [b"now"]
    staged.make_due()
    assert values(receive(consumer, 1)) == [b"later"]
    assert len(staged) == 0


def test_a_delay_counts_from_now_by_the_databases_clock(mq: MQ, staged: Staged) -> None:
    producer = mq.producer("orders")

    before = staged.now()
    delayed = producer.schedule(Message(b"later", b"k"), delay_seconds=90.5)
    after = staged.now()

    # SQLite's clock has a grain of a millisecond.
    grain, delay = timedelta(milliseconds=1), timedelta(seconds=90.5)
    assert before - grain <= delayed.deliver_at - delay <= after + grain
    assert delayed.deliver_at.tzinfo is UTC
    assert (delayed.topic, delayed.key, delayed.value_bytes) == ("orders", b"k", 5)


def test_a_moment_is_kept_to_the_microsecond(mq: MQ) -> None:
    moment = datetime(2099, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))

    delayed = mq.producer("orders").schedule(Message(b""), deliver_at=moment)

    assert delayed.deliver_at == moment
    assert delayed.deliver_at.utcoffset() == timedelta(0)
    assert mq.admin.delayed("orders") == [delayed]


@pytest.mark.parametrize(
    "due",
    [
        {"delay_seconds": 0},
        {"delay_seconds": 0.0},
        {"deliver_at": PAST},
        {"deliver_at": datetime(1970, 1, 1, tzinfo=UTC)},
        {"deliver_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))},
    ],
    ids=str,
)
def test_what_is_due_already_is_delivered_at_once(mq: MQ, staged: Staged, due: dict[str, Any]) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    producer.schedule(Message(b"now"), **due)

    assert values(receive(consumer, 1)) == [b"now"]
    assert len(staged) == 0


def test_key_value_and_headers_arrive_as_they_were_given(mq: MQ, staged: Staged) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    producer.schedule_many(MESSAGES, delay_seconds=LONG)
    for message in MESSAGES:
        producer.schedule(message, deliver_at=FUTURE)
    staged.make_due()

    received = receive(consumer, 2 * len(MESSAGES))
    assert sorted(map(facts, received), key=repr) == sorted(map(facts, 2 * MESSAGES), key=repr)
    assert {type(message.timestamp) for message in received} == {datetime}


def test_a_key_decides_the_partition_as_always(mq: MQ, staged: Staged) -> None:
    mq.create_topic("orders", 5)
    producer = mq.producer("orders")
    messages = [Message(b"", b"key %d" % number) for number in range(20)]

    at_once_ = [producer.produce(message).partition for message in messages]
    one_by_one = [producer.schedule(message, delay_seconds=LONG).partition for message in messages]
    together = [delayed.partition for delayed in producer.schedule_many(messages, deliver_at=FUTURE)]

    assert one_by_one == together == at_once_
    consumer = mq.consumer("orders", "billing", start="latest")
    staged.make_due()
    assert sorted(message.partition for message in receive(consumer, 40)) == sorted(at_once_ * 2)


def test_messages_without_a_key_take_turns(mq: MQ) -> None:
    producer = mq.producer("orders")

    partitions = [producer.schedule(Message(b""), delay_seconds=LONG).partition for _ in range(6)]

    assert sorted(partitions) == [0, 0, 1, 1, 2, 2]


def test_a_partition_may_be_named(mq: MQ, staged: Staged) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    producer.schedule(Message(b"a", b"k"), partition=2, delay_seconds=LONG)
    producer.schedule(Message(b"b", b"k"), partition=1, deliver_at=FUTURE)
    staged.make_due()

    assert sorted((message.partition, message.value) for message in receive(consumer, 2)) == [(1, b"b"), (2, b"a")]


def test_many_messages_are_stored_together_and_keep_their_order(mq: MQ, staged: Staged) -> None:
    mq.create_topic("orders", 1)
    consumer = mq.consumer("orders", "billing")
    messages = [Message(b"%d" % number, b"k" if number % 3 else None) for number in range(1_201)]

    delayed = mq.producer("orders").schedule_many(messages, delay_seconds=LONG)

    assert len({one.deliver_at for one in delayed}) == 1
    assert [one.id for one in delayed] == sorted({one.id for one in delayed})
    assert mq.admin.delayed("orders") == delayed
    staged.make_due()
    assert values(receive(consumer, 1_201)) == values(messages)


def test_large_messages_are_stored_in_several_statements(mq: MQ, staged: Staged) -> None:
    mq.create_topic("orders", 1)
    messages = [Message(b"%d" % number * 1_000_000) for number in range(10)] * 4

    delayed = mq.producer("orders").schedule_many(messages, delay_seconds=LONG)

    assert [one.value_bytes for one in delayed] == [1_000_000] * 40
    assert len(staged) == 40


def test_no_messages_are_nothing(mq: MQ, staged: Staged) -> None:
    assert mq.producer("orders").schedule_many([], delay_seconds=LONG) == []
    assert len(staged) == 0


def test_it_says_what_it_is_and_gives_no_content_away(mq: MQ) -> None:
    delayed = mq.producer("orders").schedule(Message(b"secret", b"secret"), deliver_at=FUTURE)

    assert re.fullmatch(
        r"DelayedMessage\(id=\d+, topic='orders', partition=\d, deliver_at=.*, value_bytes=6\)", repr(delayed)
    )
    assert "secret" not in repr(delayed)
    assert {delayed} == {DelayedMessage(delayed.id, "orders", delayed.partition, FUTURE, b"secret", 6)}


# --- Refused ---


def test_the_farthest_moments_there_are_can_be_kept(mq: MQ) -> None:
    producer = mq.producer("orders")

    by_delay = producer.schedule(Message(b""), delay_seconds=9.5e9)
    by_moment = producer.schedule(Message(b""), deliver_at=datetime(9998, 12, 31, 23, 59, tzinfo=UTC))

    assert mq.admin.delayed("orders") == [by_delay, by_moment]
    assert by_delay.deliver_at.year > 2300


def test_what_could_not_be_sent_can_not_be_delayed(mq: MQ, make_mq: MakeMQ, staged: Staged) -> None:
    producer = mq.producer("orders")
    small: Producer = make_mq(max_message_bytes=10).producer("orders")
    not_a_message: Any = b"bytes"

    with pytest.raises(MessageTooLargeError):
        small.schedule(Message(b"x" * 11), delay_seconds=1)
    with pytest.raises(MessageTooLargeError):
        small.schedule_many([Message(b""), Message(b"x" * 11)], delay_seconds=1)
    with pytest.raises(InvalidPartitionError):
        producer.schedule(Message(b""), partition=3, delay_seconds=1)
    with pytest.raises(TypeError, match=r"a sqlmq\.Message, not bytes"):
        producer.schedule(not_a_message, delay_seconds=1)
    producer.close()
    with pytest.raises(ProducerClosedError):
        producer.schedule(Message(b""), delay_seconds=1)

    assert len(staged) == 0


def test_nothing_is_stored_for_a_topic_that_is_gone(mq: MQ, make_mq: MakeMQ, staged: Staged) -> None:
    producer = mq.producer("orders")
    make_mq().delete_topics("orders")

    for _ in range(2):
        with pytest.raises(UnknownTopicError):
            producer.schedule(Message(b""), delay_seconds=LONG)
    with pytest.raises(UnknownTopicError):
        producer.schedule_many([Message(b"", b"%d" % number) for number in range(10)], delay_seconds=LONG)

    assert len(staged) == 0
    mq.create_topic("orders", 1)
    delayed = producer.schedule(Message(b""), delay_seconds=LONG)
    assert mq.admin.delayed("orders") == [delayed]


# --- Moved ---


def test_messages_are_delivered_in_the_order_in_which_they_are_due(mq: MQ, staged: Staged) -> None:
    mq.create_topic("orders", 1)
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    for value, hours in ((b"c", 3), (b"a", 1), (b"d", 3), (b"b", 2)):
        producer.schedule(Message(value, b"k"), deliver_at=FUTURE + timedelta(hours=hours))

    staged.make_due()

    assert values(receive(consumer, 4)) == [b"a", b"b", b"c", b"d"]


def test_a_delayed_message_does_not_hold_back_later_ones_of_its_key(mq: MQ, staged: Staged) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    producer.schedule(Message(b"first", b"k"), delay_seconds=LONG)
    producer.produce(Message(b"second", b"k"))
    assert values(receive(consumer, 1)) == [b"second"]
    staged.make_due()

    (late,) = receive(consumer, 1)
    assert (late.value, late.offset) == (b"first", 1)


def test_a_process_without_consumers_moves_what_it_has_delayed_itself(
    mq: MQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    producer = mq.producer("orders")

    producer.schedule(Message(b"b", b"k"), delay_seconds=0.2)
    producer.schedule(Message(b"a", b"k"), delay_seconds=0.1)
    producer.schedule(Message(b"c", b"k"), deliver_at=datetime.now(UTC) + timedelta(seconds=0.3))

    until(lambda: sorted(log(engine, database)) == ["a", "b", "c"], "all in the log")


def test_who_has_looked_knows_when_the_next_message_is_due(make_mq: MakeMQ) -> None:
    with make_mq() as other:
        other.producer("orders").schedule_many([Message(b"a"), Message(b"b")], delay_seconds=0.4)
        other.producer("orders").schedule(Message(b"c"), delay_seconds=0.5)
    mq = without_polling(make_mq())

    consumer = mq.consumer("orders", "billing")

    assert sorted(values(receive(consumer, 3))) == [b"a", b"b", b"c"]


def test_who_has_consumers_finds_what_others_have_delayed(make_mq: MakeMQ) -> None:
    mq = make_mq(poll_max_seconds=0.1)
    consumer = mq.consumer("orders", "billing")
    until(lambda: mq._background.scheduler._next_check_at > 0, "the first look")

    with make_mq() as other:
        other.producer("orders").schedule(Message(b"a"), delay_seconds=0.1)

    assert values(receive(consumer, 1)) == [b"a"]


def test_a_mover_looks_as_often_as_idle_consumers_do_and_each_second_at_least(make_mq: MakeMQ) -> None:
    often, rarely = make_mq(poll_max_seconds=0.2), make_mq(poll_max_seconds=60.0)

    assert (often._background.scheduler._poll_seconds, rarely._background.scheduler._poll_seconds) == (0.2, 1.0)


def test_a_waiting_consumer_is_woken_by_a_message_that_becomes_due(make_mq: MakeMQ) -> None:
    mq = make_mq(poll_min_seconds=25, poll_max_seconds=PATIENCE_SECONDS)
    consumer, producer = mq.consumer("orders", "billing"), mq.producer("orders")
    until(lambda: consumer.poll(timeout=0) == [] and len(consumer.partitions) == 3, "all partitions")

    def delay() -> None:
        until(lambda: consumer._core.is_waiting, "the consumer waits")
        producer.schedule(Message(b"a"), delay_seconds=0.1)

    actions: list[Callable[[], Any]] = [lambda: consumer.consume(timeout=20).value, delay]
    assert at_once(actions)[0] == b"a"


def test_more_than_a_look_sees_is_moved_in_one_go(
    mq: MQ, make_mq: MakeMQ, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.operations.staging.FIND_MESSAGES", 10)
    monkeypatch.setattr("sqlmq.operations.staging.MOVE_MESSAGES", 7)
    producer = mq.producer("orders")
    producer.schedule_many([Message(b"", b"%d" % number) for number in range(100)], delay_seconds=LONG)
    staged.make_due()

    look_now(make_mq())

    assert len(staged) == 0


def test_large_messages_are_moved_a_few_at_a_time_and_in_their_order(
    mq: MQ, staged: Staged, engine: Engine, database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "MOVE_BYTES", 1_000)
    moved: list[int] = []
    take = staged_rows.lock_due

    def take_and_tell(*arguments: Any) -> staged_rows.DueBatch:
        taken = take(*arguments)
        moved.append(len(taken.ids))
        return taken

    monkeypatch.setattr(staged_rows, "lock_due", take_and_tell)
    values = [f"{number}".ljust(size) for number, size in enumerate([600, 600, 1, 5_000, 10, 10, 990, 1])]
    mq.producer("orders").schedule_many([Message(value.encode(), b"k") for value in values], delay_seconds=LONG)
    staged.make_due()

    look_now(mq)
    staged.until_all_moved()

    assert log(engine, database) == values
    assert [count for count in moved if count] == [2, 2, 3, 1]


@EITHER  # SQLite locks the file
def test_a_locked_partition_does_not_hide_others_behind_its_many_messages(
    mq: MQ,
    make_mq: MakeMQ,
    engine: Engine,
    staged: Staged,
    database: DatabaseUnderTest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sqlmq.operations.staging.FIND_MESSAGES", 10)
    monkeypatch.setattr("sqlmq.operations.staging.LOCK_SECONDS", 0.1)
    producer = mq.producer("orders")
    for _ in range(15):
        producer.schedule(Message(b"locked"), partition=0, delay_seconds=LONG)
    producer.schedule(Message(b"free"), partition=1, delay_seconds=LONG)
    prefix = f"{database.schema}." if database.schema else ""

    with engine.begin() as connection:
        connection.execute(text(f"SELECT 1 FROM {prefix}sqlmq_partition WHERE number = 0 FOR UPDATE"))
        staged.make_due()
        look_now(make_mq())
        assert log(engine, database) == ["free"]

    look_now(make_mq())
    assert len(staged) == 0


@EITHER  # SQLite locks the file
def test_a_message_whose_cancelling_was_rolled_back_is_moved_later(
    mq: MQ, engine: Engine, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.05)
    looks: list[staging.ScheduledBatch] = []
    move = staging.move

    def move_and_tell(*arguments: Any) -> staging.ScheduledBatch:
        looks.append(move(*arguments))
        return looks[-1]

    monkeypatch.setattr(staging, "move", move_and_tell)
    delayed = mq.producer("orders").schedule(Message(b"a"), delay_seconds=LONG)
    staged.make_due()
    with engine.connect() as connection:
        connection.execute(text(f"DELETE FROM {staged.table} WHERE id = {delayed.id >> 24}"))
        mq._background.scheduler.schedule(0.0)
        until(lambda: len(looks) > 0, "somebody at the partition")
        connection.rollback()

    staged.until_all_moved()
    assert looks[0].messages == 0


def test_a_queue_that_closes_moves_what_is_due_and_leaves_the_rest(
    make_mq: MakeMQ, engine: Engine, database: DatabaseUnderTest, staged: Staged
) -> None:
    with make_mq() as mq:
        producer = mq.producer("orders")
        producer.schedule(Message(b"waits"), delay_seconds=LONG)
        producer.schedule(Message(b"due"), delay_seconds=0)

    assert (log(engine, database), len(staged)) == (["due"], 1)


def test_a_queue_that_closes_does_not_move_without_end(
    make_mq: MakeMQ, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "MOVE_MESSAGES", 1)
    monkeypatch.setattr(scheduler, "_CLOSE_SECONDS", 0.0)
    with make_mq() as mq:
        mq.producer("orders").schedule_many([Message(b"", b"k")] * 500, delay_seconds=LONG)
        staged.make_due()
        mq._background.scheduler.schedule(0.0)

    assert len(staged) > 0


def test_deleting_a_topic_deletes_what_waits_for_it(mq: MQ, staged: Staged, caplog: pytest.LogCaptureFixture) -> None:
    mq.producer("invoices").schedule(Message(b"stays"), delay_seconds=LONG)
    delayed = mq.producer("orders").schedule(Message(b"goes"), delay_seconds=LONG)

    mq.delete_topics("orders")

    assert len(staged) == 1
    assert mq.admin.cancel_delayed(delayed.id) == []
    assert caplog.messages == []


def test_what_is_due_for_nobody_is_deleted_with_a_word(
    mq: MQ, engine: Engine, staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").schedule(Message(b"a"), delay_seconds=LONG)
    with engine.begin() as connection:  # as a transaction does that was open while the topic was deleted
        connection.execute(text(f"UPDATE {staged.table} SET partition_id = 999"))
    staged.make_due()

    with caplog.at_level(logging.WARNING, "sqlmq"):
        look_now(mq)

    assert len(staged) == 0
    assert caplog.messages == ["1 staged message(s) were deleted with their topic."]


# --- Listed and cancelled ---


def test_what_waits_is_listed_in_the_order_in_which_it_is_due(mq: MQ) -> None:
    producer = mq.producer("orders")
    mq.producer("invoices").schedule(Message(b""), delay_seconds=1)
    third = producer.schedule(Message(b"333"), deliver_at=FUTURE)
    first = producer.schedule(Message(b"1", b""), delay_seconds=LONG)
    second = producer.schedule(Message(b"22", b"\xff"), delay_seconds=2 * LONG)

    assert mq.admin.delayed("orders") == [first, second, third]
    assert [(one.key, one.value_bytes) for one in mq.admin.delayed("orders")] == [(b"", 1), (b"\xff", 2), (None, 3)]


def test_nothing_is_listed_where_there_is_nothing(mq: MQ) -> None:
    mq.create_topic("orders")

    assert mq.admin.delayed("orders") == []
    with pytest.raises(UnknownTopicError):
        mq.admin.delayed("invoices")
    with pytest.raises(InvalidTopicError):
        mq.admin.delayed("?")


def test_a_message_that_was_due_long_ago_can_be_cancelled_until_it_is_moved(
    mq: MQ, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler.Scheduler, "schedule", lambda *_: None)
    producer = mq.producer("orders")
    moments = [datetime(1970, 1, 1, tzinfo=UTC), datetime(1066, 10, 14, tzinfo=UTC), PAST]
    delayed = [producer.schedule(Message(b""), deliver_at=moment) for moment in moments]

    assert mq.admin.delayed("orders") == delayed
    assert mq.admin.cancel_delayed(*[one.id for one in delayed]) == [one.id for one in delayed]
    assert len(staged) == 0


def test_a_cancelled_message_is_never_delivered(mq: MQ, staged: Staged) -> None:
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
    kept = producer.schedule(Message(b"kept", b"k"), delay_seconds=LONG)
    cancelled = producer.schedule(Message(b"cancelled", b"k"), delay_seconds=LONG)

    assert mq.admin.cancel_delayed(cancelled.id) == [cancelled.id]

    assert mq.admin.delayed("orders") == [kept]
    staged.make_due()
    assert values(receive(consumer, 1)) == [b"kept"]
    assert consumer.poll(timeout=0) == []


def test_only_what_waits_is_cancelled(mq: MQ, staged: Staged) -> None:
    producer = mq.producer("orders")
    moved, *waiting = producer.schedule_many([Message(b"a")] * 3, delay_seconds=LONG)
    staged.make_due(moved.id)
    look_now(mq)

    ids = [waiting[1].id, moved.id, 12_345, waiting[0].id, waiting[1].id, 0, -1, 2**70]

    assert mq.admin.cancel_delayed(*ids) == [waiting[1].id, waiting[0].id]
    assert mq.admin.cancel_delayed(*ids) == mq.admin.cancel_delayed() == []


def test_very_many_messages_are_cancelled_at_once(mq: MQ, staged: Staged) -> None:
    delayed = mq.producer("orders").schedule_many([Message(b"")] * 2_500, delay_seconds=LONG)
    ids = [one.id for one in reversed(delayed)]

    assert mq.admin.cancel_delayed(*ids, *range(10**6, 10**6 + 40_000)) == ids
    assert len(staged) == 0


def test_messages_are_cancelled_by_their_ids_alone(mq: MQ) -> None:
    delayed = mq.producer("orders").schedule(Message(b""), delay_seconds=LONG)
    wrong: Any

    for wrong in (delayed, str(delayed.id), True, None):
        with pytest.raises(TypeError, match="id must be int"):
            mq.admin.cancel_delayed(wrong)
    assert mq.admin.delayed("orders") == [delayed]


def test_a_closed_mq_neither_lists_nor_cancels(mq: MQ) -> None:
    mq.create_topic("orders")
    mq.close()

    with pytest.raises(MQClosedError):
        mq.admin.delayed("orders")
    with pytest.raises(MQClosedError):
        mq.admin.cancel_delayed(1)


@EITHER
def test_what_is_staged_for_its_isolation_level_is_neither_listed_nor_cancelled(
    mq: MQ, engine: Engine, staged: Staged, database: DatabaseUnderTest
) -> None:
    mq.create_topic("orders", 1)
    prefix = f"{database.schema}." if database.schema else ""
    with engine.execution_options(isolation_level="SERIALIZABLE").begin() as connection:
        connection.execute(text(f"SELECT {prefix}sqlmq_produce('orders', NULL, 'published')"))
        (id_,) = connection.execute(text(f"SELECT id FROM {staged.table}")).scalars()

    assert mq.admin.delayed("orders") == []
    assert mq.admin.cancel_delayed(id_) == []
    assert len(staged) == 1


# --- Clocks and time zones ---

PARIS = ZoneInfo("Europe/Paris")


MOMENTS = {
    # Clocks go from 3 back to 2: half past two comes twice.
    datetime(2099, 10, 25, 0, 30, tzinfo=UTC): datetime(2099, 10, 25, 2, 30, tzinfo=PARIS, fold=0),
    datetime(2099, 10, 25, 1, 30, tzinfo=UTC): datetime(2099, 10, 25, 2, 30, tzinfo=PARIS, fold=1),
    # Clocks go from 2 to 3: half past two is not there; Python takes it for what it was before.
    datetime(2099, 3, 29, 1, 30, tzinfo=UTC): datetime(2099, 3, 29, 2, 30, tzinfo=PARIS),
    datetime(2099, 7, 1, 6, 15, tzinfo=UTC): datetime(2099, 7, 1, 12, tzinfo=ZoneInfo("Asia/Kathmandu")),
    datetime(2098, 12, 31, 10, tzinfo=UTC): datetime(2099, 1, 1, tzinfo=ZoneInfo("Pacific/Kiritimati")),
}
"""Moments in UTC, and the same as clocks elsewhere show them."""


def test_a_moment_of_any_time_zone_is_the_same_moment(mq: MQ) -> None:
    producer = mq.producer("orders")

    delayed = [producer.schedule(Message(b""), deliver_at=moment) for moment in MOMENTS.values()]

    assert [one.deliver_at for one in delayed] == [*MOMENTS]
    assert [one.deliver_at for one in mq.admin.delayed("orders")] == sorted(MOMENTS)


AHEAD = timedelta(days=365)


@pytest.fixture
def database_clock_ahead(
    engine: Engine, database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> timedelta:
    """A database whose clock is a year ahead of this process's, as far as the library can tell."""
    if not database.is_postgres:
        from sqlmq.dialects.sqlite import dialect

        monkeypatch.setattr(dialect, "NOW_US", f"({dialect.NOW_US} + {AHEAD // timedelta(microseconds=1)})")
        return AHEAD
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA clock"))
        for function in ("clock_timestamp", "transaction_timestamp"):
            connection.execute(
                text(
                    f"CREATE FUNCTION clock.{function}() RETURNS timestamptz LANGUAGE sql VOLATILE"
                    f" AS $$ SELECT pg_catalog.{function}() + interval '365 days' $$"
                )
            )
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET search_path = clock, pg_catalog, public"))
    engine.dispose()
    if database.kind == "pgbouncer":
        request.getfixturevalue("pgbouncer").forget(name)  # what it has pooled was begun before
    return AHEAD


def test_when_a_message_is_due_is_for_the_databases_clock_to_say(
    database_clock_ahead: timedelta, make_mq: MakeMQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    mq = make_mq()
    producer = mq.producer("orders")
    now = datetime.now(UTC)

    soon = producer.schedule(Message(b"soon"), delay_seconds=0.1)
    past = producer.schedule(Message(b"past by that clock"), deliver_at=now + database_clock_ahead / 2)
    later = producer.schedule(Message(b"later"), deliver_at=now + 2 * database_clock_ahead)

    assert abs(soon.deliver_at - now - database_clock_ahead) < timedelta(minutes=10)
    until(lambda: sorted(log(engine, database)) == ["past by that clock", "soon"], "those that are due in the log")
    assert past.deliver_at < soon.deliver_at < later.deliver_at
    assert mq.admin.delayed("orders") == [later]


@EITHER
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/St_Johns"])
def test_the_time_zone_of_a_server_changes_nothing(make_mq: MakeMQ, engine: Engine, staged: Staged, zone: str) -> None:
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET timezone = '{zone}'"))
        connection.execute(text(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'"))
    mq = make_mq()
    producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")

    delayed = producer.schedule(Message(b"later"), deliver_at=FUTURE)
    before = producer.schedule(Message(b"sooner"), delay_seconds=LONG)
    producer.schedule(Message(b"now"), deliver_at=datetime.now(UTC))

    assert (delayed.deliver_at, delayed.deliver_at.tzinfo) == (FUTURE, UTC)
    assert mq.admin.delayed("orders")[-2:] == [before, delayed]
    assert abs(before.deliver_at - datetime.now(UTC) - timedelta(seconds=LONG)) < timedelta(minutes=10)
    assert values(receive(consumer, 1)) == [b"now"]
    staged.make_due()
    assert sorted(values(receive(consumer, 2))) == [b"later", b"sooner"]
