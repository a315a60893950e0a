"""Groups: the partitions are shared out between the members, each to one at a time, whoever comes, goes or dies."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from sqlmq import FencedError, Message
from tests.support.blocking import acknowledge
from tests.support.waiting import PATIENCE_SECONDS, finish, receive, settle, slack_seconds, until, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq import MQ, Consumer
    from tests.conftest import MakeMQ
    from tests.support.queue_state import QueueState


def members(mq: MQ, count: int, partitions: int) -> list[Consumer]:
    """Consumers of one group on a new topic, among whom the partitions are shared out."""
    mq.create_topic("orders", partitions)
    consumers = [mq.consumer("orders", "billing", name=f"member {i}") for i in range(count)]
    settle(*consumers)
    return consumers


def sizes(consumers: Sequence[Consumer]) -> list[int]:
    return sorted(len(consumer.partitions) for consumer in consumers)


def die(mq: MQ) -> None:
    """Send no more heartbeats for the members of *mq*, as if their process were dead."""
    mq._background.heartbeat.stop()
    mq._background.housekeeping.stop()


def die_long_ago(mq: MQ, queue_state: QueueState) -> None:
    """End the leases of the members of *mq*, who do not know, in a group whose members have all joined long before."""
    die(mq)
    queue_state.make_memberships_older(3600)
    for member in mq._background.registry.members():
        queue_state.expire_member(member.member_id)


def owners(mq: MQ) -> list[str | None]:
    return [partition.owner for partition in mq.admin.describe_group("orders", "billing").partitions]


def positions(mq: MQ) -> list[int]:
    return [partition.position for partition in mq.admin.describe_group("orders", "billing").partitions]


def fill(mq: MQ, per_partition: int, partitions: int) -> None:
    producer = mq.producer("orders")
    for i, partition in itertools.product(range(per_partition), range(partitions)):
        producer.submit(Message(b"%d/%d" % (partition, i)), partition=partition).result(PATIENCE_SECONDS)


# --- Shares ---


def test_a_lone_member_gets_all_partitions(mq: MQ) -> None:
    (consumer,) = members(mq, 1, 5)

    assert consumer.partitions == (0, 1, 2, 3, 4)


def test_nothing_is_claimed_before_the_first_message_is_asked_for(mq: MQ) -> None:
    consumer = mq.consumer("orders", "billing")

    assert consumer.partitions == ()
    assert owners(mq) == [None, None, None]


@pytest.mark.parametrize("asking", list(itertools.permutations(range(3))), ids=str)
def test_three_members_get_one_of_three_partitions_each_whoever_asks_first(mq: MQ, asking: tuple[int, ...]) -> None:
    mq.create_topic("orders", 3)
    consumers = [mq.consumer("orders", "billing") for _ in range(3)]

    settle(*(consumers[i] for i in asking))

    assert sizes(consumers) == [1, 1, 1]


def test_members_that_come_one_after_the_other_get_equal_shares(make_mq: MakeMQ) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 3)
    consumers: list[Consumer] = []

    for joining in (mq, other, mq):
        consumers.append(joining.consumer("orders", "billing"))
        settle(*consumers)

    assert sizes(consumers) == [1, 1, 1]


def test_five_partitions_and_three_members_make_shares_of_2_2_and_1(mq: MQ) -> None:
    consumers = members(mq, 3, 5)

    assert sizes(consumers) == [1, 2, 2]


def test_messages_of_all_partitions_are_received_by_the_members_together(mq: MQ) -> None:
    consumers = members(mq, 3, 3)
    fill(mq, 10, 3)

    received = [receive(consumer, 10) for consumer in consumers]

    assert [{message.partition for message in own} for own in received] == [
        set(consumer.partitions) for consumer in consumers
    ]
    assert len({(m.partition, m.offset) for own in received for m in own}) == 30


def test_a_member_too_many_gets_nothing(mq: MQ) -> None:
    consumers = members(mq, 3, 2)

    assert sizes(consumers) == [0, 1, 1]


def test_a_member_too_many_takes_over_when_another_closes(mq: MQ) -> None:
    consumers = members(mq, 3, 2)
    (idle,) = [consumer for consumer in consumers if not consumer.partitions]
    closing = next(consumer for consumer in consumers if consumer.partitions)
    handed_over = closing.partitions

    closing.close()
    until(lambda: bool(idle.poll(timeout=0) or idle.partitions), "the idle member to take over")

    assert idle.partitions == handed_over


def test_each_group_shares_out_the_partitions_for_itself(mq: MQ) -> None:
    billing, shipping = mq.consumer("orders", "billing"), mq.consumer("orders", "shipping")

    billing.poll(timeout=0)
    shipping.poll(timeout=0)

    assert billing.partitions == shipping.partitions == (0, 1, 2)


# --- Sticky ---


def test_a_member_that_joins_takes_only_its_share_from_the_others(mq: MQ) -> None:
    consumers = members(mq, 2, 6)
    before = [set(consumer.partitions) for consumer in consumers]

    joined = mq.consumer("orders", "billing")
    settle(*consumers, joined)

    after = [set(consumer.partitions) for consumer in consumers]
    assert all(new < old for new, old in zip(after, before, strict=True))
    assert len(joined.partitions) == 2


def test_a_member_that_leaves_moves_nothing_but_its_own_partitions(mq: MQ) -> None:
    *staying, leaving = members(mq, 3, 6)
    before = [set(consumer.partitions) for consumer in staying]

    leaving.close()
    settle(*staying)

    assert all(old < set(consumer.partitions) for old, consumer in zip(before, staying, strict=True))


def test_nothing_moves_while_the_members_stay_the_same(mq: MQ, queue_state: QueueState) -> None:
    consumers = members(mq, 2, 5)
    before = queue_state.epochs()

    for _ in range(20):
        for consumer in consumers:
            consumer._core.coordinator.recheck_group_soon()
            consumer.poll(timeout=0)

    assert queue_state.epochs() == before


# --- Handing over ---


def test_a_closed_member_hands_over_at_once(make_mq: MakeMQ) -> None:
    here, there = make_mq(lease_seconds=60), make_mq(lease_seconds=60)
    first, second = here.consumer("orders", "billing"), there.consumer("orders", "billing")
    settle(first, second)

    first.close()
    closed_at = time.monotonic()
    settle(second)

    assert time.monotonic() - closed_at < 8 + slack_seconds()


def test_a_waiting_member_receives_what_a_closed_one_left(make_mq: MakeMQ) -> None:
    here, there = make_mq(lease_seconds=60), make_mq(lease_seconds=60)
    first, second = here.consumer("orders", "billing"), there.consumer("orders", "billing")
    settle(first, second)
    fill(here, 1, 3)
    second.poll(timeout=PATIENCE_SECONDS)

    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(receive, second, 3 - len(second.partitions))
        first.close()

        assert len(received.result(PATIENCE_SECONDS)) >= 1


@pytest.mark.pgbouncer
def test_a_dead_member_is_replaced_when_its_lease_is_over(make_mq: MakeMQ) -> None:
    dying, other = make_mq(lease_seconds=1), make_mq(lease_seconds=1)
    settle(dying.consumer("orders", "billing"), survivor := other.consumer("orders", "billing"))

    die(dying)
    died_at = time.monotonic()
    settle(survivor)

    assert time.monotonic() - died_at < 8 + slack_seconds()


def test_a_members_partitions_stay_its_own_while_it_handles_a_message_for_longer_than_the_lease(
    make_mq: MakeMQ,
) -> None:
    here, there = make_mq(lease_seconds=0.5), make_mq(lease_seconds=0.5)
    first, second = here.consumer("orders", "billing"), there.consumer("orders", "billing")
    fill(here, 1, 3)
    settle_at = time.monotonic() + 1
    mine = receive(first, 1)

    while time.monotonic() < settle_at:
        second.poll(timeout=0.1)
    first.commit()

    assert positions(here)[mine[0].partition] == 1


def test_heartbeats_go_on_while_a_consumer_is_long_in_committing(
    make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_tending, may_go_on = threading.Event(), threading.Event()

    def hang(_consumer: Consumer) -> None:
        is_tending.set()
        may_go_on.wait(PATIENCE_SECONDS)

    monkeypatch.setattr("sqlmq.consumer.core.ConsumerCore.housekeeping", hang)
    owned = make_mq(lease_seconds=1).consumer("orders", "billing")._core.coordinator
    assert is_tending.wait(PATIENCE_SECONDS)
    trusted_until = owned._lease_valid_until

    try:
        until(lambda: owned._lease_valid_until > trusted_until, "a heartbeat", seconds=10)
    finally:
        may_go_on.set()


@pytest.mark.pgbouncer
def test_a_zombies_commit_is_refused_and_changes_nothing(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    fill(mq, 3, 1)
    zombie = mq.consumer("orders", "billing")
    zombie.poll(3, timeout=PATIENCE_SECONDS)
    die_long_ago(mq, queue_state)
    successor = other.consumer("orders", "billing")
    successor_has = successor.poll(1, timeout=PATIENCE_SECONDS)

    with pytest.raises(FencedError) as caught:
        zombie.commit()

    assert caught.value.partitions == (0,)
    assert values(successor_has) == [b"0/0"]
    assert positions(other) == [0]


def test_a_zombies_close_changes_nothing(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    fill(mq, 3, 1)
    zombie = mq.consumer("orders", "billing")
    zombie.poll(3, timeout=PATIENCE_SECONDS)
    die_long_ago(mq, queue_state)
    successor = other.consumer("orders", "billing")
    successor.poll(1, timeout=PATIENCE_SECONDS)
    acknowledge(zombie)

    zombie.close()

    assert positions(other) == [0]
    assert owners(other) == [successor.name]


def test_a_zombie_that_asks_again_gets_nothing_that_its_successor_has(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq, other = make_mq(), make_mq()
    mq.create_topic("orders", 1)
    fill(mq, 5, 1)
    zombie = mq.consumer("orders", "billing")
    zombie.poll(1, timeout=PATIENCE_SECONDS)
    die_long_ago(mq, queue_state)
    successor = other.consumer("orders", "billing")
    zombie._core.membership_lost()  # as its own clock tells it after a lease without a heartbeat
    receive(successor, 5)

    assert zombie.poll(timeout=0) == []
    successor.commit()
    assert positions(other) == [5]


def test_a_member_that_was_given_up_joins_again_when_it_asks(make_mq: MakeMQ, queue_state: QueueState) -> None:
    mq, other = make_mq(), make_mq()
    paused, successor = mq.consumer("orders", "billing"), other.consumer("orders", "billing")
    settle(paused, successor)
    die_long_ago(mq, queue_state)
    settle(successor)

    settle(paused, successor)

    assert sizes([paused, successor]) == [1, 2]


def test_only_what_was_unfinished_is_delivered_again(make_mq: MakeMQ, queue_state: QueueState) -> None:
    dying, other = make_mq(), make_mq()
    dying.create_topic("orders", 1)
    fill(dying, 10, 1)
    consumer = dying.consumer("orders", "billing")
    consumer.poll(6, timeout=PATIENCE_SECONDS)
    consumer.commit()
    consumer.poll(2, timeout=PATIENCE_SECONDS)

    die_long_ago(dying, queue_state)
    received = receive(other.consumer("orders", "billing"), 4)

    assert values(received) == [b"0/%d" % i for i in range(6, 10)]


def test_positions_survive_every_member(make_mq: MakeMQ) -> None:
    first = make_mq()
    fill(first, 3, 3)
    with first.consumer("orders", "billing") as consumer:
        finish(consumer, 9)
    first.close()

    second = make_mq()
    fill(second, 1, 3)
    received = receive(second.consumer("orders", "billing"), 3)

    assert [message.offset for message in received] == [3, 3, 3]


def test_a_partition_that_moves_goes_on_at_the_position_it_has(mq: MQ) -> None:
    mq.create_topic("orders", 2)
    fill(mq, 10, 2)
    first = mq.consumer("orders", "billing")
    receive(first, 20)
    second = mq.consumer("orders", "billing")

    settle(first, second)
    fill(mq, 5, 2)
    received = [*receive(first, 5), *receive(second, 5)]

    assert sorted(message.offset for message in received) == sorted([*range(10, 15)] * 2)


def test_a_partition_is_not_handed_over_while_a_message_of_it_is_in_hand(mq: MQ) -> None:
    mq.create_topic("orders", 2)
    fill(mq, 3, 2)
    first = mq.consumer("orders", "billing")
    with ThreadPoolExecutor(1) as threads:
        # The thread lives on, and its messages are in its hands.
        held = threads.submit(first.poll, 6, timeout=PATIENCE_SECONDS).result(PATIENCE_SECONDS)
        second = mq.consumer("orders", "billing")
        for _ in range(10):
            first.poll(timeout=0)
            assert second.poll(timeout=0.02) == []
        threads.submit(first.commit).result(PATIENCE_SECONDS)
        settle(first, second)

    assert len(held) == 6
    assert positions(mq) == [3, 3]


def test_epochs_rise_with_every_new_owner(mq: MQ, queue_state: QueueState) -> None:
    mq.create_topic("orders", 2)
    seen = []

    for _ in range(3):
        with mq.consumer("orders", "billing") as consumer:
            settle(consumer)
            seen.append(queue_state.epochs())

    assert seen[0] < seen[1] < seen[2]
    assert all(new > old for before, after in itertools.pairwise(seen) for old, new in zip(before, after, strict=True))


def test_members_that_miss_what_somebody_has_in_hand_do_not_wake_each_other(make_mq: MakeMQ) -> None:
    mq = make_mq(notify=False)
    mq.create_topic("orders", 3)
    fill(mq, 1, 3)
    busy = mq.consumer("orders", "billing")
    held = receive(busy, 3)
    missing = [mq.consumer("orders", "billing") for _ in range(2)]
    for consumer in missing:
        consumer.poll(timeout=0)
    before = [consumer._core.wakeups.count for consumer in missing]

    for consumer in missing * 3:
        consumer._core.coordinator.recheck_group_soon()
        consumer.poll(timeout=0)

    assert len(held) == 3
    assert [consumer._core.wakeups.count for consumer in missing] == before


# --- Members that do not ask ---


def test_the_share_of_a_member_that_never_asks_is_taken_by_others_after_a_lease(make_mq: MakeMQ) -> None:
    mq = make_mq(lease_seconds=0.6)
    mq.create_topic("orders", 4)
    silent, asking = mq.consumer("orders", "billing"), mq.consumer("orders", "billing")

    settle(asking)

    assert (silent.partitions, asking.partitions) == ((), (0, 1, 2, 3))


def test_of_the_partitions_that_no_member_takes_the_one_that_was_free_longest_is_taken_first(mq: MQ) -> None:
    mq.create_topic("orders", 4)
    _silent, asking = mq.consumer("orders", "billing"), mq.consumer("orders", "billing")
    asking.poll(timeout=0)
    before = asking.partitions

    dialect = mq._database.dialect
    claim, member = dialect.tables.claim, dialect.tables.member
    long_ago = dialect.seconds_from_now(-60)
    with mq.engine.begin() as connection:
        connection.execute(update(member).values(joined_at=long_ago))
        last = select(func.max(claim.c.partition_id)).scalar_subquery()
        connection.execute(update(claim).where(claim.c.partition_id == last).values(changed_at=long_ago))
    asking._core.coordinator.recheck_group_soon()
    asking.poll(timeout=0)

    assert (before, asking.partitions) == ((0, 1), (0, 1, 3))


def test_a_member_that_begins_to_ask_gets_its_share_back(make_mq: MakeMQ) -> None:
    mq = make_mq(lease_seconds=0.6)
    mq.create_topic("orders", 4)
    silent, asking = mq.consumer("orders", "billing"), mq.consumer("orders", "billing")
    settle(asking)

    settle(silent, asking)

    assert sizes([silent, asking]) == [2, 2]


def test_a_member_that_has_stopped_asking_gives_its_partitions_back(make_mq: MakeMQ) -> None:
    mq = make_mq(max_poll_seconds=0.5, commit_interval_seconds=0.05, lease_seconds=0.6)
    other = make_mq(lease_seconds=0.6)
    mq.create_topic("orders", 1)
    fill(mq, 2, 1)
    stopped = mq.consumer("orders", "billing")
    receive(stopped, 2)

    received = receive(other.consumer("orders", "billing"), 2)

    assert stopped.partitions == ()
    assert values(received) == [b"0/0", b"0/1"]


def test_giving_back_is_logged(make_mq: MakeMQ, caplog: pytest.LogCaptureFixture) -> None:
    mq = make_mq(max_poll_seconds=0.2, commit_interval_seconds=0.05)
    consumer = mq.consumer("orders", "billing")
    consumer.poll(timeout=0)

    # The record is emitted after the partitions were released: no log handler runs while a lock is held.
    until(lambda: "has not asked for messages" in caplog.text, "the record")

    assert consumer.partitions == ()


def test_a_member_that_waits_for_messages_for_long_keeps_its_partitions(make_mq: MakeMQ) -> None:
    mq = make_mq(max_poll_seconds=0.2, commit_interval_seconds=0.05)
    consumer = mq.consumer("orders", "billing")

    consumer.poll(timeout=1)

    assert consumer.partitions == (0, 1, 2)


def test_a_member_that_asks_again_after_giving_back_goes_on(make_mq: MakeMQ) -> None:
    mq = make_mq(max_poll_seconds=0.2, commit_interval_seconds=0.05)
    mq.create_topic("orders", 1)
    fill(mq, 3, 1)
    consumer = mq.consumer("orders", "billing")
    consumer.poll(1, timeout=PATIENCE_SECONDS)
    until(lambda: consumer.partitions == (), "the partitions to be given back")

    assert values(receive(consumer, 3)) == [b"0/0", b"0/1", b"0/2"]


# --- Whatever happens ---


def test_members_that_die_and_come_again_leave_no_rows_behind(make_mq: MakeMQ, queue_state: QueueState) -> None:
    for _ in range(2):
        dying = make_mq()
        dying.consumer("orders", "billing")
        die_long_ago(dying, queue_state)
    mq = make_mq()

    with mq.consumer("orders", "billing", name="the living"):
        assert mq.admin.describe_group("orders", "billing").members == ("the living",)
        assert queue_state.count("SELECT count(*) FROM sqlmq_member") == 1


@pytest.mark.slow
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    steps=st.lists(st.sampled_from(["join", "leave", "ask", "ask", "send"]), min_size=5, max_size=15), data=st.data()
)
@pytest.mark.pgbouncer
def test_however_members_come_and_go_each_partition_has_one_owner_and_each_message_arrives(
    make_mq: MakeMQ, steps: list[str], data: st.DataObject
) -> None:
    queues = make_mq(), make_mq()
    queues[0].delete_topics("orders")
    queues[0].create_topic("orders", 4)
    producer = queues[0].producer("orders")
    consumers = [queues[0].consumer("orders", "billing")]
    sent: set[bytes] = set()
    finished: set[bytes] = set()

    for number, step in enumerate([*steps, "ask"]):
        if step == "send":
            value = b"%d" % number
            producer.produce(Message(value, value))
            sent.add(value)
        elif step == "join":
            consumers.append(queues[number % 2].consumer("orders", "billing"))
        elif step == "leave" and len(consumers) > 1:
            consumers.pop(data.draw(st.integers(0, len(consumers) - 1))).close()
        else:
            asking = consumers[data.draw(st.integers(0, len(consumers) - 1))]
            received = values(asking.poll(timeout=0))
            asking.commit()
            assert finished.isdisjoint(received)
            finished.update(received)
        owned = [partition for consumer in consumers for partition in consumer.partitions]
        assert len(owned) == len(set(owned))

    deadline = time.monotonic() + PATIENCE_SECONDS
    while finished != sent and time.monotonic() < deadline:
        for consumer in consumers:
            received = values(consumer.poll(timeout=0))
            consumer.commit()
            assert finished.isdisjoint(received)
            finished.update(received)
    settle(*consumers)
    for consumer in consumers:
        consumer.close()
    assert finished == sent
