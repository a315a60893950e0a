"""Reading on in a thread, while what was read before is handled.

If somebody waits for what it reads, the thread reads on at once. Only one thread of Python runs at a time, so it would
not be heard before that one has made his messages and handled them, and the database would rest meanwhile.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from sqlmq.consumer.partition import AssignedPartition
    from sqlmq.model.message import FetchedRecords

    Positions: TypeAlias = Sequence[tuple[AssignedPartition, int]]
    """Partitions, and the offset from which each is read on."""


class FetchResult(NamedTuple):
    """What was found, by partition id, where so many messages were asked for."""

    positions: Positions
    found: Mapping[int, FetchedRecords]
    at_most: int

    @property
    def is_backlog(self) -> bool:
        """Whether that is about as much as was asked for, so that there is likely to be more."""
        return 2 * sum(map(len, self.found.values())) >= self.at_most

    def following_positions(self) -> Positions:
        """The same partitions, from where on nothing is read."""
        return [
            (assigned, position + len(self.found.get(assigned.partition_id, ())))
            for assigned, position in self.positions
        ]


NextFetch: TypeAlias = "Callable[[FetchResult], Positions] | None"
"""Tells where to read on after something was read; None for nowhere."""


class _Fetch:
    """What is being read, and what is read after that."""

    __slots__ = ("next", "positions", "result")

    result: Future[FetchResult]

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.next: _Fetch | None = None


class Prefetcher:
    """One reading after the other, each received once. *read* asks the database, in a thread of this object's.

    For one thread at a time, as everything of a consumer's.
    """

    def __init__(self, read: Callable[[Positions, int], FetchResult]) -> None:
        self._read = read
        self._fetch: _Fetch | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._is_awaited = False
        self.next_fetch: NextFetch = None
        """Called in the thread when it has read something, if somebody waits for that."""

    @property
    def positions_under_way(self) -> Positions:
        """Where it is being read, or was, what is to be received next; nowhere, if nothing is."""
        return self._fetch.positions if self._fetch is not None else ()

    @property
    def is_ready(self) -> bool:
        """Whether there is something to be received now."""
        return self._fetch is not None and self._fetch.result.done()

    def begin(self, positions: Positions, at_most: int, go_on: NextFetch) -> None:
        """Begin to read somewhere; nothing is under way."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlmq-read")
        self.next_fetch = go_on
        self._fetch = self._submit(self._thread, positions, at_most)

    def receive(self) -> FetchResult:
        """What was read, or is being read: that is waited for. Raises what reading it raised."""
        assert self._fetch is not None  # noqa: S101 - as under_way has told
        reading, self._fetch = self._fetch, None
        self._is_awaited = True
        try:
            return reading.result.result()
        finally:
            self._is_awaited = False
            self._fetch = reading.next

    def close(self, seconds: float) -> None:
        """Read nothing more; wait for what is being read, so that it leaves no connection behind, but not for ever."""
        self.next_fetch = None
        while self._fetch is not None:
            wait([self._fetch.result], seconds)
            self._fetch = self._fetch.next
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, thread: ThreadPoolExecutor, positions: Positions, at_most: int) -> _Fetch:
        reading = _Fetch(positions)

        def run() -> FetchResult:
            read = self._read(positions, at_most)
            go_on = self.next_fetch
            if self._is_awaited and go_on is not None and read.is_backlog:
                reading.next = self._submit(thread, go_on(read), at_most)
            return read

        reading.result = thread.submit(run)
        return reading
