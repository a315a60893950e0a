"""Running a handler: every message once, in order, until told to stop; and what becomes of those that fail."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import Message, ReceivedMessage, Retry, UnknownTopicError
from sqlmq.consumer.core import NO_DEADLINE
from sqlmq.consumer.worker.dispatcher import Attempt, Dispatcher
from sqlmq.consumer.worker.pool import Worker, WorkerPool
from sqlmq.errors import ConsumerClosedError, DatabaseBusyError, DatabaseUnavailableError
from tests.support.handlers import SOON, Recorder, drain, numbered, parked_rows, position, send
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from sqlmq import MQ
    from sqlmq.consumer.core import ConsumerCore
    from tests.conftest import MakeMQ

POISON = 1_000_000
LATER = Retry(max_attempts=3, backoff_seconds=0.2)
"""Long enough for others to be handled first."""


@pytest.mark.pgbouncer
def test_a_handler_gets_every_message_in_order(mq: MQ) -> None:
    send(mq, numbered(40))
    handler = Recorder()

    summary = drain(mq.consumer("orders", "billing"), handler)

    assert handler.values == [b"%d" % i for i in range(40)]
    assert summary.handled == 40
    assert position(mq) == 40


def test_a_run_closes_its_consumer(mq: MQ) -> None:
    send(mq, numbered(1))
    consumer = mq.consumer("orders", "billing")

    drain(consumer, Recorder())

    assert consumer.closed
    with pytest.raises(ConsumerClosedError):
        drain(consumer, Recorder())


def test_messages_that_come_later_are_handled_too(mq: MQ) -> None:
    mq.create_topic("orders", 3)
    consumer, producer, handler = mq.consumer("orders", "billing"), mq.producer("orders"), Recorder()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(consumer.run, handler, handle_signals=False)
        for message in numbered(10, keys=3):
            producer.produce(message)
        until(lambda: len(handler.handled) == 10, "ten messages to be handled")
        consumer.stop()
        summary = running.result(PATIENCE_SECONDS)

    assert summary.handled == 10
    assert position(mq) == 10


def test_partitions_are_worked_on_side_by_side_and_each_in_order(mq: MQ) -> None:
    mq.create_topic("orders", 3)
    for partition in range(3):
        for i in range(5):
            mq.producer("orders").produce_with_partition(Message(b"%d" % i), partition)
    together = threading.Barrier(3)
    seen: list[tuple[int | None, bytes]] = []

    def handler(message: ReceivedMessage) -> None:
        if message.value == b"0":
            together.wait(PATIENCE_SECONDS)
        seen.append((message.partition, message.value))

    drain(mq.consumer("orders", "billing"), handler, concurrency=3)

    for partition in range(3):
        assert [value for number, value in seen if number == partition] == [b"%d" % i for i in range(5)]


def test_a_batch_is_a_list_of_messages_of_one_partition(mq: MQ) -> None:
    send(mq, numbered(25, keys=5), partitions=3)
    sizes: list[int] = []
    handler = Recorder()

    def batch(messages: list[ReceivedMessage]) -> None:
        assert len({message.partition for message in messages}) == 1
        sizes.append(len(messages))
        handler(messages)

    summary = drain(mq.consumer("orders", "billing"), batch, batch_size=4)

    assert max(sizes) == 4
    assert summary.handled == len(handler.values) == 25


def test_a_run_is_not_idle_while_a_worker_that_has_just_finished_may_fetch_more(
    mq: MQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(mq, numbered(2))
    handler = Recorder()
    may_finish = threading.Event()
    idle: list[bool] = []
    note_idle = WorkerPool._note_idle

    def note_late(pool: WorkerPool, seen: int) -> None:
        """Between the fetch that found nothing and the note of it, let the other worker finish the first message."""
        if not idle:
            may_finish.set()
            until(lambda: not any(worker.attempt for worker in pool._workers), "the first message handled")
            note_idle(pool, seen)
            idle.append(pool._is_idle())
        else:
            note_idle(pool, seen)

    def handle(message: ReceivedMessage) -> None:
        may_finish.wait(PATIENCE_SECONDS)
        handler(message)

    monkeypatch.setattr(WorkerPool, "_note_idle", note_late)
    drain(mq.consumer("orders", "billing"), handle, concurrency=2, idle_seconds=0)

    assert idle == [False]
    assert len(handler.values) == 2


def test_a_run_does_not_end_because_the_database_was_busy(mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    send(mq, numbered(3))
    handler = Recorder()
    failures = [DatabaseBusyError("busy"), DatabaseUnavailableError("away")]
    next_attempt = Dispatcher.next_attempt

    def fail_first(*arguments: Any) -> Attempt | None:
        if failures:
            raise failures.pop()
        return next_attempt(*arguments)

    monkeypatch.setattr(Dispatcher, "next_attempt", fail_first)
    drain(mq.consumer("orders", "billing"), handler, idle_seconds=0)

    assert len(handler.values) == 3


def test_without_any_patience_what_is_there_is_handled(mq: MQ) -> None:
    send(mq, numbered(3))
    handler = Recorder()

    drain(mq.consumer("orders", "billing"), handler, idle_seconds=0)

    assert len(handler.handled) == 3


def test_a_run_does_not_end_before_a_fetch_has_found_nothing(make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    mq = make_mq(lease_seconds=0.4)
    send(mq, numbered(4))
    handler, checked = Recorder(), threading.Event()
    fetch, is_idle = WorkerPool._fetch, WorkerPool._is_idle

    def fetch_late(pool: WorkerPool, worker: Worker) -> object:
        checked.clear()
        # As one that takes longer than idle_seconds: the run is checked for its end meanwhile.
        assert not handler.handled or checked.wait(PATIENCE_SECONDS)
        return fetch(pool, worker)

    def check(pool: WorkerPool) -> bool:
        found = is_idle(pool)
        checked.set()
        return found

    monkeypatch.setattr(WorkerPool, "_fetch", fetch_late)
    monkeypatch.setattr(WorkerPool, "_is_idle", check)

    summary = drain(mq.consumer("orders", "billing"), handler, retry=Retry(max_attempts=1), idle_seconds=0)

    assert summary.handled == 4


# --- When a handler fails ---


@pytest.mark.pgbouncer
def test_a_failing_key_is_set_aside_and_the_others_go_on(mq: MQ) -> None:
    send(mq, numbered(12, keys=3))
    handler = Recorder({b"1": 2})

    summary = drain(mq.consumer("orders", "billing"), handler, retry=LATER)

    assert handler.of_key(b"k1") == [b"1", b"4", b"7", b"10"]
    assert handler.values[:3] == [b"0", b"2", b"3"]
    assert handler.tried[b"1"] == 3
    assert summary.handled == 12
    assert (summary.failures, summary.dead) == (2, 0)
    assert parked_rows(mq) == []


def test_a_message_that_keeps_failing_becomes_a_dead_letter_and_its_key_goes_on(mq: MQ) -> None:
    send(mq, numbered(9, keys=3))
    handler = Recorder({b"1": POISON})

    summary = drain(mq.consumer("orders", "billing"), handler)

    assert handler.of_key(b"k1") == [b"4", b"7"]
    assert handler.tried[b"1"] == 3
    assert summary.dead == 1
    assert parked_rows(mq) == [(1, "dead", 3)]
    assert position(mq) == 9


def test_a_dead_letter_tells_why(mq: MQ) -> None:
    send(mq, numbered(1))

    drain(mq.consumer("orders", "billing"), Recorder({b"0": POISON}))

    schema = f"{mq.schema}." if mq.schema else ""
    with mq.engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT topic, group_name, msg_offset, attempts, error_type, error, traceback, first_failed_at, last_failed_at"
            f" FROM {schema}sqlmq_dead_letter"
        ).one()
    assert row[:6] == ("orders", "billing", 0, 3, "ArithmeticError", "told to fail at 1 message(s)")
    assert "Traceback" in row[6]
    assert row[7] <= row[8]


def test_a_message_without_a_key_is_set_aside_alone(mq: MQ) -> None:
    send(mq, numbered(5))
    handler = Recorder({b"1": 1})

    drain(mq.consumer("orders", "billing"), handler, retry=LATER)

    assert sorted(handler.values) == [b"%d" % i for i in range(5)]
    assert handler.values.index(b"2") < handler.values.index(b"1")


@pytest.mark.parametrize("policy", ["dead", "skip"])
def test_a_keyed_message_is_tried_again_in_its_place(mq: MQ, policy: Any) -> None:
    send(mq, numbered(6, keys=2))
    handler = Recorder({b"2": 2, b"3": POISON})

    summary = drain(mq.consumer("orders", "billing"), handler, on_failure=policy)

    assert handler.values == [b"0", b"1", b"2", b"4", b"5"]
    assert (summary.dead, summary.skipped) == ((1, 0) if policy == "dead" else (0, 1))
    assert parked_rows(mq) == ([(3, "dead", 3)] if policy == "dead" else [])
    assert position(mq) == 6


def test_a_partition_that_stops_waits_and_the_others_go_on(mq: MQ) -> None:
    mq.create_topic("orders", 2)
    for i in range(4):
        for partition in range(2):
            mq.producer("orders").produce_with_partition(Message(b"%d-%d" % (partition, i)), partition)
    consumer = mq.consumer("orders", "billing")
    handler = Recorder({b"1-1": POISON})

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(consumer.run, handler, retry=SOON, on_failure="stop", handle_signals=False)
        until(lambda: parked_rows(mq) == [(1, "stopped", 3)], "the partition to stop")
        until(lambda: len(handler.handled) == 5, "the other partition to be done")
        consumer.stop()
        running.result(PATIENCE_SECONDS)

    assert set(handler.values) == {b"0-0", b"0-1", b"0-2", b"0-3", b"1-0"}
    assert position(mq) == 5


def test_a_stopped_partition_is_still_stopped_for_the_next_run(mq: MQ) -> None:
    send(mq, numbered(3))
    drain(mq.consumer("orders", "billing"), Recorder({b"1": POISON}), on_failure="skip", max_parked=1)
    send(mq, [Message(b"bad"), Message(b"good")])
    stop_when_stopped(mq, Recorder({b"bad": POISON}))
    handler = Recorder()

    stop_when_stopped(mq, handler)

    assert handler.values == []
    assert position(mq) == 3


def stop_when_stopped(mq: MQ, handler: Recorder) -> None:
    consumer = mq.consumer("orders", "billing")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(consumer.run, handler, retry=SOON, on_failure="stop", handle_signals=False)
        until(lambda: ("stopped" in [state for _, state, _ in parked_rows(mq)]) and bool(consumer.partitions), "a stop")
        consumer.stop()
        running.result(PATIENCE_SECONDS)


def test_an_exception_to_give_up_on_is_not_tried_again(mq: MQ) -> None:
    send(mq, numbered(2))
    handler = Recorder({b"0": POISON})

    drain(mq.consumer("orders", "billing"), handler, retry=Retry(give_up_on=(ArithmeticError,)))

    assert handler.tried[b"0"] == 1
    assert parked_rows(mq) == [(0, "dead", 1)]


def test_a_batch_that_fails_is_tried_one_by_one(mq: MQ) -> None:
    send(mq, numbered(6, keys=2))
    handler = Recorder({b"3": POISON})

    summary = drain(mq.consumer("orders", "billing"), handler, batch_size=6)

    assert handler.of_key(b"k0") == [b"0", b"2", b"4"]
    assert handler.of_key(b"k1") == [b"1", b"5"]
    assert handler.tried[b"3"] == 3
    assert summary.dead == 1


def test_what_was_set_aside_before_a_batch_that_fails_is_handled_once(mq: MQ) -> None:
    values = [b"a0", b"a1", b"b2", b"b3", b"b4", b"a5", b"b6", b"b7"]
    send(mq, [Message(value, value[:1]) for value in values])
    handler = Recorder({b"a0": 2, b"b6": 1})
    due_at: list[float] = []

    def batch(messages: list[ReceivedMessage]) -> None:
        if messages[0].value == b"a0":
            due_at.append(time.monotonic() + 2 * LATER.backoff_seconds)
        elif [message.value for message in messages] == [b"b6", b"b7"]:
            # So that what waits is done with before the partition is read on.
            until(lambda: time.monotonic() > due_at[-1], "the first message to be due again")
        handler(messages)

    drain(mq.consumer("orders", "billing"), batch, batch_size=2, retry=LATER)

    assert sorted(handler.values) == sorted(values)
    assert position(mq) == len(values)
    assert parked_rows(mq) == []


def test_the_attempt_of_a_batch_that_failed_counts_in_the_next_run_too(mq: MQ) -> None:
    send(mq, [Message(b"poison", b"a"), Message(b"fine", b"b")])
    handler = Recorder({b"poison": POISON})
    first = mq.consumer("orders", "billing")

    def stop_and_fail(messages: list[ReceivedMessage]) -> None:
        first.stop()
        handler(messages)

    drain(first, stop_and_fail, batch_size=2)
    drain(mq.consumer("orders", "billing"), handler, batch_size=2)

    assert handler.tried[b"poison"] == SOON.max_attempts
    assert handler.values == [b"fine"]


def check_what_is_due(core: ConsumerCore) -> None:
    """As a worker that asks for something to do."""
    with core.lock:
        core.prepare_delivery(1, NO_DEADLINE)


def test_a_batch_in_hand_is_handled_once_though_a_heartbeat_was_late_meanwhile(mq: MQ) -> None:
    send(mq, numbered(4))
    consumer, handler = mq.consumer("orders", "billing"), Recorder()

    with ThreadPoolExecutor(1) as threads:

        def batch(messages: list[ReceivedMessage]) -> None:
            handler(messages)
            if handler.tried[b"0"] == 1:
                # Another worker finds that no heartbeat has arrived for a lease, and that nobody has minded.
                consumer._core.coordinator.membership_lost()
                threads.submit(check_what_is_due, consumer._core).result(PATIENCE_SECONDS)

        drain(consumer, batch, batch_size=4)

    assert handler.values == [b"0", b"1", b"2", b"3"]
    assert position(mq) == 4


def test_what_was_set_aside_waits_for_the_next_run(mq: MQ) -> None:
    send(mq, numbered(6, keys=2))
    consumer = mq.consumer("orders", "billing")
    handler = Recorder({b"1": 1})

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(consumer.run, handler, retry=Retry(backoff_seconds=60), handle_signals=False)
        until(lambda: parked_rows(mq) == [(1, "waiting", 1), (3, "waiting", 0), (5, "waiting", 0)], "a key to wait")
        consumer.stop()
        running.result(PATIENCE_SECONDS)
    assert handler.values == [b"0", b"2", b"4"]
    make_due(mq)
    drain(mq.consumer("orders", "billing"), handler)

    assert handler.of_key(b"k1") == [b"1", b"3", b"5"]
    assert parked_rows(mq) == []


def make_due(mq: MQ) -> None:
    schema = f"{mq.schema}." if mq.schema else ""
    with mq.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {schema}sqlmq_parked SET due_at = parked_at")


def test_a_partition_with_too_many_set_aside_waits(make_mq: MakeMQ) -> None:
    mq = make_mq(poll_max_seconds=0.05)
    send(mq, numbered(8, keys=1))
    consumer = mq.consumer("orders", "billing")
    handler = Recorder({b"0": 1})

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            consumer.run, handler, retry=Retry(backoff_seconds=60), max_parked=3, handle_signals=False
        )
        until(lambda: len(parked_rows(mq)) == 3, "three messages to be set aside")
        make_due(mq)
        until(lambda: len(handler.handled) == 8, "all to be handled, once those are")
        consumer.stop()
        running.result(PATIENCE_SECONDS)

    assert handler.values == [b"%d" % i for i in range(8)]


def test_each_group_sets_aside_for_itself(mq: MQ) -> None:
    send(mq, numbered(4, keys=2))
    other = Recorder()

    drain(mq.consumer("orders", "billing"), Recorder({b"1": POISON}))
    drain(mq.consumer("orders", "shipping"), other)

    assert other.values == [b"0", b"1", b"2", b"3"]


# --- Stopping ---


def test_stop_lets_the_message_in_hand_be_finished_and_begins_no_other(mq: MQ) -> None:
    send(mq, numbered(5))
    consumer = mq.consumer("orders", "billing")
    handled: list[bytes] = []

    def handler(message: ReceivedMessage) -> None:
        if message.value == b"1":
            consumer.stop()
        handled.append(message.value)

    consumer.run(handler, handle_signals=False)

    assert handled == [b"0", b"1"]
    assert position(mq) == 2


def test_stop_before_run_lets_it_return_at_once(mq: MQ) -> None:
    send(mq, numbered(2))
    consumer = mq.consumer("orders", "billing")
    handler = Recorder()

    consumer.stop()
    consumer.run(handler, handle_signals=False)

    assert handler.values == []


def test_a_handler_that_outlasts_stop_timeout_has_not_been_tried(mq: MQ) -> None:
    send(mq, numbered(3))
    consumer = mq.consumer("orders", "billing")
    is_in, may_go = threading.Event(), threading.Event()

    def handler(message: ReceivedMessage) -> None:
        if message.value == b"1":
            is_in.set()
            may_go.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(consumer.run, handler, stop_seconds=0.05, handle_signals=False)
        assert is_in.wait(PATIENCE_SECONDS)
        consumer.stop()
        running.result(PATIENCE_SECONDS)
        after = Recorder({b"1": 2})
        drain(mq.consumer("orders", "billing"), after)
        may_go.set()

    assert sorted(after.values) == [b"1", b"2"]
    assert after.tried[b"1"] == 3
    assert position(mq) == 3


def test_closing_the_consumer_ends_the_run(mq: MQ) -> None:
    send(mq, numbered(2))
    consumer = mq.consumer("orders", "billing")
    handler = Recorder()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(consumer.run, handler, handle_signals=False)
        # Handled is not finished yet; whoever waits for more has finished.
        until(lambda: len(handler.handled) == 2 and consumer._core.is_waiting, "two messages to be finished")
        consumer.close()
        running.result(PATIENCE_SECONDS)

    assert position(mq) == 2


def test_a_deleted_topic_ends_the_run_with_an_error(make_mq: MakeMQ) -> None:
    mq = make_mq(poll_max_seconds=0.05)
    send(mq, numbered(1))
    consumer, handler = mq.consumer("orders", "billing"), Recorder()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(consumer.run, handler, handle_signals=False)
        until(lambda: len(handler.handled) == 1, "the message to be handled")
        mq.delete_topics("orders")
        with pytest.raises(UnknownTopicError):
            running.result(PATIENCE_SECONDS)


@pytest.mark.sync_only("sys.exit() in a thread is no business of an event loop")
def test_sys_exit_in_a_handler_ends_the_run(mq: MQ) -> None:
    send(mq, numbered(2))

    def handler(_message: ReceivedMessage) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        mq.consumer("orders", "billing").run(handler, handle_signals=False)

    assert position(mq) == 0


# --- Long handlers ---


def test_a_handler_that_takes_too_long_has_failed_and_others_go_on(make_mq: MakeMQ) -> None:
    mq = make_mq(poll_max_seconds=0.05)
    send(mq, numbered(4, keys=2))
    consumer = mq.consumer("orders", "billing")
    may_go = threading.Event()
    handler = Recorder()

    def stuck(message: ReceivedMessage) -> None:
        if message.value == b"1" and not may_go.is_set():
            may_go.wait(PATIENCE_SECONDS)
            raise ArithmeticError
        handler(message)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            consumer.run, stuck, retry=Retry(backoff_seconds=60), max_processing_seconds=0.2, handle_signals=False
        )
        until(lambda: handler.values == [b"0", b"2"], "the other key to go on")
        may_go.set()
        make_due(mq)
        until(lambda: handler.of_key(b"k1") == [b"1", b"3"], "the stuck message to be tried again")
        consumer.stop()
        summary = running.result(PATIENCE_SECONDS)

    assert summary.failures == 1
    assert position(mq) == 4


def test_a_handler_that_outlasts_a_lease_is_warned_of_and_keeps_its_partition(
    make_mq: MakeMQ, caplog: pytest.LogCaptureFixture
) -> None:
    mq = make_mq(lease_seconds=0.6)
    send(mq, numbered(2))
    consumer = mq.consumer("orders", "billing")
    owners: list[str | None] = []

    def handler(_message: ReceivedMessage) -> None:
        if not owners:
            until(lambda: "longer than lease_seconds" in caplog.text, "a warning")
            owners.append(mq.admin.describe_group("orders", "billing").partitions[0].owner)

    summary = drain(consumer, handler)

    assert owners == [consumer.name]
    assert summary.handled == 2
    assert caplog.text.count("longer than lease_seconds") == 1


# --- What can't be ---


def test_a_consumer_that_is_run_is_not_asked_for_messages(mq: MQ) -> None:
    send(mq, numbered(1))
    consumer = mq.consumer("orders", "billing")
    errors: list[Exception] = []

    def handler(_message: ReceivedMessage) -> None:
        try:
            consumer.poll(timeout=0)
        except RuntimeError as error:
            errors.append(error)

    drain(consumer, handler)

    assert "is run" in str(errors[0])
