"""Tail: read a topic as messages arrive, without a group and without writes."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Self

from sqlmq.dialects import Position
from sqlmq.errors import MQClosedError, UnknownTopicError
from sqlmq.model import validation
from sqlmq.model.message import ReceivedMessage
from sqlmq.model.timing import Deadline
from sqlmq.model.validation import check_partition, check_partition_number, check_timeout, check_topic
from sqlmq.operations.admin import topics
from sqlmq.store import messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from sqlmq.admin.access import DatabaseAccess
    from sqlmq.dialects import Dialect
    from sqlmq.store.topics import Topic

MOST_LAST = 1_000
"""The largest *last*: these messages are sorted in memory before the first one is returned."""

_READ_MESSAGES, _READ_BYTES = 500, 4 * 1024 * 1024
"""The most that one fetch reads and keeps in memory."""


class TailRequest(NamedTuple):
    """The checked arguments of a tail."""

    topic: str
    last: int
    offset: int | None
    partitions: frozenset[int] | None
    timeout: float | None


def check_tail(
    topic: str, last: int, offset: int | None, partitions: Iterable[int] | None, timeout: float | None
) -> TailRequest:
    """Return the checked arguments. Raises InvalidTopicError, TypeError or ValueError."""
    validation.integer("last", last, least=0, most=MOST_LAST)
    if offset is not None:
        validation.check_offset(offset)
    if last and offset is not None:
        message = "Give last= or offset=, not both."
        raise ValueError(message)
    numbers = None if partitions is None else frozenset(map(check_partition_number, partitions))
    return TailRequest(check_topic(topic), last, offset, numbers, check_timeout(timeout))


class Tail:
    """An iterator of the messages of a topic as they arrive. Made by ``Admin.tail``; used by one thread at a time."""

    def __init__(self, access: DatabaseAccess, request: TailRequest) -> None:
        config = access.config
        self._access = access
        self._clock = access.database.clock
        self._request = request
        self._poll_seconds = (config.poll_min_seconds, config.poll_max_seconds)
        self._pause_seconds = config.poll_min_seconds
        self._positions: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._topic = self._access.read(self._begin)
        self._deadline = Deadline.after(request.timeout, self._clock.monotonic())
        self._last = self._read_last() if request.last else []
        self._ready: deque[ReceivedMessage] = deque()
        self._has_ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReceivedMessage:
        while not self._ready:
            found = None if self._has_ended else self.step()
            if found is None:
                raise StopIteration
            if isinstance(found, float):
                self._clock.sleep(found)
            else:
                self._ready.extend(found)
        return self._ready.popleft()

    def step(self) -> list[ReceivedMessage] | float | None:
        """Read once: return messages, or how many seconds to wait before the next step, or None at the end.

        The end is reached when no message has arrived within the timeout, or when the MQ is closed. Raises
        UnknownTopicError if the topic was deleted. After the end, or an error, there is nothing
        more.
        """
        # As a generator does it: an iterator that has raised must not go on.
        self._has_ended = True
        found = self._step()
        self._has_ended = found is None
        return found

    def _step(self) -> list[ReceivedMessage] | float | None:
        if self._last:
            last, self._last = self._last, []
            return last
        try:
            found = self._access.read(self._fetch)
            if not found:
                self._access.read(self._recheck_topic)
        except MQClosedError:
            return None
        now = self._clock.monotonic()
        if found:
            self._pause_seconds = self._poll_seconds[0]
            self._deadline = Deadline.after(self._request.timeout, now)
            return found
        if self._deadline.passed(now):
            return None
        pause = min(self._pause_seconds, self._deadline.remaining(now))
        self._pause_seconds = min(self._pause_seconds * 1.5, self._poll_seconds[1])
        return pause

    def _begin(self, conn: Connection, dialect: Dialect) -> Topic:
        """Find the topic and set the start of each partition: its end, the requested offset, or *last* before the end."""
        topic = topics.find_topic(conn, dialect, self._request.topic)
        for number in sorted(self._request.partitions or ()):
            check_partition(topic.name, number, topic.partitions)
        for number, (start, end) in messages.bounds(conn, dialect, topic).items():
            at = end - self._request.last if self._request.offset is None else self._request.offset
            self._stand(topic, number, max(start, at))
            self._ends[topic.partition_ids[number]] = end
        return topic

    def _stand(self, topic: Topic, number: int, offset: int) -> None:
        if self._request.partitions is None or number in self._request.partitions:
            id_ = topic.partition_ids[number]
            self._positions[id_] = offset
            self._numbers[id_] = number

    def _recheck_topic(self, conn: Connection, dialect: Dialect) -> None:
        """Check that the topic still exists, and add new partitions from their first message."""
        topic = topics.find_topic(conn, dialect, self._request.topic)
        if topic.id != self._topic.id:
            raise UnknownTopicError(topic.name)
        for number, id_ in enumerate(topic.partition_ids):
            if id_ not in self._topic.partition_ids:
                self._stand(topic, number, 0)
        self._topic = topic

    def _fetch(self, conn: Connection, dialect: Dialect) -> list[ReceivedMessage]:
        positions = [Position(*place) for place in self._positions.items()]
        rows = dialect.read(conn, positions, limit=_READ_MESSAGES, max_bytes=_READ_BYTES)
        parts = []
        for id_, group in groupby(rows, key=lambda row: row[0]):
            arrived = ReceivedMessage.from_rows(
                self._request.topic, self._numbers[id_], group, moments_from_us=dialect.moments_from_us
            )
            self._positions[id_] = arrived[-1].offset + 1
            parts.append(arrived)
        return list(heapq.merge(*parts, key=_moment))

    def _read_last(self) -> list[ReceivedMessage]:
        """Return the newest messages of all partitions, in order of time."""
        kept: list[ReceivedMessage] = []
        # Up to the ends found at the start: the log may grow faster than it is read.
        while any(offset < self._ends[id_] for id_, offset in self._positions.items()):
            if not (found := self._access.read(self._fetch)):
                break
            kept = list(heapq.merge(kept, found, key=_moment))[-self._request.last :]
        return kept


def _moment(message: ReceivedMessage) -> float:
    return message.timestamp.timestamp()
