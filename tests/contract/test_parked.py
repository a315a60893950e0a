"""Parked messages: looked at, retried, discarded, copied, while a group is run and while it is not."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlmq import Message, ReceivedMessage, UnknownTopicError
from sqlmq.errors import (
    InvalidMessageError,
    InvalidPartitionError,
    MessageTooLargeError,
    MQClosedError,
    NotParkedError,
    UnknownGroupError,
)
from sqlmq.operations.admin import parked as admin_parked
from sqlmq.store import parked as store_parked
from tests.support.failing import AT_ONCE, MUCH_LATER, ONCE, GroupRunner, Handler, produce
from tests.support.waiting import receive, until, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from sqlmq import MQ, Parked
    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.queue_state import QueueState


@pytest.fixture
def parked(mq: MQ, runner: GroupRunner) -> Parked:
    del runner
    return mq.admin.parked("orders", "billing")


def offsets(parked: Parked, **which: Any) -> list[int]:
    return [one.offset for one in parked.list(**which)]


def position(mq: MQ) -> int:
    return mq.admin.describe_group("orders", "billing").partitions[0].position


def _fail(_message: ReceivedMessage) -> None:
    raise ValueError


# --- Looked at ---


def test_a_dead_letter_is_listed_with_what_is_known_about_it(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:good", "a:bad")
    runner.run(Handler(b"bad"), retry=AT_ONCE)

    (letter,) = parked.list()

    assert (letter.topic, letter.group, letter.partition, letter.offset) == ("orders", "billing", 0, 1)
    assert (letter.key, letter.state, letter.attempts) == (b"a", "dead", 3)
    assert (letter.error_type, letter.error) == ("ValueError", "no bad")
    assert letter.due_at is None
    assert letter.first_failed_at is not None
    assert letter.last_failed_at is not None
    assert letter.first_failed_at < letter.last_failed_at
    assert abs(datetime.now(UTC) - letter.last_failed_at) < timedelta(minutes=5)
    assert letter.parked_at.tzinfo is UTC


def test_the_first_of_a_key_is_due_and_the_others_wait_behind_it(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad", "b:good", "a:behind")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(parked.list("waiting")) == 2, "both set aside")

    first, second = parked.list()

    assert first.due_at is not None
    assert timedelta(seconds=500) < first.due_at - datetime.now(UTC) <= timedelta(seconds=1000)
    assert (first.offset, first.attempts, first.error) == (0, 1, "no bad")
    assert (second.offset, second.attempts, second.error, second.last_failed_at) == (2, 0, None, None)


def test_the_list_can_be_narrowed_down(mq: MQ, runner: GroupRunner) -> None:
    mq.create_topic("many", 2)
    for number in range(2):
        mq.producer("many").produce_with_partition(Message(b"bad", b"a"), number)
    mq.producer("many").produce_with_partition(Message(b"bad", b"b"), 1)
    runner.mq.consumer("many", "billing").run(Handler(b"bad"), retry=ONCE, idle_seconds=0)

    of_many = mq.admin.parked("many", "billing")

    assert [one.place for one in of_many.list()] == [(0, 0), (1, 0), (1, 1)]
    assert [one.place for one in of_many.list(partition=1)] == [(1, 0), (1, 1)]
    assert [one.place for one in of_many.list(key=b"a")] == [(0, 0), (1, 0)]
    assert [one.place for one in of_many.list("dead", key=b"b")] == [(1, 1)]
    assert of_many.list("waiting") == []
    assert of_many.list(key=b"") == []


def test_the_list_comes_in_pages(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, *(f"{number}:bad" for number in range(5)))
    runner.run(Handler(b"bad"), retry=ONCE)

    pages = []
    after = None
    while page := parked.list(limit=2, after=after):
        pages.append([one.offset for one in page])
        after = page[-1].place

    assert pages == [[0, 1], [2, 3], [4]]


def test_one_message_is_shown_with_its_traceback_and_itself(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    mq.producer("orders").produce(Message(b"bad\xff", b"a", {"currency": "EUR"}))

    def fail(message: ReceivedMessage) -> None:
        raise KeyError(message.headers["currency"])

    runner.run(fail, retry=ONCE)

    shown = parked.get(0, 0)

    assert shown.error_type == "KeyError"
    assert shown.traceback is not None
    assert 'raise KeyError(message.headers["currency"])' in shown.traceback
    assert shown.message is not None
    assert (shown.message.value, shown.message.key, shown.message.offset) == (b"bad\xff", b"a", 0)
    assert dict(shown.message.headers) == {"currency": "EUR"}
    assert shown.message.timestamp is not None


def test_an_error_whose_text_no_database_can_keep_is_kept_as_far_as_it_can(
    mq: MQ, runner: GroupRunner, parked: Parked, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is logged can't pass from one process of a test run to the other either.
    monkeypatch.setattr(logging.getLogger("sqlmq.consumer"), "disabled", True)
    produce(mq, "a:bad")

    def fail(_message: ReceivedMessage) -> None:
        complaint = "no file \udcff\x00"
        raise ValueError(complaint)

    runner.run(fail, retry=ONCE)

    assert parked.get(0, 0).error == "no file \\udcff"


def test_a_message_that_is_in_the_log_no_more_is_shown_without_itself(
    mq: MQ, runner: GroupRunner, parked: Parked, queue_state: QueueState
) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)
    queue_state.execute("DELETE FROM sqlmq_message")

    assert parked.get(0, 0).message is None
    assert parked.move_to("elsewhere", everything=True) == []
    assert offsets(parked) == [0]


def test_a_message_that_is_not_parked_is_an_error_that_says_so(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:good")
    runner.run(Handler())

    with pytest.raises(NotParkedError, match="sqlmq parked list orders --group billing") as raised:
        parked.get(0, 0)

    assert (raised.value.topic, raised.value.group) == ("orders", "billing")
    assert (raised.value.partition, raised.value.offset) == (0, 0)
    assert isinstance(raised.value, LookupError)


def test_a_blocked_key_tells_what_waits_and_for_what(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad", "b:bad", "c:good", "a:behind", "a:behind too", "bad")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(parked.list("waiting")) == 5, "all set aside")

    a, b = parked.blocked_keys()

    assert (a.topic, a.group, a.partition, a.key) == ("orders", "billing", 0, b"a")
    assert (a.messages, a.first_offset, a.state, a.attempts) == (3, 0, "waiting", 1)
    assert a.due_at == parked.list()[0].due_at
    assert a.blocked_since == parked.list()[0].parked_at
    assert (b.key, b.messages, b.first_offset) == (b"b", 1, 1)
    assert parked.blocked_keys(limit=1) == [a]
    assert parked.blocked_keys(limit=1, after=a.place) == [b]
    assert parked.blocked_keys(after=b.place) == []


def test_a_dead_letter_blocks_no_key(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad", "a:good")

    runner.run(Handler(b"bad"), retry=ONCE)

    assert parked.blocked_keys() == []


def test_a_run_that_is_to_end_when_nothing_comes_does_not_wait_for_a_decision(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad", "b:behind")

    runner.run(Handler(b"bad"), retry=ONCE, on_failure="stop")

    assert [(one.offset, one.state) for one in parked.list()] == [(0, "stopped")]


# --- Retried ---


@pytest.mark.pgbouncer
def test_dead_letters_of_a_key_are_retried_in_order_and_before_what_came_later(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:1", "b:1", "a:2", "a:3")
    runner.run(Handler(b"1", b"2"), retry=ONCE)
    produce(mq, "a:4")
    handler = Handler()

    retried = parked.retry(key=b"a")
    runner.run(handler)

    assert retried == 2
    assert handler.given == [b"1", b"2", b"4"]
    assert offsets(parked) == [1]


def test_a_retried_dead_letter_comes_before_those_of_its_key_that_wait(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:first")
    runner.run(Handler(b"first"), retry=ONCE)
    produce(mq, "a:second", "a:third")
    with runner.running(Handler(b"second"), retry=MUCH_LATER):
        until(lambda: len(parked.list("waiting")) == 2, "both set aside")
    handler = Handler()

    parked.retry(0, 0)
    with runner.running(handler):
        handler.has_begun(b"first")
        until(lambda: offsets(parked) == [1, 2], "the first handled")
        parked.retry(0, 1)
        handler.has_begun(b"third")

    assert handler.given == [b"first", b"second", b"third"]
    assert parked.list() == []


def test_a_retried_dead_letter_has_all_its_attempts_again(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=AT_ONCE)
    again = Handler(b"bad")

    parked.retry(0, 0)
    (waiting,) = parked.list("waiting")
    runner.run(again, retry=AT_ONCE)

    assert (waiting.attempts, waiting.error) == (0, "no bad")
    assert waiting.due_at is not None
    assert again.given == [b"bad"] * 3
    assert [one.attempts for one in parked.list("dead")] == [3]


def test_what_is_retried_is_handled_by_whoever_runs_the_group(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad")
    handler = Handler(b"bad")

    with runner.running(handler, retry=ONCE):
        until(lambda: offsets(parked, state="dead") == [0], "a dead letter")
        handler.failing.clear()
        parked.retry(state="dead")
        until(lambda: parked.list() == [], "handled")
        produce(mq, "a:next")
        handler.has_begun(b"next")

    assert handler.given == [b"bad", b"bad", b"next"]


def test_a_retried_dead_letter_that_fails_blocks_what_comes_later(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad")
    handler = Handler(b"bad")
    runner.run(handler, retry=ONCE)
    parked.retry(everything=True)
    produce(mq, "a:behind", "b:other")

    with runner.running(handler, retry=MUCH_LATER):
        handler.has_begun(b"other")
        until(lambda: offsets(parked, state="waiting") == [0, 1], "the later one set aside")

    assert b"behind" not in handler.given


def test_a_message_that_waits_long_is_tried_at_once_when_it_is_retried(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad")
    handler = Handler(b"bad")

    with runner.running(handler, retry=MUCH_LATER):
        until(lambda: offsets(parked, state="waiting") == [0], "set aside")
        handler.failing.clear()
        parked.retry(0, 0)
        until(lambda: parked.list() == [], "handled")

    assert handler.given == [b"bad", b"bad"]


def test_a_partition_that_stopped_goes_on_with_the_message_that_is_retried(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:good", "a:bad", "b:next")
    handler = Handler(b"bad")

    with runner.running(handler, retry=ONCE, on_failure="stop"):
        until(lambda: offsets(parked, state="stopped") == [1], "stopped")
        handler.failing.clear()
        parked.retry(0, 1)
        handler.has_begun(b"next")

    assert handler.given == [b"good", b"bad", b"bad", b"next"]
    assert parked.list() == []


def test_a_stopped_message_that_is_retried_is_held_until_somebody_runs_the_group(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad", "b:next")
    with runner.running(Handler(b"bad"), retry=ONCE, on_failure="stop"):
        until(lambda: offsets(parked, state="stopped") == [0], "stopped")

    parked.retry(state="stopped")

    (held,) = parked.list()
    assert (held.state, held.attempts, position(mq)) == ("held", 0, 0)
    assert held.due_at is not None


@pytest.mark.parametrize("notify", [True, False])
def test_a_consumer_that_has_long_had_nothing_to_do_finds_what_was_decided(
    mq: MQ, database: DatabaseUnderTest, *, notify: bool
) -> None:
    mq.create_topic("orders", 1)
    parked = mq.admin.parked("orders", "billing")
    produce(mq, "a:bad")
    handler = Handler(b"bad")
    runner = GroupRunner(database, notify=notify)

    with runner.running(handler, retry=ONCE) as consumer:
        until(lambda: offsets(parked, state="dead") == [0], "a dead letter")
        until(lambda: consumer._core.wakeups.delegated > 0, "it leaves looking to others")
        handler.failing.clear()
        parked.retry(0, 0)
        until(lambda: parked.list() == [], "handled")

    runner.mq.close()
    assert handler.given == [b"bad", b"bad"]


# --- Discarded ---


def test_the_next_of_a_key_is_due_when_the_first_is_discarded(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad", "a:behind")
    handler = Handler(b"bad")

    with runner.running(handler, retry=MUCH_LATER):
        until(lambda: offsets(parked, state="waiting") == [0, 1], "both set aside")
        assert parked.discard(0, 0) == 1
        handler.has_begun(b"behind")

    assert handler.given == [b"bad", b"behind"]
    assert parked.list() == []


def test_a_partition_that_stopped_goes_on_behind_the_message_that_is_discarded(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad", "b:next")
    handler = Handler(b"bad")

    with runner.running(handler, retry=ONCE, on_failure="stop"):
        until(lambda: offsets(parked, state="stopped") == [0], "stopped")
        assert parked.discard(0, 0) == 1
        handler.has_begun(b"next")

    assert handler.given == [b"bad", b"next"]
    assert position(mq) == 2


def test_a_stopped_message_is_discarded_while_nobody_runs_the_group(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad", "b:next")
    with runner.running(Handler(b"bad"), retry=ONCE, on_failure="stop"):
        until(lambda: offsets(parked, state="stopped") == [0], "stopped")
    handler = Handler()

    parked.discard(0, 0)
    moved_to = position(mq)
    runner.run(handler)

    assert moved_to == 1
    assert handler.given == [b"next"]


def test_a_discarded_dead_letter_stays_in_the_log_and_nowhere_else(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad", "b:bad")
    runner.run(Handler(b"bad"), retry=ONCE)

    discarded = parked.discard(key=b"a")

    assert discarded == 1
    assert offsets(parked) == [1]
    assert mq.admin.describe_topic("orders").messages == 2
    assert position(mq) == 2


def test_what_is_not_parked_is_neither_retried_nor_discarded_nor_copied(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:good", "b:bad")
    runner.run(Handler(b"bad"), retry=ONCE)

    assert parked.retry(0, 0) == 0
    assert parked.discard(0, 7) == 0
    assert parked.discard(0, 1, state="waiting") == 0
    assert parked.copy_to("elsewhere", key=b"a") == []
    assert offsets(parked) == [1]


# --- Decided while the message is handled ---

SET_ASIDE: dict[str, Any] = {"retry": AT_ONCE}
IN_ITS_PLACE: dict[str, Any] = {"retry": AT_ONCE, "on_failure": "dead"}


@pytest.mark.parametrize(("options", "state"), [(SET_ASIDE, "waiting"), (IN_ITS_PLACE, "held")])
@pytest.mark.parametrize("is_failing", [True, False])
def test_a_message_that_is_discarded_while_it_is_handled_does_not_come_back(
    mq: MQ, runner: GroupRunner, parked: Parked, options: dict[str, Any], state: str, *, is_failing: bool
) -> None:
    produce(mq, "a:bad", "b:next")
    handler = Handler(b"bad", stepwise=True)

    with runner.running(handler, **options):
        handler.step()
        handler.has_begun(b"bad", times=2)
        (handled,) = parked.list()
        if not is_failing:
            handler.failing.clear()
        discarded = parked.discard(0, 0)
        handler.step()
        handler.step()
        handler.has_begun(b"next")

    assert (handled.state, discarded) == (state, 1)
    assert handler.given == [b"bad", b"bad", b"next"]
    assert parked.list() == []
    assert position(mq) == 2


@pytest.mark.parametrize(("options", "state"), [(SET_ASIDE, "waiting"), (IN_ITS_PLACE, "held")])
def test_an_attempt_that_fails_after_the_message_was_retried_counts_for_nothing(
    mq: MQ, runner: GroupRunner, parked: Parked, options: dict[str, Any], state: str
) -> None:
    produce(mq, "a:bad")
    handler = Handler(b"bad", stepwise=True)

    with runner.running(handler, **options):
        handler.step()
        handler.step()
        handler.has_begun(b"bad", times=3)
        (before,) = parked.list()
        parked.retry(0, 0)
        (after,) = parked.list()
        handler.step()
        # Its third attempt would have been the last; there are three others now.
        handler.step()
        handler.step()
        handler.has_begun(b"bad", times=6)
        handler.failing.clear()
        handler.step()
        until(lambda: parked.list() == [], "handled")

    assert (before.state, before.attempts) == (state, 3)
    assert (after.state, after.attempts) == (state, 0)
    assert handler.given == [b"bad"] * 6


@pytest.mark.parametrize("options", [SET_ASIDE, IN_ITS_PLACE])
def test_a_message_that_is_retried_while_it_is_handled_is_done_when_that_succeeds(
    mq: MQ, runner: GroupRunner, parked: Parked, options: dict[str, Any]
) -> None:
    produce(mq, "a:bad", "a:next")
    handler = Handler(b"bad", stepwise=True)

    with runner.running(handler, **options):
        handler.step()
        handler.has_begun(b"bad", times=2)
        handler.failing.clear()
        parked.retry(0, 0)
        handler.step()
        handler.step()
        handler.has_begun(b"next")

    assert handler.given == [b"bad", b"bad", b"next"]
    assert parked.list() == []


def test_an_attempt_that_is_interrupted_after_the_message_was_retried_takes_nothing_back(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad")
    handler = Handler(b"bad", stepwise=True)

    with runner.running(handler, retry=AT_ONCE, stop_seconds=0.0):
        handler.step()
        handler.has_begun(b"bad", times=2)
        parked.retry(0, 0)
    handler.step()

    assert [(one.state, one.attempts) for one in parked.list()] == [("waiting", 0)]


# --- Copied ---


def test_a_copy_has_what_the_message_has_and_says_where_it_comes_from(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    mq.producer("orders").produce(Message(b"bad\xff", b"a", {"currency": "EUR"}))

    def fail(message: ReceivedMessage) -> None:
        complaint = f"no {message.offset}"
        raise ValueError(complaint)

    runner.run(fail, retry=ONCE)

    (result,) = parked.copy_to("letters", 0, 0)

    with mq.consumer("letters", "readers") as consumer:
        (copy,) = receive(consumer, 1)
    assert (copy.topic, copy.partition, copy.offset) == tuple(result)
    assert (copy.value, copy.key) == (b"bad\xff", b"a")
    assert dict(copy.headers) == {
        "currency": "EUR",
        "sqlmq-topic": "orders",
        "sqlmq-partition": "0",
        "sqlmq-offset": "0",
        "sqlmq-group": "billing",
        "sqlmq-error": "ValueError: no 0",
    }
    assert offsets(parked) == [0]


def test_a_copy_of_a_copy_says_where_the_first_came_from(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)
    mq.create_topic("letters", 1)
    parked.copy_to("letters", everything=True)
    runner.mq.consumer("letters", "clerks").run(Handler(b"bad"), retry=ONCE, idle_seconds=0)

    mq.admin.parked("letters", "clerks").copy_to("archive", everything=True)

    with mq.consumer("archive", "readers") as consumer:
        (copy,) = receive(consumer, 1)
    assert (copy.headers["sqlmq-topic"], copy.headers["sqlmq-group"]) == ("orders", "billing")


def test_copies_keep_the_order_of_the_originals_however_many_they_are(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    count = 2 * admin_parked.COPY_MESSAGES + 1
    mq.producer("orders").produce_many([Message(b"%d" % number, b"a") for number in range(count)])

    def fail(_message: ReceivedMessage) -> None:
        raise ValueError

    runner.run(fail, retry=ONCE)
    results = parked.move_to("letters", state="dead")

    with mq.consumer("letters", "readers") as consumer:
        assert values(receive(consumer, count)) == [b"%d" % number for number in range(count)]
    assert [result.offset for result in results] == list(range(count))
    assert parked.list() == []


def test_what_is_copied_passes_through_in_pieces_of_few_bytes(
    mq: MQ, runner: GroupRunner, parked: Parked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_parked, "COPY_BYTES", 25)
    read: list[int] = []
    contents = store_parked.contents

    def counting(*arguments: Any, limit: int, **others: Any) -> Any:
        read.append(limit)
        return contents(*arguments, limit=limit, **others)

    monkeypatch.setattr(store_parked, "contents", counting)
    sizes = [10, 9, 100, 1, 2, 3]
    mq.producer("orders").produce_many([Message(bytes(size), b"a") for size in sizes])
    runner.run(_fail, retry=ONCE)

    assert len(parked.copy_to("letters", everything=True)) == len(sizes)
    # Each with one byte of key.
    assert read == [2, 1, 3]


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (Message(bytes(101)), "value"),
        (Message(b"", bytes(101)), "key"),
        (Message(b"", headers={"name": "x" * 100}), "headers"),
        (Message(b"", headers={"name": "é" * 50}), "headers"),
    ],
    ids=["value", "key", "headers", "headers in bytes"],
)
def test_what_is_larger_than_a_message_may_be_is_not_copied(
    mq: MQ, runner: GroupRunner, make_mq: MakeMQ, message: ReceivedMessage, part: str
) -> None:
    mq.producer("orders").produce_many([Message(b"small"), message])
    runner.run(_fail, retry=ONCE)
    mq.create_topic("letters", 1)
    parked = make_mq(max_message_bytes=100).admin.parked("orders", "billing")

    with pytest.raises(MessageTooLargeError, match=f"The message's {part} has 1"):
        parked.move_to("letters", everything=True)

    assert mq.admin.describe_topic("letters").messages == 0
    assert offsets(parked) == [0, 1]
    assert len(mq.admin.parked("orders", "billing").copy_to("letters", everything=True)) == 2


def test_headers_that_are_none_are_not_copied(
    mq: MQ, runner: GroupRunner, parked: Parked, connection: Connection, database: DatabaseUnderTest
) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)
    table = "sqlmq_message" if database.schema is None else f"{database.schema}.sqlmq_message"
    value = "CAST(:stored AS jsonb)" if database.is_postgres else ":stored"

    for stored in ("[1]", '{"a": 1}', '{"a": {"b": "c"}}', '{"a": ' + "[" * 900 + "]" * 900 + "}"):
        connection.execute(text(f"UPDATE {table} SET headers = {value}"), {"stored": stored})
        connection.commit()
        with pytest.raises(InvalidMessageError, match="not a JSON object of strings"):
            parked.copy_to("letters", everything=True)

    assert parked.discard(everything=True) == 1


def test_a_move_takes_place_as_a_whole_or_not_at_all(
    mq: MQ, runner: GroupRunner, parked: Parked, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(mq, "a:bad", "b:bad")
    runner.run(Handler(b"bad"), retry=ONCE)
    mq.create_topic("letters", 1)

    def fail(*_arguments: object) -> int:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(admin_parked, "_discard", fail)
        with pytest.raises(RuntimeError):
            parked.move_to("letters", everything=True)
    undone = (mq.admin.describe_topic("letters").messages, offsets(parked))
    parked.move_to("letters", everything=True)

    assert undone == (0, [0, 1])
    assert (mq.admin.describe_topic("letters").messages, offsets(parked)) == (2, [])


def test_a_partition_that_stopped_goes_on_behind_the_message_that_is_moved(
    mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad", "b:next")
    handler = Handler(b"bad")

    with runner.running(handler, retry=ONCE, on_failure="stop"):
        until(lambda: offsets(parked, state="stopped") == [0], "stopped")
        parked.move_to("letters", 0, 0)
        handler.has_begun(b"next")

    assert handler.given == [b"bad", b"next"]


def test_a_waiting_consumer_gets_a_copy_soon(mq: MQ, runner: GroupRunner, parked: Parked, make_mq: MakeMQ) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)

    parked.copy_to("letters", everything=True)

    with make_mq().consumer("letters", "readers") as consumer:
        assert values(receive(consumer, 1)) == [b"bad"]


def test_a_topic_to_copy_to_is_made_only_where_topics_are_made(
    make_mq: MakeMQ, mq: MQ, runner: GroupRunner, parked: Parked
) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)

    with pytest.raises(UnknownTopicError):
        make_mq(create_topics=False).admin.parked("orders", "billing").copy_to("letters", everything=True)

    assert mq.admin.topics() == ["orders"]
    assert offsets(parked) == [0]


# --- Where there is nothing ---

CALLS: list[Callable[[Parked], object]] = [
    lambda parked: parked.list(),
    lambda parked: parked.get(0, 0),
    lambda parked: parked.blocked_keys(),
    lambda parked: parked.retry(everything=True),
    lambda parked: parked.discard(everything=True),
    lambda parked: parked.copy_to("letters", everything=True),
    lambda parked: parked.move_to("letters", everything=True),
]


def test_an_unknown_topic_is_an_error_and_so_is_an_unknown_group(mq: MQ) -> None:
    mq.create_topic("orders")

    for call in CALLS:
        with pytest.raises(UnknownTopicError):
            call(mq.admin.parked("nothing", "billing"))
        with pytest.raises(UnknownGroupError):
            call(mq.admin.parked("orders", "nobody"))

    assert mq.admin.topics() == ["orders"]


def test_a_closed_mq_tells_nothing(mq: MQ) -> None:
    parked = mq.admin.parked("orders", "billing")
    mq.close()

    for call in CALLS:
        with pytest.raises(MQClosedError):
            call(parked)


def test_a_deleted_topic_leaves_nothing_parked(
    mq: MQ, runner: GroupRunner, parked: Parked, queue_state: QueueState
) -> None:
    produce(mq, "a:bad", "b:bad")
    runner.run(Handler(b"bad"), retry=ONCE)

    mq.delete_topics("orders")

    assert queue_state.parked("billing") == {}
    with pytest.raises(UnknownTopicError):
        parked.list()


# --- What can't be ---


def test_a_partition_that_the_topic_does_not_have_is_an_error(mq: MQ, runner: GroupRunner, parked: Parked) -> None:
    produce(mq, "a:good")
    runner.run(Handler())

    with pytest.raises(InvalidPartitionError):
        parked.list(partition=1)
    with pytest.raises(InvalidPartitionError):
        parked.get(-1, 0)
    with pytest.raises(ValueError, match="offset"):
        parked.get(0, -1)


def test_it_says_whose_messages_they_are(parked: Parked) -> None:
    assert (parked.topic, parked.group) == ("orders", "billing")
    assert "'orders' in 'billing'" in repr(parked)
