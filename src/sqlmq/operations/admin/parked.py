"""Deciding: what people and programs see of parked messages, and what they have done with them.

Each verb that changes something first locks the claims of the partitions that it touches, whoever has them, in order of
id, until the transaction ends: so it never crosses the owner's own writes. The owner finds out when it looks at its rows
again, or when what it has made of a message is refused (``flows.park``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlmq.dialects import Position
from sqlmq.errors import InvalidMessageError, MessageTooLargeError, NotParkedError, UnknownTopicError
from sqlmq.model.message import Message, ProducerResult
from sqlmq.model.validation import check_partition
from sqlmq.operations import produce
from sqlmq.operations.admin.topics import find_topic
from sqlmq.operations.produce import RoutedMessage
from sqlmq.reports.descriptions import BlockedKey, ParkedDetails, ParkedMessage
from sqlmq.store import claims, groups, messages, offsets, parked, topics
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
"""How long a statement waits for somebody who has a claim locked, before the transaction is run again."""
COPY_MESSAGES = 100
"""How many messages pass through this process at a time."""
COPY_BYTES = 8 * 1024 * 1024
"""How large they may be together, but for a single message."""

ORIGIN = ("sqlmq-topic", "sqlmq-partition", "sqlmq-offset", "sqlmq-group", "sqlmq-error")
"""The headers that say where a copy comes from."""


class Scope(NamedTuple):
    """A topic and a group on it, as they are called."""

    topic: str
    group: str


class ParkedFilter(NamedTuple):
    """Which parked messages are meant; what is None makes no difference."""

    partition: int | None = None
    offset: int | None = None
    key: bytes | None = None
    state: ParkedState | None = None


class Decided(NamedTuple):
    """What was decided: about how many messages, and of which topic, by its id."""

    topic_id: int
    messages: int


class Copied(NamedTuple):
    """Where copies are, and the id of the topic that the originals are of."""

    topic_id: int
    results: list[ProducerResult]


class _Place(NamedTuple):
    """A scope, as it was found."""

    topic: Topic
    group: Group

    def selection(self, wanted: ParkedFilter) -> Selection:
        partition, offset, key, state = wanted
        return Selection(None if partition is None else [self.partition_id(partition)], offset, key, state)

    def partition_id(self, partition: int) -> int:
        return self.topic.partition_ids[check_partition(self.topic.name, partition, self.topic.partitions)]

    def position(self, after: tuple[int, int] | None) -> Position | None:
        return None if after is None else Position(self.partition_id(after[0]), after[1])

    def number(self, partition_id: int) -> int:
        return self.topic.partition_ids.index(partition_id)


def page(
    conn: Connection, dialect: Dialect, scope: Scope, wanted: ParkedFilter, *, after: tuple[int, int] | None, limit: int
) -> list[ParkedMessage]:
    """Up to *limit* parked messages behind *after*, in order of partition and offset. Takes no lock."""
    place = _find(conn, dialect, scope)
    rows = parked.page(conn, dialect, place.group, place.selection(wanted), after=place.position(after), limit=limit)
    return [ParkedMessage(**_facts(dialect, place, row)) for row in rows]


def details(conn: Connection, dialect: Dialect, scope: Scope, partition: int, offset: int) -> ParkedDetails:
    """A parked message with all there is to know; raises NotParkedError if there is none. Takes no lock."""
    place = _find(conn, dialect, scope)
    selection = place.selection(ParkedFilter(partition, offset))
    row = next(iter(parked.page(conn, dialect, place.group, selection, after=None, limit=1)), None)
    if row is None:
        raise NotParkedError(scope.topic, scope.group, partition, offset)
    where = Position(row.partition_id, offset)
    traceback = parked.traceback(conn, dialect, place.group, where)
    log = messages.read(conn, dialect, [where], limit=1, max_bytes=1)
    arrived = Message.arrived(scope.topic, partition, log, moments_from_us=dialect.moments_from_us)
    message = next((one for one in arrived if one.offset == offset), None)
    return ParkedDetails(**_facts(dialect, place, row), traceback=traceback, message=message)


def blocked_keys(
    conn: Connection, dialect: Dialect, scope: Scope, *, after: tuple[int, int] | None, limit: int
) -> list[BlockedKey]:
    """Up to *limit* keys whose messages wait, behind *after*, in order of partition and first offset. Takes no lock."""
    place = _find(conn, dialect, scope)
    rows = parked.blocked_keys(conn, dialect, place.group, after=place.position(after), limit=limit)
    return [
        BlockedKey(
            *scope,
            place.number(row.partition_id),
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


def retry(conn: Connection, dialect: Dialect, scope: Scope, wanted: ParkedFilter) -> Decided:
    """Have messages tried again from their first attempt on, now.

    They wait, as those do that are set aside, in order of offset among those of their key; but the one at the group's
    position is held there.
    """
    place, selection = _lock(conn, dialect, scope, wanted)
    standing = _standing(conn, dialect, place.group, selection)
    count = parked.retry(conn, dialect, place.group, selection)
    parked.set_held(conn, dialect, place.group, [Position(one.partition_id, one.offset) for one in standing])
    return Decided(place.topic.id, count)


def discard(conn: Connection, dialect: Dialect, scope: Scope, wanted: ParkedFilter) -> Decided:
    """Forget messages. Behind one at the group's position the group goes on."""
    place, selection = _lock(conn, dialect, scope, wanted)
    return Decided(place.topic.id, _discard(conn, dialect, place.group, selection))


def copy(
    conn: Connection,
    dialect: Dialect,
    scope: Scope,
    wanted: ParkedFilter,
    to: Topic,
    turn: KeylessPartitioner,
    *,
    discarding: bool,
    max_message_bytes: int,
) -> Copied:
    """Append copies to the topic *to*, in order of the originals, and return their places in that order.

    What is not in the log any more is passed over. If *discarding*, the originals are discarded. Raises
    UnknownTopicError if one of the topics is gone; MessageTooLargeError, before it is read, if one exceeds
    *max_message_bytes*.
    """
    place, selection = _lock(conn, dialect, scope, wanted)
    # All at once and in order, whatever comes: the copies are appended in several steps.
    topics.lock_partitions(conn, dialect, to)
    to = _as_it_is(conn, dialect, to)
    results: list[ProducerResult] = []
    after: Position | None = None
    while True:
        sizes = parked.sizes(conn, dialect, place.group, selection, after=after, limit=COPY_MESSAGES)
        some = _at_a_time(sizes, max_message_bytes)
        rows = parked.contents(conn, dialect, place.group, selection, after=after, limit=some) if some else []
        if not rows:
            break
        after = Position(rows[-1].partition_id, rows[-1].msg_offset)
        routed = [RoutedMessage(_copied(place, row, max_message_bytes), None) for row in rows]
        results += produce.append(conn, dialect, produce.load(produce.place(to, routed, turn)))
    if discarding:
        _discard(conn, dialect, place.group, selection._replace(only_in_log=True))
    return Copied(place.topic.id, results)


def _as_it_is(conn: Connection, dialect: Dialect, topic: Topic) -> Topic:
    """*topic*, which may have got more partitions."""
    found = find_topic(conn, dialect, topic.name)
    if found.id != topic.id:
        raise UnknownTopicError(topic.name)
    return found


def _find(conn: Connection, dialect: Dialect, scope: Scope) -> _Place:
    topic = find_topic(conn, dialect, scope.topic)
    return _Place(topic, groups.get(conn, dialect, topic, scope.group))


def _lock(conn: Connection, dialect: Dialect, scope: Scope, wanted: ParkedFilter) -> tuple[_Place, Selection]:
    """Lock the claims of the partitions in which there is something of what is *wanted*; select in those alone."""
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    place = _find(conn, dialect, scope)
    selection = place.selection(wanted)
    ids = parked.partition_ids(conn, dialect, place.group, selection)
    if len(claims.lock_all(conn, dialect, place.group, ids)) < len(ids):
        raise UnknownTopicError(scope.topic)
    return place, selection._replace(partition_ids=ids)


def _standing(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> list[Commit]:
    """The group's position in those partitions that wait for one of the selected messages."""
    found = parked.in_place(conn, dialect, group, selection)
    positions = offsets.positions_in_flight(conn, dialect, group, [id_ for id_, _ in found])
    return [positions[id_] for id_, offset in found if positions[id_].offset == offset]


def _discard(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> int:
    standing = _standing(conn, dialect, group, selection)
    count = parked.discard(conn, dialect, group, selection)
    offsets.insert_all(conn, dialect, group, [_behind(one) for one in standing], marking=True)
    return count


def _behind(position: Commit) -> Commit:
    """The position behind *position*, with what may have been in hand there beyond that message.

    A single message is left out: of one alone the next owner would take it for certain.
    """
    offset = position.offset + 1
    in_flight_to = position.in_flight_to or 0
    return Commit(position.partition_id, offset, in_flight_to if in_flight_to > offset + 1 else None)


def _at_a_time(sizes: Sequence[Size], max_message_bytes: int) -> int:
    """How many of the messages of *sizes* are read at a time; raises MessageTooLargeError."""
    together = 0
    for count, one in enumerate(sizes):
        for part, size in one._asdict().items():
            if size > max_message_bytes:
                raise MessageTooLargeError(part, size, max_message_bytes)
            together += size
        if count and together > COPY_BYTES:
            return count
    return len(sizes)


def _copied(place: _Place, row: Row[Any], max_message_bytes: int) -> Message:
    headers = _headers(row.headers, max_message_bytes) if row.headers else {}
    return Message(row.value, row.key, headers | _origin(place, row, headers))


def _headers(stored: str, max_message_bytes: int) -> dict[str, str]:
    """Headers as they are stored, which may have been written by anybody."""
    # The database has counted characters.
    if (size := len(stored.encode())) > max_message_bytes:
        raise MessageTooLargeError("headers", size, max_message_bytes)
    try:
        headers = json.loads(stored)
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(text, str) for text in headers.values()):
        message = (
            "The headers of a message are no JSON object whose values are strings, so it can't be copied; discard it."
        )
        raise InvalidMessageError(message)
    return headers


def _origin(place: _Place, row: Row[Any], headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that say where a copy comes from; none if the message has such headers: it is a copy itself."""
    if any(name in headers for name in ORIGIN):
        return {}
    error = f"{row.error_type}: {row.last_error}" if row.error_type else ""
    facts = (place.topic.name, str(place.number(row.partition_id)), str(row.msg_offset), place.group.name, error)
    return {name: fact for name, fact in zip(ORIGIN, facts, strict=True) if fact}


def _facts(dialect: Dialect, place: _Place, row: Row[Any]) -> dict[str, Any]:
    return {
        "topic": place.topic.name,
        "group": place.group.name,
        "partition": place.number(row.partition_id),
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
