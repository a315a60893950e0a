"""A fetch is received once and in order. The thread begins the next one by itself only for a caller that waits."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sqlmq.consumer.partition import AssignedPartition
from sqlmq.consumer.prefetcher import FetchResult, NextFetch, Prefetcher
from sqlmq.model.message import FetchedRecords
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.consumer.prefetcher import Positions

AT_MOST = 10


class Log:
    """Answers each fetch with as many messages as the test says."""

    def __init__(self) -> None:
        self.asked: queue.SimpleQueue[Positions] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def read(self, positions: Positions, at_most: int) -> FetchResult:
        self.asked.put(positions)
        answer = self.answers.get(timeout=PATIENCE_SECONDS)
        if isinstance(answer, Exception):
            raise answer
        found = {
            partition.partition_id: FetchedRecords(
                "orders", 0, [(1, position + i, None, b"", None, 0) for i in range(answer)]
            )
            for partition, position in positions[:1]
        }
        return FetchResult(positions, found, at_most)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def prefetcher(log: Log) -> Iterator[Prefetcher]:
    made = Prefetcher(log.read)
    yield made
    made.close(PATIENCE_SECONDS)


@pytest.fixture
def positions() -> Positions:
    return [(AssignedPartition("orders", number, number + 1, 1, 5), 5) for number in range(2)]


def offsets(read: FetchResult) -> list[int]:
    return [offset for arrival in read.found.values() for offset in arrival.offsets()]


def places(positions: Positions) -> list[tuple[int, int]]:
    return [(partition.partition_id, position) for partition, position in positions]


def awaited(prefetcher: Prefetcher, log: Log, answer: int | Exception) -> FetchResult:
    """Receive what is under way, which finds *answer* when it is waited for already."""
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(prefetcher.receive)
        until(lambda: prefetcher._is_awaited, "a caller to wait")
        log.answers.put(answer)
        return received.result(PATIENCE_SECONDS)


def test_what_was_begun_is_received(prefetcher: Prefetcher, log: Log, positions: Positions) -> None:
    prefetcher.begin(positions, AT_MOST, None)
    assert prefetcher.positions_under_way
    assert not prefetcher.is_ready
    log.answers.put(2)
    until(lambda: prefetcher.is_ready, "it to be read")

    assert offsets(prefetcher.receive()) == [5, 6]
    assert not prefetcher.positions_under_way


def test_the_thread_reads_on_for_a_caller_that_waits(prefetcher: Prefetcher, log: Log, positions: Positions) -> None:
    prefetcher.begin(positions, AT_MOST, NextFetch(()))
    first = awaited(prefetcher, log, AT_MOST)
    log.asked.get(timeout=PATIENCE_SECONDS)

    assert places(log.asked.get(timeout=PATIENCE_SECONDS)) == [(1, 5 + AT_MOST), (2, 5)]
    assert prefetcher.positions_under_way
    assert offsets(first) + offsets(awaited(prefetcher, log, 3)) == list(range(5, 5 + AT_MOST + 3))
    assert not prefetcher.positions_under_way


def test_it_reads_on_in_other_partitions_if_there_are_any(
    prefetcher: Prefetcher, log: Log, positions: Positions
) -> None:
    elsewhere = [(AssignedPartition("orders", 7, 8, 1, 30), 30)]
    prefetcher.begin(positions, AT_MOST, NextFetch(elsewhere))
    awaited(prefetcher, log, AT_MOST)

    assert prefetcher.positions_under_way == elsewhere
    assert offsets(awaited(prefetcher, log, 2)) == [30, 31]


@pytest.mark.parametrize(("answer", "may_go_on"), [(AT_MOST, False), (AT_MOST // 2 - 1, True)])
def test_it_does_not_if_it_may_not_or_there_is_hardly_more(
    prefetcher: Prefetcher, log: Log, positions: Positions, answer: int, may_go_on: bool
) -> None:
    prefetcher.begin(positions, AT_MOST, NextFetch(()) if may_go_on else None)
    awaited(prefetcher, log, answer)

    assert not prefetcher.positions_under_way


def test_it_does_not_if_no_caller_waits(prefetcher: Prefetcher, log: Log, positions: Positions) -> None:
    prefetcher.begin(positions, AT_MOST, NextFetch(()))
    log.answers.put(AT_MOST)
    until(lambda: prefetcher.is_ready, "it to be read")
    prefetcher.receive()

    assert not prefetcher.positions_under_way


def test_an_error_is_received_and_ends_it(prefetcher: Prefetcher, log: Log, positions: Positions) -> None:
    prefetcher.begin(positions, AT_MOST, NextFetch(()))

    with pytest.raises(LookupError):
        awaited(prefetcher, log, LookupError())

    assert not prefetcher.positions_under_way
    prefetcher.begin(positions, AT_MOST, NextFetch(()))
    assert len(offsets(awaited(prefetcher, log, 1))) == 1


def test_closing_waits_for_what_the_thread_reads_by_itself(
    prefetcher: Prefetcher, log: Log, positions: Positions
) -> None:
    prefetcher.begin(positions, AT_MOST, NextFetch(()))
    awaited(prefetcher, log, AT_MOST)
    for _ in range(2):
        log.asked.get(timeout=PATIENCE_SECONDS)
    closing = threading.Thread(target=prefetcher.close, args=(PATIENCE_SECONDS,))
    closing.start()
    until(lambda: prefetcher.next_fetch is None, "closing to begin")
    assert closing.is_alive()
    log.answers.put(AT_MOST)
    closing.join(PATIENCE_SECONDS)

    assert not closing.is_alive()
    assert log.asked.empty()
