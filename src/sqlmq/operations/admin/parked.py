"""Parked messages of a group: listed, retried, discarded, copied and moved by an operator.

Each change first locks the claims of its partitions, in order of id, until the transaction ends, whichever member owns
them. So it never crosses a write of the owner. The owner notices when it reads its parked rows again, or when the outcome
of an attempt is refused (``operations.attempts``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlmq.dialects import Position
from sqlmq.errors import InvalidMessageError, MessageTooLargeError, NotParkedError, UnknownTopicError
from sqlmq.model.message import Message, ProducerResult, ReceivedMessage
from sqlmq.model.validation import check_partition
from sqlmq.operations import produce
from sqlmq.operations.admin.topics import find_topic
from sqlmq.operations.produce import RoutedMessage
from sqlmq.reports.descriptions import BlockedKey, ParkedDetails, ParkedMessage
from sqlmq.store import claims, groups, offsets, parked, topics
from sqlmq.store.offsets import Commit
from sqlmq.store.parked import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row

    from sqlmq.dialects import Dialect
    from sqlmq.model.config import ParkedState
    from sqlmq.operations.produce import KeylessPartitioner
    from sqlmq.store.groups import Group
    from sqlmq.store.parked import Size
    from sqlmq.store.topics import Topic

LOCK_SECONDS = 1.0
"""How long a statement waits for a locked claim before the transaction is retried."""
COPY_MESSAGES = 100
"""The most messages that a copy reads at a time."""
COPY_BYTES = 8 * 1024 * 1024
"""The most bytes that a copy reads at a time, unless a single message is larger."""

ORIGIN = ("sqlmq-topic", "sqlmq-partition", "sqlmq-offset", "sqlmq-group", "sqlmq-error")
"""The headers that name the origin of a copy."""


class ParkedFilter(NamedTuple):
    """Which parked messages are meant; a field that is None does not restrict."""

    partition: int | None = None
    offset: int | None = None
    key: bytes | None = None
    state: ParkedState | None = None


class ResolvedScope(NamedTuple):
    """The topic and the group whose parked messages are meant."""

    topic: Topic
    group: Group

    def select(self, wanted: ParkedFilter) -> Selection:
        """Translate *wanted* to ids. Raises InvalidPartitionError."""
        partition, offset, key, state = wanted
        return Selection(None if partition is None else [self.partition_id(partition)], offset, key, state)

    def partition_id(self, partition: int) -> int:
        """Return the id of *partition*. Raises InvalidPartitionError."""
        return self.topic.partition_ids[check_partition(self.topic.name, partition, self.topic.partitions)]

    def position(self, after: tuple[int, int] | None) -> Position | None:
        """Translate the place of a message to its partition id and offset."""
        return None if after is None else Position(self.partition_id(after[0]), after[1])

    def number(self, partition_id: int) -> int:
        """Return the number of a partition in its topic."""
        return self.topic.partition_ids.index(partition_id)


def page(
    conn: Connection,
    dialect: Dialect,
    topic: str,
    group: str,
    wanted: ParkedFilter,
    *,
    after: tuple[int, int] | None,
    limit: int,
) -> list[ParkedMessage]:
    """Return up to *limit* parked messages behind *after*, in order of partition and offset. Takes no lock."""
    scope = resolve(conn, dialect, topic, group)
    rows = parked.page(conn, dialect, scope.group, scope.select(wanted), after=scope.position(after), limit=limit)
    return [ParkedMessage(**_facts(dialect, scope, row)) for row in rows]


def details(conn: Connection, dialect: Dialect, topic: str, group: str, partition: int, offset: int) -> ParkedDetails:
    """Return a parked message with content and traceback, or raise NotParkedError. Takes no lock."""
    scope = resolve(conn, dialect, topic, group)
    selection = scope.select(ParkedFilter(partition, offset))
    row = next(iter(parked.page(conn, dialect, scope.group, selection, after=None, limit=1)), None)
    if row is None:
        raise NotParkedError(topic, group, partition, offset)
    where = Position(row.partition_id, offset)
    traceback = parked.traceback(conn, dialect, scope.group, where)
    log = dialect.read(conn, [where], limit=1, max_bytes=1)
    arrived = ReceivedMessage.from_rows(topic, partition, log, moments_from_us=dialect.moments_from_us)
    message = next((one for one in arrived if one.offset == offset), None)
    return ParkedDetails(**_facts(dialect, scope, row), traceback=traceback, message=message)


def blocked_keys(
    conn: Connection, dialect: Dialect, topic: str, group: str, *, after: tuple[int, int] | None, limit: int
) -> list[BlockedKey]:
    """Return up to *limit* blocked keys behind *after*, in order of partition and first offset. Takes no lock."""
    scope = resolve(conn, dialect, topic, group)
    rows = parked.blocked_keys(conn, dialect, scope.group, after=scope.position(after), limit=limit)
    return [
        BlockedKey(
            topic,
            group,
            scope.number(row.partition_id),
            row.key,
            row.messages,
            row.first_offset,
            row.state,
            row.attempts,
            _due_at(dialect, row),
            dialect.moment_of(row.blocked_since),
        )
        for row in rows
    ]


def retry(conn: Connection, dialect: Dialect, topic: str, group: str, wanted: ParkedFilter) -> tuple[int, int]:
    """Make messages due now, with no attempt counted; return how many, and the topic's id.

    The messages of a key wait in order of offset. A message at the group's position is held there.
    """
    scope, selection = _lock(conn, dialect, topic, group, wanted)
    blocking = _blocking_positions(conn, dialect, scope.group, selection)
    count = parked.retry(conn, dialect, scope.group, selection)
    parked.set_held(conn, dialect, scope.group, [Position(one.partition_id, one.offset) for one in blocking])
    return count, scope.topic.id


def discard(conn: Connection, dialect: Dialect, topic: str, group: str, wanted: ParkedFilter) -> tuple[int, int]:
    """Delete parked messages; return how many, and the topic's id. A message at the group's position is skipped."""
    scope, selection = _lock(conn, dialect, topic, group, wanted)
    return _discard(conn, dialect, scope.group, selection), scope.topic.id


def copy(
    conn: Connection,
    dialect: Dialect,
    topic: str,
    group: str,
    wanted: ParkedFilter,
    to: Topic,
    keyless: KeylessPartitioner,
    *,
    discarding: bool,
    max_message_bytes: int,
) -> tuple[list[ProducerResult], int]:
    """Append copies to the topic *to*; return their results, in order of the originals, and the id of the originals' topic.

    A message that is no longer in the log is skipped and stays parked. If *discarding*, the originals that were copied
    are discarded. Raises UnknownTopicError if one of the topics is gone, and MessageTooLargeError before it reads a
    message that exceeds *max_message_bytes*.
    """
    scope, selection = _lock(conn, dialect, topic, group, wanted)
    # All partitions in order, before the first append: the copies are appended in several steps, and locks taken one
    # after the other could deadlock with a producer.
    topics.lock_partitions(conn, dialect, to)
    to = _reread(conn, dialect, to)
    results: list[ProducerResult] = []
    after: Position | None = None
    while True:
        sizes = parked.sizes(conn, dialect, scope.group, selection, after=after, limit=COPY_MESSAGES)
        some = _next_batch(sizes, max_message_bytes)
        rows = parked.contents(conn, dialect, scope.group, selection, after=after, limit=some) if some else []
        if not rows:
            break
        after = Position(rows[-1].partition_id, rows[-1].msg_offset)
        routed = [RoutedMessage(_copied(scope, row, max_message_bytes), None) for row in rows]
        results += produce.append(conn, dialect, produce.make_batch(produce.place(to, routed, keyless)))
    if discarding:
        _discard(conn, dialect, scope.group, selection._replace(only_in_log=True))
    return results, scope.topic.id


def _reread(conn: Connection, dialect: Dialect, topic: Topic) -> Topic:
    """Return *topic* as it is now: it may have got more partitions."""
    found = find_topic(conn, dialect, topic.name)
    if found.id != topic.id:
        raise UnknownTopicError(topic.name)
    return found


def resolve(conn: Connection, dialect: Dialect, topic: str, group: str) -> ResolvedScope:
    """Find *topic* and *group*. Raises UnknownTopicError or UnknownGroupError."""
    found = find_topic(conn, dialect, topic)
    return ResolvedScope(found, groups.get(conn, dialect, found, group))


def _lock(
    conn: Connection, dialect: Dialect, topic: str, group: str, wanted: ParkedFilter
) -> tuple[ResolvedScope, Selection]:
    """Lock the claims of the partitions that have *wanted* messages; return a selection in those partitions."""
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    scope = resolve(conn, dialect, topic, group)
    selection = scope.select(wanted)
    ids = parked.partition_ids(conn, dialect, scope.group, selection)
    if len(claims.lock_all(conn, dialect, scope.group, ids)) < len(ids):
        raise UnknownTopicError(topic)
    return scope, selection._replace(partition_ids=ids)


def _blocking_positions(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> list[Commit]:
    """Return the group's position in each partition that waits for one of the selected messages."""
    found = parked.in_place(conn, dialect, group, selection)
    positions = offsets.positions_in_flight(conn, dialect, group, [id_ for id_, _ in found])
    return [positions[id_] for id_, offset in found if positions[id_].offset == offset]


def _discard(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> int:
    blocking = _blocking_positions(conn, dialect, group, selection)
    count = parked.discard(conn, dialect, group, selection)
    offsets.insert_all(conn, dialect, group, [_behind(one) for one in blocking], updating_in_flight=True)
    return count


def _behind(position: Commit) -> Commit:
    """Return the position behind *position*, with the messages that may be in flight beyond it.

    A single message in flight is dropped: the next owner would conclude that this message killed its process.
    """
    offset = position.offset + 1
    in_flight_to = position.in_flight_to or 0
    return Commit(position.partition_id, offset, in_flight_to if in_flight_to > offset + 1 else None)


def _next_batch(sizes: Sequence[Size], max_message_bytes: int) -> int:
    """Return how many of the messages of *sizes* to read at a time. Raises MessageTooLargeError."""
    together = 0
    for count, one in enumerate(sizes):
        for part, size in one._asdict().items():
            if size > max_message_bytes:
                raise MessageTooLargeError(part, size, max_message_bytes)
            together += size
        if count and together > COPY_BYTES:
            return count
    return len(sizes)


def _copied(scope: ResolvedScope, row: Row[Any], max_message_bytes: int) -> Message:
    headers = _headers(row.headers, max_message_bytes) if row.headers else {}
    return Message(row.value, row.key, headers | _origin(scope, row, headers))


def _headers(stored: str, max_message_bytes: int) -> dict[str, str]:
    """Parse stored headers, which any SQL client may have written."""
    # The database counted characters, not bytes.
    if (size := len(stored.encode())) > max_message_bytes:
        raise MessageTooLargeError("headers", size, max_message_bytes)
    try:
        headers = json.loads(stored)
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(text, str) for text in headers.values()):
        message = "The headers of a parked message are not a JSON object of strings, so it can't be copied. Discard it."
        raise InvalidMessageError(message)
    return headers


def _origin(scope: ResolvedScope, row: Row[Any], headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that name the origin of a copy; none if the message has such headers, being a copy itself."""
    if any(name in headers for name in ORIGIN):
        return {}
    error = f"{row.error_type}: {row.last_error}" if row.error_type else ""
    facts = (scope.topic.name, str(scope.number(row.partition_id)), str(row.msg_offset), scope.group.name, error)
    return {name: fact for name, fact in zip(ORIGIN, facts, strict=True) if fact}


def _facts(dialect: Dialect, scope: ResolvedScope, row: Row[Any]) -> dict[str, Any]:
    return {
        "topic": scope.topic.name,
        "group": scope.group.name,
        "partition": scope.number(row.partition_id),
        "offset": row.msg_offset,
        "key": row.key,
        "state": row.state,
        "attempts": row.attempts,
        "due_at": _due_at(dialect, row),
        "parked_at": dialect.moment_of(row.parked_at),
        "first_failed_at": _moment(dialect, row.first_failed_at),
        "last_failed_at": _moment(dialect, row.last_failed_at),
        "error_type": row.error_type,
        "error": row.last_error,
    }


def _due_at(dialect: Dialect, row: Row[Any]) -> datetime | None:
    return dialect.moment_of(row.due_at) if row.state in ("waiting", "held") else None


def _moment(dialect: Dialect, stored: Any) -> datetime | None:  # noqa: ANN401 - what the driver makes of the column
    return None if stored is None else dialect.moment_of(stored)
