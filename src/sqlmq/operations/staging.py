"""Staging: messages that are not in the log yet are moved into it when they are due.

Delayed ones are due at a moment of their own; those that could not be numbered in their own transaction, right after it.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.dialects import PartitionSlice, TopicGrownError
from sqlmq.errors import UnknownTopicError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.message import DelayedMessage, RecordBatch
from sqlmq.model.partitioner import partition_for_key
from sqlmq.operations.admin import topics as admin_topics
from sqlmq.store import messages, staged, topics

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.validation import Due
    from sqlmq.operations.produce import PlacedMessage
    from sqlmq.store.staged import DueMessages
    from sqlmq.store.topics import Topic

MOVE_MESSAGES = 200
"""How many messages one transaction moves; they pass through this process."""
MOVE_BYTES = 16 * 1024 * 1024
"""At how many bytes of values a transaction takes no more of them."""
LOCK_SECONDS = 1.0
"""How long a mover waits for somebody who has the partition's lock, before it tries another time."""
LOOK_MESSAGES = 1_000
"""How many messages that are due one look takes note of."""


class ScheduledBatch(NamedTuple):
    """What one transaction has moved, and to which topic; None if that is gone."""

    topic_id: int | None
    messages: int
    may_leave_more: bool
    """Whether there may be more to move in that partition."""


class Delayed(NamedTuple):
    """Delayed messages that were stored, in the order in which they were given."""

    messages: list[DelayedMessage]
    wait_seconds: float
    """In how many seconds they are due, from when they were stored; inf if there are none."""


def look(conn: Connection, dialect: Dialect, passing_over: Collection[int] = ()) -> DueMessages:
    """Which partitions, *passing_over* some, have staged messages to move, and when there will be others."""
    return staged.find_due(conn, dialect, LOOK_MESSAGES, passing_over)


def move(conn: Connection, dialect: Dialect, partition_id: int) -> ScheduledBatch:
    """Append what is due in one partition to its log, in order, and delete it from where it was staged.

    The partition's row is locked first: several movers take turns, and each message is moved by one of them. What was
    staged for a topic that was deleted meanwhile is deleted. A key that has left the partition meanwhile, because there
    are more, takes its messages along.
    """
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    topic = topics.lock_partition(conn, dialect, partition_id)
    failpoint("move.locked")
    taken = staged.lock_due(conn, dialect, partition_id, MOVE_MESSAGES, MOVE_BYTES)
    if topic is not None and taken.ids:
        places = _places(topic, partition_id, taken)
        order = sorted(range(len(places)), key=places.__getitem__)
        counts = Counter(places)
        parts = [PartitionSlice(topic.name, id_, counts[id_], topic.partitions) for id_ in sorted(counts)]
        messages.append(conn, dialect, parts, taken.contents.in_order(order))
    failpoint("move.appended")
    staged.remove(conn, dialect, taken.ids)
    failpoint("move.after")
    is_full = len(taken.ids) == MOVE_MESSAGES or taken.value_bytes >= MOVE_BYTES
    return ScheduledBatch(None if topic is None else topic.id, len(taken.ids), is_full)


def _places(topic: Topic, partition_id: int, taken: staged.DueBatch) -> list[int]:
    """The id of the partition for each message: another than it was staged for, if that was its key's and is no more."""
    here = topic.partition_ids.index(partition_id)
    places = []
    for key, known in zip(taken.contents.keys, taken.topic_partitions, strict=True):
        number = here
        if known != topic.partitions and key is not None and known:
            is_by_key = partition_for_key(topic.partitioner, key, known) == here
            number = partition_for_key(topic.partitioner, key, topic.partitions) if is_by_key else here
        places.append(topic.partition_ids[number])
    return places


def delay(conn: Connection, dialect: Dialect, placed: Sequence[PlacedMessage], due: Due) -> Delayed:
    """Store messages until they are *due*, all at the same moment; in a transaction of any isolation level.

    Takes no lock, or on a database with one writer that alone. Raises UnknownTopicError, and stores nothing, if the
    topic of one was deleted, and TopicGrownError if it has other than the partitions known.
    """
    if not placed:
        return Delayed([], math.inf)
    failpoint("stage.before")
    ids = [one.topic.partition_ids[one.number] for one in placed]
    slot = staged.slot(conn, dialect, set(ids), due)
    if slot is None:
        raise UnknownTopicError(placed[0].topic.name)
    for id_, one in zip(ids, placed, strict=True):
        if id_ not in slot.partitions:
            raise UnknownTopicError(one.topic.name)
        if slot.partitions[id_] != one.topic.partitions:
            raise TopicGrownError
    parts = [PartitionSlice(one.topic.name, id_, 1, one.topic.partitions) for id_, one in zip(ids, placed, strict=True)]
    row_ids = staged.add(conn, dialect, parts, RecordBatch.of([one.message for one in placed]), slot.deliver_at)
    failpoint("stage.after")
    stored = [
        DelayedMessage(row_id, one.topic.name, one.number, slot.deliver_at, one.message.key, len(one.message.value))
        for row_id, one in zip(row_ids, placed, strict=True)
    ]
    return Delayed(stored, slot.wait_seconds)


def waiting(conn: Connection, dialect: Dialect, topic_name: str) -> list[DelayedMessage]:
    """The delayed messages of a topic, in the order in which they are due; raises UnknownTopicError."""
    topic = admin_topics.find_topic(conn, dialect, topic_name)
    numbers = {id_: number for number, id_ in enumerate(topic.partition_ids)}
    return [
        DelayedMessage(one.id, topic_name, numbers[one.partition_id], one.deliver_at, one.key, one.value_bytes)
        for one in staged.waiting(conn, dialect, topic.partition_ids)
    ]


def cancel(conn: Connection, dialect: Dialect, ids: Collection[int]) -> set[int]:
    """Delete those of the delayed messages *ids* that still wait; return their ids. Waits for a mover that is at them."""
    cancelled = staged.cancel(conn, dialect, ids)
    failpoint("cancel.after")
    return cancelled
