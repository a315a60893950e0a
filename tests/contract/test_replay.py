"""Groups are moved, back to read again or on to skip: by a reset, by a consumer's own seek, and where a new one starts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import FencedError, Message, ReceivedMessage, UnknownTopicError
from sqlmq.consumer.coordinator import Coordinator
from sqlmq.errors import GroupInUseError, InvalidOffsetError, InvalidPartitionError, NotOwnedError, UnknownGroupError
from sqlmq.store import claims, offsets, parked
from sqlmq.store import messages as log
from tests.support.failing import MUCH_LATER, ONCE, GroupRunner, Handler, produce
from tests.support.handlers import parked_rows
from tests.support.waiting import PATIENCE_SECONDS, finish, receive, until, values

if TYPE_CHECKING:
    from sqlmq import MQ, Consumer
    from tests.conftest import MakeMQ

COUNT = 10
LEASE_SECONDS = 60.0


def positions(mq: MQ, group: str = "billing") -> list[int]:
    return [partition.position for partition in mq.admin.describe_group("orders", group).partitions]


def fill(mq: MQ, *, partitions: int = 1, count: int = COUNT) -> None:
    """Append *count* messages to each partition, whose values are their offsets."""
    mq.create_topic("orders", partitions)
    producer = mq.producer("orders")
    for number in range(partitions):
        for offset in range(count):
            producer.produce_with_partition(Message(b"%d" % offset), number)


def read_all(mq: MQ, group: str = "billing", count: int = COUNT) -> None:
    with mq.consumer("orders", group) as consumer:
        finish(consumer, count)


def reset(mq: MQ, to: Any = None, **options: Any) -> None:
    mq.admin.reset_group("orders", "billing", to, **options)


@pytest.fixture
def filled(mq: MQ) -> MQ:
    """A topic of one partition, of which the group has read everything."""
    fill(mq)
    read_all(mq)
    return mq


# --- Where to ---


@pytest.mark.pgbouncer
def test_a_group_reads_again_from_the_earliest_message(filled: MQ) -> None:
    (change,) = filled.admin.reset_group("orders", "billing", "earliest")

    assert (change.partition, change.from_offset, change.to_offset, change.end_offset) == (0, COUNT, 0, COUNT)
    with filled.consumer("orders", "billing") as consumer:
        assert values(receive(consumer, COUNT)) == [b"%d" % offset for offset in range(COUNT)]


def test_a_group_skips_to_the_latest(mq: MQ) -> None:
    fill(mq)
    mq.consumer("orders", "billing").close()

    reset(mq, "latest")

    with mq.consumer("orders", "billing") as consumer:
        assert consumer.poll(timeout=0) == []
        mq.producer("orders").produce(Message(b"new"))
        assert values(receive(consumer, 1)) == [b"new"]


def test_a_group_goes_to_an_offset_of_each_partition_that_is_named(mq: MQ) -> None:
    fill(mq, partitions=3)
    read_all(mq, count=3 * COUNT)

    reset(mq, {0: 3, 2: 0})

    assert positions(mq) == [3, COUNT, 0]


def test_a_group_is_shifted_but_not_beyond_the_ends(filled: MQ) -> None:
    reset(filled, shift_by=-3)
    back = positions(filled)
    reset(filled, shift_by=2)
    on = positions(filled)
    reset(filled, shift_by=-(10**30))
    far_back = positions(filled)
    reset(filled, shift_by=10**30)

    assert (back, on, far_back, positions(filled)) == ([7], [9], [0], [10])


def test_only_the_partitions_that_are_named_move(mq: MQ) -> None:
    fill(mq, partitions=3)
    read_all(mq, count=3 * COUNT)

    changes = mq.admin.reset_group("orders", "billing", "earliest", partitions=[2, 1, 2])

    assert [change.partition for change in changes] == [1, 2]
    assert positions(mq) == [COUNT, 0, 0]


def moments(mq: MQ) -> list[datetime]:
    """When the messages of partition 0 were appended."""
    with mq.consumer("orders", "moments") as consumer:
        return [message.timestamp for message in finish(consumer, COUNT)]


def first_since(times: list[datetime], moment: datetime) -> int:
    return next((offset for offset, time in enumerate(times) if time >= moment), len(times))


def test_a_group_goes_to_the_first_message_since_a_moment(filled: MQ) -> None:
    times = moments(filled)
    microsecond = timedelta(microseconds=1)

    for moment in (*times, *(time + microsecond for time in times), times[0] - microsecond):
        reset(filled, moment)

        assert positions(filled) == [first_since(times, moment)]


def test_a_moment_is_looked_for_in_all_partitions_at_once_and_in_few_steps(
    mq: MQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")
    for number, count in ((0, 100), (1, 0), (2, 7)):
        for _ in range(count):
            producer.produce_with_partition(Message(b""), number)
    mq.consumer("orders", "billing").close()
    looks = []
    look = log.not_older

    def counted(*arguments: Any) -> set[int]:
        looks.append(arguments)
        return look(*arguments)

    monkeypatch.setattr(log, "not_older", counted)
    reset(mq, datetime.now(UTC) + timedelta(days=1))
    late = positions(mq)
    reset(mq, datetime(1970, 1, 1, tzinfo=UTC))

    assert (late, positions(mq)) == ([100, 0, 7], [0, 0, 0])
    assert len(looks) <= 2 * 7


def test_a_group_goes_back_by_a_time(filled: MQ) -> None:
    reset(filled, timedelta(hours=1))
    long_ago = positions(filled)
    reset(filled, timedelta(0))

    assert (long_ago, positions(filled)) == ([0], [COUNT])


# --- What is refused ---


def test_an_offset_the_log_does_not_have_is_refused(filled: MQ) -> None:
    for move in (filled.admin.preview_reset, filled.admin.reset_group):
        for offset in (COUNT + 1, 2**40):
            with pytest.raises(InvalidOffsetError, match=f"the offsets 0 to {COUNT}") as raised:
                move("orders", "billing", {0: offset})

            assert (raised.value.partition, raised.value.offset, raised.value.end_offset) == (0, offset, COUNT)
    assert positions(filled) == [COUNT]


def test_a_partition_that_the_topic_does_not_have_is_refused(filled: MQ) -> None:
    for move in (filled.admin.preview_reset, filled.admin.reset_group):
        with pytest.raises(InvalidPartitionError):
            move("orders", "billing", {1: 0})
        with pytest.raises(InvalidPartitionError):
            move("orders", "billing", "latest", partitions=[1])

    assert positions(filled) == [COUNT]


def test_an_unknown_topic_or_group_is_refused(filled: MQ) -> None:
    for move in (filled.admin.preview_reset, filled.admin.reset_group):
        with pytest.raises(UnknownTopicError):
            move("invoices", "billing", "earliest")
        with pytest.raises(UnknownGroupError):
            move("orders", "unknown", "earliest")


def test_a_preview_changes_nothing_and_needs_nobody_to_stop(filled: MQ) -> None:
    with filled.consumer("orders", "billing") as consumer:
        (change,) = filled.admin.preview_reset("orders", "billing", "earliest")

        assert (change.from_offset, change.to_offset) == (COUNT, 0)
        assert positions(filled) == [COUNT]
        assert consumer.poll(timeout=0) == []


def test_a_group_with_live_members_is_not_moved(filled: MQ) -> None:
    with filled.consumer("orders", "billing", name="alice") as consumer:
        with pytest.raises(GroupInUseError, match="alice") as raised:
            reset(filled, "earliest")
        assert consumer.poll(timeout=0) == []

    assert raised.value.members == ("alice",)
    assert positions(filled) == [COUNT]


def test_what_fails_half_way_has_moved_nothing(runner: GroupRunner, mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    produce(mq, "a:bad", "b:good")
    runner.run(Handler(b"bad"), retry=ONCE)

    def fail(*_: Any) -> None:
        raise ArithmeticError

    for module, name in ((claims, "revoke"), (offsets, "insert_all"), (parked, "forget")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(ArithmeticError):
                reset(mq, "earliest")

        assert (positions(mq), parked_rows(mq)) == ([2], [(0, "dead", 1)])
    reset(mq, "earliest")
    assert (positions(mq), parked_rows(mq)) == ([0], [])


# --- Others, who read on ---


def test_replaying_one_group_changes_nothing_for_another_that_reads_on(filled: MQ) -> None:
    with filled.consumer("orders", "audit") as audit:
        before = values(finish(audit, 5))
        reset(filled, "earliest")
        with filled.consumer("orders", "billing") as billing:
            assert values(finish(billing, COUNT)) == [b"%d" % offset for offset in range(COUNT)]
        after = values(finish(audit, COUNT - 5))

    assert before + after == [b"%d" % offset for offset in range(COUNT)]
    assert positions(filled, "audit") == [COUNT]


def test_a_consumer_of_a_group_that_is_moved_back_by_force_goes_on_there(make_mq: MakeMQ, filled: MQ) -> None:
    mine = make_mq(lease_seconds=LEASE_SECONDS)
    with mine.consumer("orders", "billing") as consumer:
        until(lambda: consumer.poll(timeout=0) == [] and consumer.partitions == (0,), "the partition claimed")

        reset(filled, {0: 4}, force=True)

        assert values(finish(consumer, 6)) == [b"4", b"5", b"6", b"7", b"8", b"9"]
    assert positions(filled) == [COUNT]


def test_a_consumer_that_is_moved_in_the_middle_of_a_batch_commits_nothing_of_it(make_mq: MakeMQ, mq: MQ) -> None:
    fill(mq)
    mine = make_mq(lease_seconds=LEASE_SECONDS, commit_interval_seconds=1000.0)
    with mine.consumer("orders", "billing") as consumer:
        assert len(receive(consumer, 5)) == 5

        reset(mq, {0: 2}, force=True)

        with pytest.raises(FencedError):
            consumer.commit()
        assert positions(mq) == [2]
        assert values(finish(consumer, 8)) == [b"%d" % offset for offset in range(2, COUNT)]
    assert positions(mq) == [COUNT]


def test_a_commit_that_is_sent_again_after_a_reset_is_not_written(make_mq: MakeMQ, mq: MQ) -> None:
    fill(mq)
    mine = make_mq(lease_seconds=LEASE_SECONDS, commit_interval_seconds=1000.0)
    with mine.consumer("orders", "billing") as consumer:
        receive(consumer, 5)
        consumer.poll(1, timeout=0)
        finished = consumer._core.coordinator.committable_positions()
        consumer._core.coordinator.commit_unlocked(finished)
        assert positions(mq) == [5]

        reset(mq, "earliest", force=True)
        consumer._core.coordinator.commit_unlocked(finished)

        assert positions(mq) == [0]


def test_positions_left_behind_are_not_deleted_by_an_owner_whose_group_was_moved_back(
    make_mq: MakeMQ, mq: MQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(mq)
    other = make_mq()
    mine = make_mq(lease_seconds=LEASE_SECONDS, commit_interval_seconds=1000.0)
    prune = Coordinator._prune

    def moved_back_before(ownership: Coordinator, overgrown: list[Any]) -> None:
        reset(other, {0: 3}, force=True)
        prune(ownership, overgrown)

    with mine.consumer("orders", "billing") as consumer:
        receive(consumer, COUNT)
        with monkeypatch.context() as patch:
            patch.setattr(Coordinator, "_prune", moved_back_before)
            consumer.commit()

        assert positions(mq) == [3]


def test_a_transaction_that_is_under_way_ends_before_the_group_is_moved(
    mq: MQ, make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(mq)
    other = make_mq()
    is_locking = threading.Event()
    lock_all = claims.lock_all

    def lock(*arguments: Any) -> list[int]:
        is_locking.set()
        return lock_all(*arguments)

    monkeypatch.setattr(claims, "lock_all", lock)
    consumer = mq.consumer("orders", "billing")
    with ThreadPoolExecutor(1) as threads:
        with consumer.transaction(max_messages=5, timeout=PATIENCE_SECONDS) as tx:
            taken = values(tx.messages)
            moving = threads.submit(lambda: reset(other, shift_by=-1, force=True))
            # On SQLite it does not even begin: the block is the file's only writer.
            assert mq.engine.dialect.name == "sqlite" or is_locking.wait(PATIENCE_SECONDS)
        moving.result(PATIENCE_SECONDS)

    assert taken == [b"0", b"1", b"2", b"3", b"4"]
    assert positions(mq) == [4]
    with consumer.transaction(timeout=PATIENCE_SECONDS) as tx:
        assert values(tx.messages) == [b"%d" % offset for offset in range(4, COUNT)]
    assert positions(mq) == [COUNT]


@pytest.mark.parametrize("transaction", [False, True])
def test_a_run_that_is_moved_in_the_middle_of_a_message_goes_on_at_the_new_position(
    runner: GroupRunner, mq: MQ, *, transaction: bool
) -> None:
    fill(mq)
    handler = Handler(stepwise=True)

    def handle(message: ReceivedMessage, *_session: object) -> None:
        handler(message)

    with runner.running(handle, transaction=transaction):
        for offset in range(6):
            handler.has_begun(b"%d" % offset)
            if offset < 5:
                handler.step()
        # On SQLite a handler in a transaction is the file's only writer.
        moving = threading.Thread(target=lambda: reset(mq, {0: 2}, force=True))
        moving.start()
        if not (transaction and mq.engine.dialect.name == "sqlite"):
            moving.join(PATIENCE_SECONDS)
            assert positions(mq) == [2]
        for _ in range(3 * COUNT):
            handler.step()
        moving.join(PATIENCE_SECONDS)
        until(lambda: positions(mq) == [COUNT], "everything handled again")

    again = handler.given[handler.given.index(b"2", 3) :]
    assert [value for value in again if int(value) < 2] == []
    assert again[-8:] == [b"%d" % offset for offset in range(2, COUNT)]


def test_moved_back_and_forth_under_several_consumers_nothing_from_the_last_position_on_is_missing(
    make_mq: MakeMQ, mq: MQ
) -> None:
    partitions, count = 4, 50
    mq.create_topic("orders", partitions)
    for number in range(partitions):
        producer = mq.producer("orders")
        for offset in range(count):
            producer.produce_with_partition(Message(b"%d" % offset), number)
    is_over = threading.Event()
    seen: list[list[tuple[int, int]]] = [[] for _ in range(3)]

    def read(consumer: Consumer, into: list[tuple[int, int]]) -> None:
        while not is_over.is_set():
            into += [(one.partition, one.offset) for one in consumer.poll(7, timeout=0.05)]

    queues = [make_mq(lease_seconds=LEASE_SECONDS, commit_interval_seconds=0.01) for _ in seen]
    consumers = [queue.consumer("orders", "billing") for queue in queues]
    with ThreadPoolExecutor(len(seen)) as threads:
        reading = [threads.submit(read, *pair) for pair in zip(consumers, seen, strict=True)]
        try:
            for step in range(20):
                goals = {number: (step * 17 + number * 11) % (count + 1) for number in range(partitions)}
                reset(mq, goals, force=True)
            goals = {number: number * 10 for number in range(partitions)}
            counts = [len(into) for into in seen]
            reset(mq, goals, force=True)
            until(lambda: positions(mq) == [count] * partitions, "read to the end")
        finally:
            is_over.set()
        for one in reading:
            one.result(PATIENCE_SECONDS)

    last = {place for into, before in zip(seen, counts, strict=True) for place in into[before:]}
    assert {(number, offset) for number in range(partitions) for offset in range(number * 10, count)} <= last


# --- What was set aside ---


def test_moved_back_what_was_set_aside_from_there_on_comes_again_once(mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:bad", "b:bad", "c:good", "b:behind", "d:good")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(parked_rows(mq)) == 3 and positions(mq) == [5], "everything handled or set aside")

    (change,) = mq.admin.reset_group("orders", "billing", {0: 1})

    assert change.forgotten == 2
    assert parked_rows(mq) == [(0, "waiting", 1)]
    handler = Handler()
    with runner.running(handler, retry=MUCH_LATER):
        handler.has_begun(b"good", 2)
        until(lambda: positions(mq) == [5], "everything handled")
    assert handler.given == [b"bad", b"good", b"behind", b"good"]
    assert parked_rows(mq) == [(0, "waiting", 1)]


def test_dead_letters_from_the_new_position_on_are_forgotten_and_those_before_stay(mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:bad", "b:bad", "c:good")
    runner.run(Handler(b"bad"), retry=ONCE)

    reset(mq, {0: 1})

    assert parked_rows(mq) == [(0, "dead", 1)]
    runner.run(Handler(b"bad"), retry=ONCE)
    assert parked_rows(mq) == [(0, "dead", 1), (1, "dead", 1)]


@pytest.mark.parametrize("policy", ["stop", "dead"])
def test_moved_on_a_message_that_held_its_partition_up_is_forgotten(mq: MQ, runner: GroupRunner, policy: Any) -> None:
    produce(mq, "a:bad", "a:good")
    retry = ONCE if policy == "stop" else MUCH_LATER
    with runner.running(Handler(b"bad"), retry=retry, on_failure=policy):
        until(lambda: [row[1] for row in parked_rows(mq)] in (["stopped"], ["held"]), "the partition held up")

    (preview,) = mq.admin.preview_reset("orders", "billing", {0: 1})
    reset(mq, {0: 1})

    assert preview.forgotten == 1
    assert parked_rows(mq) == []
    handler = Handler()
    runner.run(handler, on_failure=policy)
    assert handler.given == [b"good"]


def test_moved_on_what_waits_before_the_new_position_is_still_tried(mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:bad", "b:good", "b:skipped", "a:behind")
    with runner.running(Handler(b"bad", b"skipped"), retry=MUCH_LATER):
        until(lambda: len(parked_rows(mq)) == 3, "set aside")
    reset(mq, {0: 1})
    reset(mq, {0: 3})

    mq.admin.parked("orders", "billing").retry(everything=True)

    handler = Handler()
    runner.run(handler)
    assert handler.given == [b"bad", b"behind"]
    assert parked_rows(mq) == []


def test_after_a_reset_nothing_counts_as_in_hand(mq: MQ, runner: GroupRunner) -> None:
    fill(mq)
    handler = Handler(stepwise=True)
    with runner.running(handler) as consumer:
        handler.has_begun(b"0")
        reset(mq, {0: 5}, force=True)
        reset(mq, {0: 0}, force=True)
        consumer.stop()
        handler.step()

    again = Handler()
    runner.run(again, retry=ONCE)

    assert again.given == [b"%d" % offset for offset in range(COUNT)]
    assert parked_rows(mq) == []


# --- A consumer seeks ---


def test_a_consumer_seeks_back_and_on(mq: MQ) -> None:
    fill(mq)
    with mq.consumer("orders", "billing") as consumer:
        receive(consumer, 5)

        consumer.seek(0, 2)
        back = values(receive(consumer, 2))
        consumer.seek(0, 8)
        on = values(receive(consumer, 2))
        consumer.seek(0, "earliest")
        earliest = values(receive(consumer, 1))
        consumer.seek(0, "latest")

        assert (back, on, earliest) == ([b"2", b"3"], [b"8", b"9"], [b"0"])
        assert consumer.poll(timeout=0) == []
        assert positions(mq) == [COUNT]


def test_a_consumer_seeks_before_it_has_asked_for_anything(filled: MQ) -> None:
    times = moments(filled)
    with filled.consumer("orders", "billing") as consumer:
        consumer.seek(0, times[6])
        first = first_since(times, times[6])  # SQLite's clock may show the same for two

        assert values(finish(consumer, COUNT - first)) == [b"%d" % offset for offset in range(first, COUNT)]


def test_a_loop_goes_on_where_it_has_sought(mq: MQ) -> None:
    fill(mq)
    seen = []
    with mq.consumer("orders", "billing") as consumer:
        for message in consumer:
            seen.append(message.offset)
            if seen == [0, 1, 2]:
                consumer.seek(0, 7)
            if message.offset == COUNT - 1:
                break

    assert seen == [0, 1, 2, 7, 8, 9]


def test_what_another_thread_has_in_hand_moves_nothing_after_a_seek(make_mq: MakeMQ, mq: MQ) -> None:
    fill(mq)
    mine = make_mq(lease_seconds=LEASE_SECONDS, commit_interval_seconds=1000.0)
    with mine.consumer("orders", "billing") as consumer, ThreadPoolExecutor(1) as other:
        taken = other.submit(lambda: consumer.poll(5, timeout=PATIENCE_SECONDS)).result(PATIENCE_SECONDS)
        assert len(taken) == 5

        consumer.seek(0, 1)
        ahead = consumer.poll(1, timeout=PATIENCE_SECONDS)
        other.submit(consumer.commit).result(PATIENCE_SECONDS)

        assert values(ahead) == [b"1"]
        assert positions(mq) == [1]
        assert values(receive(consumer, 8)) == [b"%d" % offset for offset in range(2, COUNT)]


def test_what_is_read_ahead_after_a_seek_comes_though_another_thread_finishes_what_it_had_before(
    make_mq: MakeMQ, mq: MQ
) -> None:
    fill(mq)
    mine = make_mq(lease_seconds=LEASE_SECONDS, commit_interval_seconds=1000.0)
    with mine.consumer("orders", "billing") as consumer, ThreadPoolExecutor(1) as other:
        other.submit(lambda: consumer.poll(5, timeout=PATIENCE_SECONDS)).result(PATIENCE_SECONDS)
        consumer.seek(0, 1)
        finish(consumer, 1)

        other.submit(consumer.commit).result(PATIENCE_SECONDS)

        assert values(receive(consumer, 8)) == [b"%d" % offset for offset in range(2, COUNT)]
        assert positions(mq) == [2]


def test_a_commit_that_is_sent_again_after_a_seek_is_not_written(make_mq: MakeMQ, mq: MQ) -> None:
    fill(mq)
    mine = make_mq(lease_seconds=LEASE_SECONDS, commit_interval_seconds=1000.0)
    with mine.consumer("orders", "billing") as consumer:
        receive(consumer, 5)
        consumer.poll(1, timeout=0)
        finished = consumer._core.coordinator.committable_positions()
        assert finished

        consumer.seek(0, 1)
        consumer._core.coordinator.commit_unlocked(finished)

        assert positions(mq) == [1]


def test_a_seek_beyond_the_log_is_refused_and_changes_nothing(mq: MQ) -> None:
    fill(mq)
    with mq.consumer("orders", "billing") as consumer:
        receive(consumer, 2)

        with pytest.raises(InvalidOffsetError):
            consumer.seek(0, COUNT + 1)
        for wrong in ("newest", -1):
            with pytest.raises(ValueError, match="not"):
                consumer.seek(0, wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidPartitionError):
            consumer.seek(1, 0)

        assert values(receive(consumer, 1)) == [b"2"]


def test_a_consumer_seeks_only_in_what_it_owns(mq: MQ) -> None:
    fill(mq)
    with mq.consumer("orders", "billing") as owner:
        receive(owner, 1)
        other = mq.consumer("orders", "billing")

        with pytest.raises(NotOwnedError) as raised:
            other.seek(0, 0)

    assert (raised.value.partition, raised.value.owned) == (0, ())


def test_a_consumer_that_was_moved_meanwhile_is_told_when_it_seeks(make_mq: MakeMQ, mq: MQ) -> None:
    fill(mq)
    mine = make_mq(lease_seconds=LEASE_SECONDS)
    other = make_mq()
    with mine.consumer("orders", "billing") as consumer:
        receive(consumer, 5)
        reset(other, {0: 3}, force=True)

        with pytest.raises(FencedError):
            consumer._core.coordinator.seek(0, 9)

        assert positions(mq) == [3]
        assert values(receive(consumer, 1)) == [b"3"]


def test_a_consumer_that_is_run_does_not_seek(mq: MQ, runner: GroupRunner) -> None:
    fill(mq)
    handler = Handler()
    with runner.running(handler) as consumer:
        handler.has_begun(b"9")

        with pytest.raises(RuntimeError, match="reset_group"):
            consumer.seek(0, 0)


# --- Where a new group starts ---


def test_a_new_group_starts_with_the_first_message_since_a_moment(filled: MQ) -> None:
    times = moments(filled)
    first = first_since(times, times[4])

    with filled.consumer("orders", "audit", start=times[4]) as consumer:
        assert positions(filled, "audit") == [first]
        assert values(finish(consumer, COUNT - first)) == [b"%d" % offset for offset in range(first, COUNT)]

    shown = filled.admin.describe_group("orders", "audit").start
    assert isinstance(shown, datetime)
    assert timedelta(0) <= times[4] - shown < timedelta(milliseconds=1)


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_where_a_group_started_is_shown_and_means_nothing_for_an_old_one(filled: MQ, start: Any) -> None:
    filled.consumer("orders", "audit", start=start).close()
    filled.consumer("orders", "audit", start=datetime.now(UTC)).close()

    assert filled.admin.describe_group("orders", "audit").start == start
    assert positions(filled, "audit") == [0 if start == "earliest" else COUNT]
