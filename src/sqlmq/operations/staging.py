"""Staging: messages wait outside the log and are moved into it when they are due.

A delayed message has its own due time. A message that could not get an offset in its transaction is due after the commit.
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
from sqlmq.store import staged, topics

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.validation import Due
    from sqlmq.operations.produce import PlacedMessage
    from sqlmq.store.staged import DueMessages
    from sqlmq.store.topics import Topic

MOVE_MESSAGES = 200
"""The most messages that one transaction moves. They pass through this process."""
MOVE_BYTES = 16 * 1024 * 1024
"""After this many bytes of values a transaction takes no more messages."""
LOCK_SECONDS = 1.0
"""How long a transaction waits for the partition's lock. After that the scheduler tries again later."""
FIND_MESSAGES = 1_000
"""How many due messages ``find_due`` reads at most."""


class ScheduledBatch(NamedTuple):
    """The result of one transaction that moves messages."""

    topic_id: int | None
    """The topic of the messages; None if it was deleted."""
    messages: int
    may_leave_more: bool
    """Whether the partition may have more messages to move."""


class StagedBatch(NamedTuple):
    """Delayed messages that were stored, in the order in which the caller gave them."""

    messages: list[DelayedMessage]
    wait_seconds: float
    """Seconds from storing until they are due; inf if there are none."""


def find_due(conn: Connection, dialect: Dialect, excluded: Collection[int] = ()) -> DueMessages:
    """Find the partitions, without the *excluded* ids, that have staged messages to move, and when others are due."""
    return staged.find_due(conn, dialect, FIND_MESSAGES, excluded)


def move(conn: Connection, dialect: Dialect, partition_id: int) -> ScheduledBatch:
    """Append the due messages of one partition to its log, in order, and delete them from the staging table.

    The partition's row is locked first, so several processes take turns and each message is moved once. Messages of a
    deleted topic are deleted. If a key belongs to another partition now, because the topic has grown, its messages go
    there.
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
        dialect.append(conn, parts, taken.contents.in_order(order))
    failpoint("move.appended")
    staged.remove(conn, dialect, taken.ids)
    failpoint("move.after")
    is_full = len(taken.ids) == MOVE_MESSAGES or taken.value_bytes >= MOVE_BYTES
    return ScheduledBatch(None if topic is None else topic.id, len(taken.ids), is_full)


def _places(topic: Topic, partition_id: int, taken: staged.DueBatch) -> list[int]:
    """Return the partition id of each message. A key may have moved to another partition since it was staged."""
    here = topic.partition_ids.index(partition_id)
    places = []
    for key, known in zip(taken.contents.keys, taken.topic_partitions, strict=True):
        number = here
        if known != topic.partitions and key is not None and known:
            is_by_key = partition_for_key(topic.partitioner, key, known) == here
            number = partition_for_key(topic.partitioner, key, topic.partitions) if is_by_key else here
        places.append(topic.partition_ids[number])
    return places


def stage(conn: Connection, dialect: Dialect, placed: Sequence[PlacedMessage], due: Due) -> StagedBatch:
    """Store messages until they are *due*, all at the same time, in a transaction of any isolation level.

    Takes no lock, except the write lock of a database with one writer. Raises UnknownTopicError if a topic was deleted,
    and TopicGrownError if it has grown since its producer read it; then nothing is stored.
    """
    if not placed:
        return StagedBatch([], math.inf)
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
    return StagedBatch(stored, slot.wait_seconds)


def list_delayed(conn: Connection, dialect: Dialect, topic_name: str) -> list[DelayedMessage]:
    """Return the delayed messages of a topic, the earliest first. Raises UnknownTopicError."""
    topic = admin_topics.find_topic(conn, dialect, topic_name)
    numbers = {id_: number for number, id_ in enumerate(topic.partition_ids)}
    return [
        DelayedMessage(one.id, topic_name, numbers[one.partition_id], one.deliver_at, one.key, one.value_bytes)
        for one in staged.waiting(conn, dialect, topic.partition_ids)
    ]


def cancel(conn: Connection, dialect: Dialect, ids: Collection[int]) -> set[int]:
    """Delete those delayed messages of *ids* that still wait, and return their ids.

    Waits for a transaction that is moving them.
    """
    cancelled = staged.cancel(conn, dialect, ids)
    failpoint("cancel.after")
    return cancelled
