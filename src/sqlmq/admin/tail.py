"""A topic watched without a group: nothing is written, and nobody is told."""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlmq.dialects import Position
from sqlmq.errors import MQClosedError, UnknownTopicError
from sqlmq.model.config import check_partition, check_partition_number, check_timeout, check_topic
from sqlmq.model.message import Message
from sqlmq.model.timing import Deadline
from sqlmq.operations.admin import topics
from sqlmq.store import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.hooks.clock import Clock
    from sqlmq.store.topics import Topic

    T = TypeVar("T")

MOST_LAST = 1_000
"""From how far back the messages before now can be asked for, since they are put in order before the first is given."""

_READ_MESSAGES, _READ_BYTES = 500, 4 * 1024 * 1024
"""How much one look reads, and keeps in memory, at the most."""


class TailRead(Protocol):
    """Runs a flow in a transaction that reads."""

    def __call__(self, flow: Callable[[Connection, Dialect], T]) -> T:
        """Run *flow* and return its result."""


class TailRequest(NamedTuple):
    """What to watch, checked."""

    topic: str
    last: int
    offset: int | None
    partitions: frozenset[int] | None
    timeout: float | None


def check_tail(
    topic: str, last: int, offset: int | None, partitions: Iterable[int] | None, timeout: float | None
) -> TailRequest:
    """What to watch; raises InvalidTopicError, TypeError or ValueError for what can't be."""
    for name, number in (("last", last), ("offset", 0 if offset is None else offset)):
        if isinstance(number, bool) or not isinstance(number, int):
            message = f"{name} must be int, not {type(number).__name__}."
            raise TypeError(message)
        if number < 0:
            message = f"{name} must be 0 or more, not {number}."
            raise ValueError(message)
    if last > MOST_LAST:
        message = f"last must be {MOST_LAST:,} at the most, not {last:,}; to read from further back, give an offset."
        raise ValueError(message)
    if last and offset is not None:
        message = "Give last= or offset=, not both."
        raise ValueError(message)
    numbers = None if partitions is None else frozenset(map(check_partition_number, partitions))
    return TailRequest(check_topic(topic), last, offset, numbers, check_timeout(timeout))


class Tail:
    """Where a watcher is in each partition. Used by one thread or task at a time."""

    def __init__(
        self, read: TailRead, wanted: TailRequest, clock: Clock, *, poll_min_seconds: float, poll_max_seconds: float
    ) -> None:
        self._read = read
        self._clock = clock
        self._wanted = wanted
        self._poll_seconds = (poll_min_seconds, poll_max_seconds)
        self._pause_seconds = poll_min_seconds
        self._positions: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._topic = self._read(self._begin)
        self._deadline = Deadline.after(wanted.timeout, self._clock.monotonic())
        self._past = self._read_past() if wanted.last else []

    def step(self) -> list[Message] | float | None:
        """Look once: messages, or how many seconds to wait before the next look; None at the end.

        That is when nothing has come for the timeout, or when the MQ is closed. Raises UnknownTopicError when the topic
        was deleted.
        """
        if self._past:
            past, self._past = self._past, []
            return past
        try:
            found = self._read(self._look)
            if not found:
                self._read(self._look_around)
        except MQClosedError:
            return None
        now = self._clock.monotonic()
        if found:
            self._pause_seconds = self._poll_seconds[0]
            self._deadline = Deadline.after(self._wanted.timeout, now)
            return found
        if self._deadline.passed(now):
            return None
        pause = min(self._pause_seconds, self._deadline.remaining(now))
        self._pause_seconds = min(self._pause_seconds * 1.5, self._poll_seconds[1])
        return pause

    def messages(self) -> Iterator[Message]:
        """One message after the other, waiting in this thread."""
        while (found := self.step()) is not None:
            if isinstance(found, float):
                self._clock.sleep(found)
            else:
                yield from found

    def _begin(self, conn: Connection, dialect: Dialect) -> Topic:
        """Find the topic, and stand at the end of each partition, or as far before it as is wanted."""
        topic = topics.find_topic(conn, dialect, self._wanted.topic)
        for number in sorted(self._wanted.partitions or ()):
            check_partition(topic.name, number, topic.partitions)
        for number, (start, end) in messages.bounds(conn, dialect, topic).items():
            at = end - self._wanted.last if self._wanted.offset is None else self._wanted.offset
            self._stand(topic, number, max(start, at))
            self._ends[topic.partition_ids[number]] = end
        return topic

    def _stand(self, topic: Topic, number: int, offset: int) -> None:
        if self._wanted.partitions is None or number in self._wanted.partitions:
            id_ = topic.partition_ids[number]
            self._positions[id_] = offset
            self._numbers[id_] = number

    def _look_around(self, conn: Connection, dialect: Dialect) -> None:
        """See that the topic is still there, and which partitions it has; new ones are read from their beginning."""
        topic = topics.find_topic(conn, dialect, self._wanted.topic)
        if topic.id != self._topic.id:
            raise UnknownTopicError(topic.name)
        for number, id_ in enumerate(topic.partition_ids):
            if id_ not in self._topic.partition_ids:
                self._stand(topic, number, 0)
        self._topic = topic

    def _look(self, conn: Connection, dialect: Dialect) -> list[Message]:
        positions = [Position(*place) for place in self._positions.items()]
        rows = messages.read(conn, dialect, positions, limit=_READ_MESSAGES, max_bytes=_READ_BYTES)
        parts = []
        for id_, group in groupby(rows, key=lambda row: row[0]):
            arrived = Message.arrived(
                self._wanted.topic, self._numbers[id_], group, moments_from_us=dialect.moments_from_us
            )
            self._positions[id_] = (arrived[-1].offset or 0) + 1
            parts.append(arrived)
        return list(heapq.merge(*parts, key=_moment))

    def _read_past(self) -> list[Message]:
        """The newest messages there are, over all partitions: read by partition, and put in order."""
        kept: list[Message] = []
        # Up to where the log ended then: it may grow faster than it is read.
        while any(offset < self._ends[id_] for id_, offset in self._positions.items()):
            if not (found := self._read(self._look)):
                break
            kept = list(heapq.merge(kept, found, key=_moment))[-self._wanted.last :]
        return kept


def _moment(message: Message) -> float:
    return message.timestamp.timestamp() if message.timestamp else 0.0
