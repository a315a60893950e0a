"""Progress hands out every offset in order, and never says that something is done which is not."""

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
    progress = AssignedPartition("orders", 0, 1, 1, START)
    progress.receive(log(START, START + messages))
    return progress


def offsets(messages: list[ReceivedMessage]) -> list[int]:
    return [message.offset for message in messages]


def test_reading_begins_at_the_groups_position() -> None:
    assert begun().read_position == START


def test_messages_are_handed_out_in_order() -> None:
    progress = begun(5)

    assert [offsets(progress.deliver(2)[0]) for _ in range(3)] == [[5, 6], [7, 8], [9]]


def test_nothing_is_done_by_handing_it_out() -> None:
    progress = begun(5)

    progress.deliver(3)

    assert (progress.committable(), progress.has_uncommitted) == (START, False)


def test_what_is_finished_can_be_committed() -> None:
    progress = begun(5)
    _, span = progress.deliver(3)

    progress.acknowledge(span)

    assert (progress.committable(), progress.has_uncommitted) == (START + 3, True)


def test_what_is_finished_out_of_order_waits_for_what_is_not() -> None:
    progress = begun(5)
    (_, first), (_, second) = progress.deliver(2), progress.deliver(2)

    progress.acknowledge(second)
    while_first_is_in_hand = progress.committable()
    progress.acknowledge(first)

    assert (while_first_is_in_hand, progress.committable()) == (START, START + 4)


def test_what_is_given_up_is_read_and_handed_out_again() -> None:
    progress = begun(5)
    _, span = progress.deliver(2)

    progress.requeue(span)
    position = progress.read_position
    progress.receive(log(position, START + 5))

    assert position == START
    assert offsets(progress.deliver(1)[0]) == [START]


def test_forgetting_what_was_read_ahead_reads_it_again() -> None:
    progress = begun(5)
    progress.deliver(2)

    progress.drop_prefetched()

    assert (progress.prefetched, progress.read_position) == (0, START + 2)


def test_what_is_lent_is_done_message_by_message() -> None:
    progress = begun(5)
    span = progress.deliver_lazily(3)

    done = []
    while span.take():
        done.append(progress.committable())

    assert done == [START, START + 1, START + 2]


def test_what_is_lent_and_not_taken_can_be_recalled() -> None:
    progress = begun(5)
    span = progress.deliver_lazily(4)
    span.take()

    progress.reclaim()

    assert span.take() is None
    assert offsets(progress.deliver(9)[0]) == [6, 7, 8, 9]
    assert progress.committable() == START


def test_finishing_what_was_lent_finishes_only_what_was_taken() -> None:
    progress = begun(5)
    span = progress.deliver_lazily(5)
    span.take()

    progress.acknowledge(span)

    assert (progress.committable(), progress.read_position, progress.is_idle) == (START + 1, START + 5, True)


def test_a_loop_and_a_recall_from_another_thread_never_get_the_same_message() -> None:
    for _ in range(200):
        progress = begun(50)
        span = progress.deliver_lazily(50)
        taken: list[int] = []
        start = threading.Barrier(2)

        def take(span: Delivery = span, taken: list[int] = taken, start: threading.Barrier = start) -> None:
            start.wait()
            while message := span.take():
                taken.extend(offsets([message]))

        thread = threading.Thread(target=take)
        thread.start()
        start.wait()
        progress.reclaim()
        thread.join()

        assert taken + offsets(progress.deliver(50)[0]) == list(range(START, START + 50))


@pytest.mark.parametrize("start", [START - 1, START + 1, START + 100])
def test_an_offset_that_is_not_the_next_is_an_error(start: int) -> None:
    with pytest.raises(OffsetGapError) as caught:
        begun().receive(log(start, start + 1))

    assert (caught.value.expected, caught.value.found) == (START, start)


def test_a_gap_in_the_middle_is_an_error_and_keeps_nothing() -> None:
    progress = begun()

    with pytest.raises(OffsetGapError):
        progress.receive(log(START, START + 4, but=START + 2))

    assert progress.prefetched == 0


class Model(RuleBasedStateMachine):
    """Against a model that remembers for each offset whether somebody has finished it."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = begun()
        self.spans: list[Delivery] = []
        self.given: dict[Delivery, list[int]] = {}
        self.finished: set[int] = set()
        self.end = START

    @rule(count=st.integers(1, 5))
    def read(self, count: int) -> None:
        start = self.progress.read_position
        self.end = max(self.end, start + count)
        self.progress.receive(log(start, start + count))

    @precondition(lambda self: self.progress.prefetched)
    @rule(at_most=st.integers(1, 5))
    def hand_out(self, at_most: int) -> None:
        expected = self.progress.next_offset - sum(len(span.pending) for span in self.spans)
        messages, span = self.progress.deliver(at_most)
        assert 1 <= len(messages) <= at_most
        assert offsets(messages) == list(range(expected, expected + len(messages)))
        self.spans.append(span)
        self.given[span] = list(range(expected, expected + len(messages)))

    @precondition(lambda self: self.progress.prefetched)
    @rule(at_most=st.integers(1, 5))
    def lend(self, at_most: int) -> None:
        span = self.progress.deliver_lazily(at_most)
        self.spans.append(span)
        self.given[span] = []

    @precondition(lambda self: any(span.pending for span in self.spans))
    @rule()
    def take(self) -> None:
        span = next(span for span in self.spans if span.pending)
        message = span.take()
        assert message is not None
        self.finished.update(self.given[span])
        self.given[span] = offsets([message])

    @rule()
    def recall(self) -> None:
        self.progress.reclaim()

    @precondition(lambda self: self.spans)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        span = self.spans.pop(data.draw(st.integers(0, len(self.spans) - 1)))
        self.progress.acknowledge(span)
        self.finished.update(self.given[span])

    @precondition(lambda self: self.spans)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.progress.requeue(self.spans.pop(data.draw(st.integers(0, len(self.spans) - 1))))

    @rule()
    def drop_ahead(self) -> None:
        self.progress.drop_prefetched()

    @rule()
    def commit(self) -> None:
        self.progress.committed = max(self.progress.committed, self.progress.committable())

    @invariant()
    def everything_below_the_commit_is_finished(self) -> None:
        assert set(range(START, self.progress.committable())) <= self.finished
        assert set(range(START, self.progress.committed)) <= self.finished

    @invariant()
    def everything_is_in_hand_or_ahead_or_finished_or_to_be_read(self) -> None:
        held = {offset for span in self.spans for offset in self.given[span]}
        lent = {message.offset for span in self.spans for message in span.pending}
        assert set(range(START, self.progress.next_offset)) <= held | lent | self.finished
        assert self.progress.read_position == self.progress.next_offset + self.progress.prefetched

    @invariant()
    def it_is_idle_exactly_when_nothing_is_in_hand(self) -> None:
        assert self.progress.is_idle == (not self.spans)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_partition_follows_a_position_that_somebody_else_has_moved_on() -> None:
    progress = begun(2)

    progress.skip_to(6)

    assert (progress.read_position, progress.committable(), progress.committed, progress.prefetched) == (6, 6, 6, 0)
    assert not progress.has_uncommitted


def test_a_partition_does_not_follow_a_position_that_it_has_passed_or_while_something_is_in_hand() -> None:
    progress = begun(2)

    progress.skip_to(4)
    _, span = progress.deliver(1)
    progress.skip_to(9)
    progress.acknowledge(span)

    assert (progress.committable(), progress.prefetched) == (6, 1)
