"""What stands aside of a partition: lanes in order, heads that are due, and what of the log may go on."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sqlmq import ReceivedMessage
from sqlmq.consumer.worker.parked_keys import ParkedEntry, ParkedKeys

keys = st.sampled_from([b"a", b"b", None])


def received(offset: int, key: bytes | None) -> ReceivedMessage:
    return ReceivedMessage.from_rows("orders", 0, [(1, offset, key, b"", None, 0)])[0]


def aside(*waiting: ParkedEntry) -> ParkedKeys:
    return ParkedKeys(waiting)


def test_only_the_first_of_a_lane_is_due() -> None:
    first, second = ParkedEntry(1, b"a", due_at=5.0), ParkedEntry(2, b"a")
    stands = aside(first, second)

    assert stands.due(4.0) is None
    assert stands.due(5.0) is first
    stands.pop(first)
    assert stands.due(0.0) is second


def test_messages_without_a_key_wait_for_nobody() -> None:
    stands = aside(ParkedEntry(1, None, due_at=math.inf), ParkedEntry(2, None, due_at=1.0))

    found = stands.due(1.0)

    assert found is not None
    assert found.offset == 2


def test_what_has_been_due_the_longest_comes_first() -> None:
    stands = aside(ParkedEntry(1, b"a", due_at=3.0), ParkedEntry(2, b"b", due_at=1.0))

    found = stands.due(9.0)

    assert found is not None
    assert found.offset == 2


def test_a_lane_that_is_empty_blocks_nothing() -> None:
    only = ParkedEntry(1, b"a")
    stands = aside(only)

    stands.pop(only)

    assert len(stands) == 0
    assert stands.split([received(0, b"a")], 9, 9) == ([], [received(0, b"a")])


def test_nothing_is_read_on_past_a_message_that_is_held() -> None:
    stands = ParkedKeys([], blocking=ParkedEntry(4, b"a", due_at=7.0), is_stopped=False, maybe_attempted_to=0)

    assert not stands.may_read_on(10)
    assert stands.next_due_at() == 7.0


def test_a_partition_that_is_stopped_has_nothing_due() -> None:
    stands = ParkedKeys([], blocking=ParkedEntry(4, b"a", due_at=7.0), is_stopped=True, maybe_attempted_to=0)

    assert stands.next_due_at() == math.inf


@given(st.lists(keys, max_size=20), st.sets(st.sampled_from([b"a", b"b"])), st.integers(1, 9), st.integers(1, 9))
def test_the_log_is_split_where_a_key_waits(
    sent: list[bytes | None], blocked: set[bytes], most: int, room: int
) -> None:
    stands = aside(*(ParkedEntry(number, key) for number, key in enumerate(sorted(blocked))))
    messages = [received(number, key) for number, key in enumerate(sent)]

    behind, now = stands.split(messages, most, room)

    assert behind + now == messages[: len(behind) + len(now)]
    assert all(message.key in blocked for message in behind)
    assert all(message.key not in blocked for message in now)
    assert len(behind) <= room
    assert len(now) <= most
    if messages:
        assert behind + now
