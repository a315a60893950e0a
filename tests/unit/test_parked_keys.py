"""The parked messages of a partition: lanes in order, heads that are due, and how much of the log may go on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlmq import ReceivedMessage
from sqlmq.consumer.worker.parked_keys import ParkedEntry, ParkedKeys

KEYS = (b"a", b"b", b"")
keys = st.sampled_from([*KEYS, None])


def received(offset: int, key: bytes | None) -> ReceivedMessage:
    return ReceivedMessage.from_rows("orders", 0, [(1, offset, key, b"", None, 0)])[0]


def parked(*entries: ParkedEntry) -> ParkedKeys:
    return ParkedKeys(entries)


@pytest.mark.parametrize("key", KEYS)
def test_only_the_first_of_a_lane_is_due(key: bytes) -> None:
    first, second = ParkedEntry(1, key, due_at=5.0), ParkedEntry(2, key)
    parked_keys = parked(first, second)

    assert parked_keys.due(4.0) is None
    assert parked_keys.due(5.0) is first
    parked_keys.pop(first)
    assert parked_keys.due(0.0) is second


def test_messages_without_a_key_wait_for_no_other() -> None:
    parked_keys = parked(ParkedEntry(1, None, due_at=math.inf), ParkedEntry(2, None, due_at=1.0))

    found = parked_keys.due(1.0)

    assert found is not None
    assert found.offset == 2


def test_what_has_been_due_the_longest_comes_first() -> None:
    parked_keys = parked(ParkedEntry(1, b"a", due_at=3.0), ParkedEntry(2, b"b", due_at=1.0))

    found = parked_keys.due(9.0)

    assert found is not None
    assert found.offset == 2


def test_a_lane_that_is_empty_blocks_nothing() -> None:
    only = ParkedEntry(1, b"a")
    parked_keys = parked(only)

    parked_keys.pop(only)

    assert len(parked_keys) == 0
    assert parked_keys.split([received(0, b"a")], 9, 9) == ([], [received(0, b"a")])


def test_nothing_is_read_past_a_message_that_blocks() -> None:
    parked_keys = ParkedKeys([], blocking=ParkedEntry(4, b"a", due_at=7.0), is_stopped=False, maybe_attempted_to=0)

    assert not parked_keys.may_read_on(10)
    assert parked_keys.next_due_at() == 7.0


def test_a_partition_that_is_stopped_has_nothing_due() -> None:
    parked_keys = ParkedKeys([], blocking=ParkedEntry(4, b"a", due_at=7.0), is_stopped=True, maybe_attempted_to=0)

    assert parked_keys.next_due_at() == math.inf


@given(st.lists(keys, max_size=20), st.sets(st.sampled_from(KEYS)), st.integers(1, 9), st.integers(1, 9))
def test_the_log_is_split_where_a_key_waits(
    sent: list[bytes | None], blocked: set[bytes], most: int, room: int
) -> None:
    parked_keys = parked(*(ParkedEntry(number, key) for number, key in enumerate(sorted(blocked))))
    messages = [received(number, key) for number, key in enumerate(sent)]

    behind, now = parked_keys.split(messages, most, room)

    assert behind + now == messages[: len(behind) + len(now)]
    assert all(message.key in blocked for message in behind)
    assert all(message.key not in blocked for message in now)
    assert len(behind) <= room
    assert len(now) <= most
    if messages:
        assert behind + now
