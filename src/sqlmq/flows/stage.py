"""Staging: messages that could not be numbered in their own transaction are moved into the log after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlmq.dialects import Part
from sqlmq.store import messages, staged, topics

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect

MOVE_MESSAGES = 200
"""How many messages one transaction moves; they pass through this process."""
LOCK_SECONDS = 1.0
"""How long a mover waits for somebody who has the partition's lock, before it tries another time."""
_LOOK_MESSAGES = 1_000


class Moved(NamedTuple):
    """What one transaction has moved, and to which topic; None if that is gone."""

    topic_id: int | None
    messages: int

    @property
    def may_leave_more(self) -> bool:
        """Whether there may be more to move in that partition."""
        return self.messages == MOVE_MESSAGES


def due(conn: Connection, dialect: Dialect) -> list[int]:
    """The ids of partitions that have staged messages to move; not all of them if there are very many messages."""
    return staged.due(conn, dialect, _LOOK_MESSAGES)


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
