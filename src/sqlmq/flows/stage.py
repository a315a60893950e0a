"""Staging: messages that are not in the log yet are moved into it when they are due.

Delayed ones are due at a moment of their own; those that could not be numbered in their own transaction, right after it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.dialects import Part
from sqlmq.errors import UnknownTopicError
from sqlmq.flows import manage
from sqlmq.message import Contents, DelayedMessage
from sqlmq.store import messages, staged, topics

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.flows.produce import Placed
    from sqlmq.options import Due
    from sqlmq.store.staged import Outlook

MOVE_MESSAGES = 200
"""How many messages one transaction moves; they pass through this process."""
LOCK_SECONDS = 1.0
"""How long a mover waits for somebody who has the partition's lock, before it tries another time."""
LOOK_MESSAGES = 1_000
"""How many messages that are due one look takes note of."""


class Moved(NamedTuple):
    """What one transaction has moved, and to which topic; None if that is gone."""

    topic_id: int | None
    messages: int

    @property
    def may_leave_more(self) -> bool:
        """Whether there may be more to move in that partition."""
        return self.messages == MOVE_MESSAGES


class Delayed(NamedTuple):
    """Delayed messages that were stored, in the order in which they were given."""

    messages: list[DelayedMessage]
    wait_seconds: float
    """In how many seconds they are due, from when they were stored; inf if there are none."""


def look(conn: Connection, dialect: Dialect, passing_over: Collection[int] = ()) -> Outlook:
    """Which partitions, *passing_over* some, have staged messages to move, and when there will be others."""
    return staged.look(conn, dialect, LOOK_MESSAGES, passing_over)


def move(conn: Connection, dialect: Dialect, partition_id: int) -> Moved:
    """Append what is due in one partition to its log, in order, and delete it from where it was staged.

    The partition's row is locked first: several movers take turns, and each message is moved by one of them. What was
    staged for a topic that was deleted meanwhile is deleted.
    """
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    topic_id = topics.lock_partition(conn, dialect, partition_id)
    ids, found = staged.take(conn, dialect, partition_id, MOVE_MESSAGES)
    if topic_id is not None and ids:
        messages.append(conn, dialect, [Part("", partition_id, len(ids))], found)
    staged.remove(conn, dialect, ids)
    return Moved(topic_id, len(ids))


def delay(conn: Connection, dialect: Dialect, placed: Sequence[Placed], due: Due) -> Delayed:
    """Store messages until they are *due*, all at the same moment; in a transaction of any isolation level.

    Takes no lock, or on a database with one writer that alone. Raises UnknownTopicError, and stores nothing, if the
    topic of one was deleted.
    """
    if not placed:
        return Delayed([], math.inf)
    ids = [topic.partition_ids[number] for topic, number, _ in placed]
    slot = staged.slot(conn, dialect, set(ids), due)
    if slot is None:
        raise UnknownTopicError(placed[0].topic.name)
    for id_, one in zip(ids, placed, strict=True):
        if id_ not in slot.partition_ids:
            raise UnknownTopicError(one.topic.name)
    row_ids = staged.add(conn, dialect, ids, Contents.of([one.message for one in placed]), slot.deliver_at)
    stored = [
        DelayedMessage(row_id, topic.name, number, slot.deliver_at, message.key, len(message.value))
        for row_id, (topic, number, message) in zip(row_ids, placed, strict=True)
    ]
    return Delayed(stored, slot.wait_seconds)


def waiting(conn: Connection, dialect: Dialect, topic_name: str) -> list[DelayedMessage]:
    """The delayed messages of a topic, in the order in which they are due; raises UnknownTopicError."""
    topic = manage.find_topic(conn, dialect, topic_name)
    numbers = {id_: number for number, id_ in enumerate(topic.partition_ids)}
    return [
        DelayedMessage(one.id, topic_name, numbers[one.partition_id], one.deliver_at, one.key, one.value_bytes)
        for one in staged.waiting(conn, dialect, topic.partition_ids)
    ]


def cancel(conn: Connection, dialect: Dialect, ids: Collection[int]) -> set[int]:
    """Delete those of the delayed messages *ids* that still wait; return their ids. Waits for a mover that is at them."""
    return staged.cancel(conn, dialect, ids)
