"""Fetching ahead in a thread, while messages of the fetch before are handled.

If a thread waits for the result, the prefetcher's thread begins the next fetch at once. Python runs one thread at a time,
so the consumer could not ask for it before it has built and handled its messages, and the database would idle meanwhile.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sqlmq.hooks.task_threads import TaskThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from sqlmq.consumer.partition import AssignedPartition
    from sqlmq.model.message import FetchedRecords

    Positions: TypeAlias = Sequence[tuple[AssignedPartition, int]]
    """Partitions, and the offset from which each is read."""


class FetchResult(NamedTuple):
    """What a fetch of *at_most* messages has found, by partition id."""

    positions: Positions
    found: Mapping[int, FetchedRecords]
    at_most: int

    @property
    def is_backlog(self) -> bool:
        """Whether it found at least half of what it asked for, so that there are probably more messages."""
        return 2 * sum(map(len, self.found.values())) >= self.at_most

    def following_positions(self) -> Positions:
        """The same partitions, each behind what was found."""
        return [
            (assigned, position + len(self.found.get(assigned.partition_id, ())))
            for assigned, position in self.positions
        ]


class NextFetch(NamedTuple):
    """Where the prefetcher's thread reads after a fetch."""

    others: Positions
    """Partitions that the fetch does not read. If there are none, the next one reads on in the same partitions."""

    def after(self, result: FetchResult) -> Positions:
        """The positions of the fetch that follows *result*."""
        return self.others or result.following_positions()


class _Fetch:
    """A fetch under way or done, and the one that follows it."""

    __slots__ = ("next", "positions", "result")

    result: Future[FetchResult]

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.next: _Fetch | None = None


class Prefetcher:
    """Runs one fetch after the other in a thread of its own; each result is received once, in order.

    Its methods are for one thread at a time: the consumer's lock guards them.
    """

    def __init__(self, read: Callable[[Positions, int], FetchResult]) -> None:
        self._read = read
        self._fetch: _Fetch | None = None
        self._thread = TaskThreads("sqlmq-read", 1)
        self._is_awaited = False
        self.next_fetch: NextFetch | None = None
        """Where the thread reads on while a caller waits for its result; None if it must not."""

    @property
    def positions_under_way(self) -> Positions:
        """The positions of the fetch to be received next; empty if there is none."""
        return self._fetch.positions if self._fetch is not None else ()

    @property
    def is_ready(self) -> bool:
        """Whether a result can be received without waiting."""
        return self._fetch is not None and self._fetch.result.done()

    def begin(self, positions: Positions, at_most: int, next_fetch: NextFetch | None) -> None:
        """Begin a fetch. Only while none is under way. If no thread can be started, there is none: the caller has to read."""
        self.next_fetch = next_fetch
        with contextlib.suppress(RuntimeError):
            self._fetch = self._submit(positions, at_most)

    def receive(self) -> FetchResult:
        """Wait for the fetch under way and return its result. Raises the error that the fetch raised."""
        fetch = self._fetch
        assert fetch is not None  # noqa: S101 - the caller has checked positions_under_way or is_ready
        self._fetch = None
        self._is_awaited = True
        try:
            return fetch.result.result()
        finally:
            self._is_awaited = False
            self._fetch = fetch.next

    def close(self, seconds: float) -> None:
        """Begin no other fetch. Wait up to *seconds* for the one under way, so that it leaves no open connection."""
        self.next_fetch = None
        while self._fetch is not None:
            wait([self._fetch.result], seconds)
            self._fetch = self._fetch.next
        self._thread.shut_down(0.0, cancel=True)

    def _submit(self, positions: Positions, at_most: int) -> _Fetch:
        fetch = _Fetch(positions)
        fetch.result = self._thread.submit(partial(self._run, fetch, at_most))
        return fetch

    def _run(self, fetch: _Fetch, at_most: int) -> FetchResult:
        result = self._read(fetch.positions, at_most)
        next_fetch = self.next_fetch
        if self._is_awaited and next_fetch is not None and result.is_backlog:
            with contextlib.suppress(RuntimeError):  # it was closed
                fetch.next = self._submit(next_fetch.after(result), at_most)
        return result
