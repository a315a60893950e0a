"""A partition delivers every offset in order, and never calls a message done that is not."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sqlmq.consumer.partition import AssignedPartition, Delivery
from sqlmq.errors import OffsetGapError
from sqlmq.model.message import FetchedRecords, LogRow, ReceivedMessage

START = 5


def log(start: int, end: int, *, but: int | None = None) -> FetchedRecords:
    rows: list[LogRow] = [(1, offset, None, b"", None, 0) for offset in range(start, end) if offset != but]
    return FetchedRecords("orders", 0, rows)


def begun(messages: int = 0) -> AssignedPartition:
    partition = AssignedPartition("orders", 0, 1, 1, START)
    partition.receive(log(START, START + messages))
    return partition


def offsets(messages: list[ReceivedMessage]) -> list[int]:
    return [message.offset for message in messages]


def test_reading_begins_at_the_groups_position() -> None:
    assert begun().read_position == START


def test_messages_are_delivered_in_order() -> None:
    partition = begun(5)

    assert [offsets(partition.deliver(2)[0]) for _ in range(3)] == [[5, 6], [7, 8], [9]]


def test_delivering_a_message_does_not_finish_it() -> None:
    partition = begun(5)

    partition.deliver(3)

    assert (partition.committable(), partition.has_uncommitted) == (START, False)


def test_what_is_acknowledged_can_be_committed() -> None:
    partition = begun(5)
    _, delivery = partition.deliver(3)

    partition.acknowledge(delivery)

    assert (partition.committable(), partition.has_uncommitted) == (START + 3, True)


def test_what_is_acknowledged_out_of_order_waits_for_what_is_not() -> None:
    partition = begun(5)
    (_, first), (_, second) = partition.deliver(2), partition.deliver(2)

    partition.acknowledge(second)
    while_first_is_in_flight = partition.committable()
    partition.acknowledge(first)

    assert (while_first_is_in_flight, partition.committable()) == (START, START + 4)


def test_what_is_requeued_is_fetched_and_delivered_again() -> None:
    partition = begun(5)
    _, delivery = partition.deliver(2)

    partition.requeue(delivery)
    position = partition.read_position
    partition.receive(log(position, START + 5))

    assert position == START
    assert offsets(partition.deliver(1)[0]) == [START]


def test_what_was_prefetched_and_dropped_is_fetched_again() -> None:
    partition = begun(5)
    partition.deliver(2)

    partition.drop_prefetched()

    assert (partition.prefetched, partition.read_position) == (0, START + 2)


def test_a_lazy_delivery_is_done_message_by_message() -> None:
    partition = begun(5)
    delivery = partition.deliver_lazily(3)

    done = []
    while delivery.take():
        done.append(partition.committable())

    assert done == [START, START + 1, START + 2]


def test_what_is_pending_in_a_lazy_delivery_can_be_reclaimed() -> None:
    partition = begun(5)
    delivery = partition.deliver_lazily(4)
    delivery.take()

    partition.reclaim()

    assert delivery.take() is None
    assert offsets(partition.deliver(9)[0]) == [6, 7, 8, 9]
    assert partition.committable() == START


def test_acknowledging_a_lazy_delivery_finishes_only_what_was_taken() -> None:
    partition = begun(5)
    delivery = partition.deliver_lazily(5)
    delivery.take()

    partition.acknowledge(delivery)

    assert (partition.committable(), partition.read_position, partition.is_idle) == (START + 1, START + 5, True)


def test_a_loop_and_a_reclaim_in_another_thread_never_get_the_same_message() -> None:
    for _ in range(200):
        partition = begun(50)
        delivery = partition.deliver_lazily(50)
        taken: list[int] = []
        start = threading.Barrier(2)

        def take(delivery: Delivery = delivery, taken: list[int] = taken, start: threading.Barrier = start) -> None:
            start.wait()
            while message := delivery.take():
                taken.extend(offsets([message]))

        thread = threading.Thread(target=take)
        thread.start()
        start.wait()
        partition.reclaim()
        thread.join()

        assert taken + offsets(partition.deliver(50)[0]) == list(range(START, START + 50))


@pytest.mark.parametrize("start", [START - 1, START + 1, START + 100])
def test_an_offset_that_is_not_the_next_is_an_error(start: int) -> None:
    with pytest.raises(OffsetGapError) as caught:
        begun().receive(log(start, start + 1))

    assert (caught.value.expected, caught.value.found) == (START, start)


def test_a_gap_in_the_middle_is_an_error_and_keeps_nothing() -> None:
    partition = begun()

    with pytest.raises(OffsetGapError):
        partition.receive(log(START, START + 4, but=START + 2))

    assert partition.prefetched == 0


class Model(RuleBasedStateMachine):
    """Against a model that remembers of each offset whether it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.partition = begun()
        self.deliveries: list[Delivery] = []
        self.given: dict[Delivery, list[int]] = {}
        self.finished: set[int] = set()
        self.end = START

    @rule(count=st.integers(1, 5))
    def read(self, count: int) -> None:
        start = self.partition.read_position
        self.end = max(self.end, start + count)
        self.partition.receive(log(start, start + count))

    @precondition(lambda self: self.partition.prefetched)
    @rule(at_most=st.integers(1, 5))
    def deliver(self, at_most: int) -> None:
        expected = self.partition.next_offset - sum(len(delivery.pending) for delivery in self.deliveries)
        messages, delivery = self.partition.deliver(at_most)
        assert 1 <= len(messages) <= at_most
        assert offsets(messages) == list(range(expected, expected + len(messages)))
        self.deliveries.append(delivery)
        self.given[delivery] = list(range(expected, expected + len(messages)))

    @precondition(lambda self: self.partition.prefetched)
    @rule(at_most=st.integers(1, 5))
    def deliver_lazily(self, at_most: int) -> None:
        delivery = self.partition.deliver_lazily(at_most)
        self.deliveries.append(delivery)
        self.given[delivery] = []

    @precondition(lambda self: any(delivery.pending for delivery in self.deliveries))
    @rule()
    def take(self) -> None:
        delivery = next(delivery for delivery in self.deliveries if delivery.pending)
        message = delivery.take()
        assert message is not None
        self.finished.update(self.given[delivery])
        self.given[delivery] = offsets([message])

    @rule()
    def reclaim(self) -> None:
        self.partition.reclaim()

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        delivery = self.deliveries.pop(data.draw(st.integers(0, len(self.deliveries) - 1)))
        self.partition.acknowledge(delivery)
        self.finished.update(self.given[delivery])

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        self.partition.requeue(self.deliveries.pop(data.draw(st.integers(0, len(self.deliveries) - 1))))

    @rule()
    def drop_ahead(self) -> None:
        self.partition.drop_prefetched()

    @rule()
    def commit(self) -> None:
        self.partition.committed = max(self.partition.committed, self.partition.committable())

    @invariant()
    def everything_below_the_commit_is_finished(self) -> None:
        assert set(range(START, self.partition.committable())) <= self.finished
        assert set(range(START, self.partition.committed)) <= self.finished

    @invariant()
    def everything_is_in_flight_or_prefetched_or_done_or_to_be_fetched(self) -> None:
        held = {offset for delivery in self.deliveries for offset in self.given[delivery]}
        pending = {message.offset for delivery in self.deliveries for message in delivery.pending}
        assert set(range(START, self.partition.next_offset)) <= held | pending | self.finished
        assert self.partition.read_position == self.partition.next_offset + self.partition.prefetched

    @invariant()
    def it_is_idle_exactly_when_nothing_is_in_flight(self) -> None:
        assert self.partition.is_idle == (not self.deliveries)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_partition_follows_a_position_that_was_moved_on_elsewhere() -> None:
    partition = begun(2)

    partition.skip_to(6)

    assert (partition.read_position, partition.committable(), partition.committed, partition.prefetched) == (6, 6, 6, 0)
    assert not partition.has_uncommitted


def test_a_partition_does_not_follow_a_position_that_it_has_passed_or_while_something_is_in_flight() -> None:
    partition = begun(2)

    partition.skip_to(4)
    _, delivery = partition.deliver(1)
    partition.skip_to(9)
    partition.acknowledge(delivery)

    assert (partition.committable(), partition.prefetched) == (6, 1)
