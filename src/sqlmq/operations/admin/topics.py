"""Topics: created, grown, described and deleted; retention and the names of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.errors import TopicConflictError, UnknownTopicError
from sqlmq.model.retention import Retention
from sqlmq.model.validation import check_growth
from sqlmq.reports.descriptions import (
    Eviction,
    PartitionDescription,
    TopicDescription,
)
from sqlmq.store import groups, messages, topics, views
from sqlmq.store import retention as store_retention

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.store.topics import Topic

DEFAULT_PARTITIONER = "murmur2"

LOCK_SECONDS = 1.0
"""How long adding partitions waits for a locked partition before the transaction is retried, without any lock."""
PURGE_MESSAGES = 10_000
"""The most messages of a deleted topic that one transaction deletes."""


def create_topic(
    conn: Connection,
    dialect: Dialect,
    name: str,
    partitions: int,
    partitioner: str | None,
    retention: Retention | None = None,
) -> bool:
    """Create a topic, unless it exists; return whether it is new.

    Raises TopicConflictError if the existing one has another partitioner than the one named.
    """
    if topics.create(conn, dialect, name, partitions, partitioner or DEFAULT_PARTITIONER, retention or Retention()):
        return True
    existing = find_topic(conn, dialect, name)
    if partitioner not in (None, existing.partitioner):
        raise TopicConflictError(name, existing.partitioner, str(partitioner))
    return False


def add_partitions(conn: Connection, dialect: Dialect, name: str, partitions: int) -> tuple[int, int]:
    """Grow a topic to *partitions* partitions; return its id, and how many were added.

    Locks all its partitions, as appends do. So the change falls between two messages in each of them, and a producer
    that waits for a lock sees it as soon as it has the lock. Raises UnknownTopicError, and InvalidPartitionError unless
    *partitions* is a multiple of the present number.
    """
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    topic = topics.lock(conn, dialect, find_topic(conn, dialect, name))
    if topic is None:
        raise UnknownTopicError(name)
    check_growth(name, topic.partitions, partitions)
    if partitions > topic.partitions:
        topics.lock_partitions(conn, dialect, topic)
        ends = {number: end for number, (_, end) in messages.bounds(conn, dialect, topic).items()}
        topics.add_partitions(conn, dialect, topic, partitions, ends)
    return topic.id, partitions - topic.partitions


def find_topic(conn: Connection, dialect: Dialect, name: str) -> Topic:
    """Return the topic *name*, or raise UnknownTopicError."""
    topic = topics.find(conn, dialect, name)
    if topic is None:
        raise UnknownTopicError(name)
    return topic


def delete_topics(conn: Connection, dialect: Dialect, names: list[str]) -> list[str]:
    """Remove those topics that exist, and return their names. ``purge`` deletes their messages."""
    return topics.delete_all(conn, dialect, names)


def purge(conn: Connection, dialect: Dialect) -> bool:
    """Delete some messages of deleted topics, and return whether there may be more."""
    return topics.purge(conn, dialect, PURGE_MESSAGES)


def list_topics(conn: Connection, dialect: Dialect) -> list[str]:
    """Return the names of all topics, in order."""
    return topics.names(conn, dialect)


def describe_topic(conn: Connection, dialect: Dialect, name: str) -> TopicDescription:
    """Return a topic as it is now. Raises UnknownTopicError."""
    topic = find_topic(conn, dialect, name)
    return TopicDescription(
        name,
        topic.partitioner,
        tuple(
            PartitionDescription(
                row.partition,
                row.start_offset,
                row.end_offset,
                row.messages_per_second,
                row.estimated_bytes,
                dialect.moment_shown(row.newest_at),
            )
            for row in views.partitions(conn, dialect, name)
        ),
        tuple(groups.names(conn, dialect, topic)),
        store_retention.of_topic(conn, dialect, topic.id),
    )


def set_retention(conn: Connection, dialect: Dialect, name: str, retention: Retention) -> None:
    """Set what a topic keeps. Raises UnknownTopicError."""
    store_retention.replace(conn, dialect, find_topic(conn, dialect, name).id, retention)


def evictions(conn: Connection, dialect: Dialect, name: str) -> list[Eviction]:
    """Return what a topic's groups lost to retention, the newest last. Raises UnknownTopicError."""
    rows = store_retention.evictions(conn, dialect, find_topic(conn, dialect, name).id)
    return [
        Eviction(name, group, number, kind, start, end, dialect.moment_of(at))
        for group, number, kind, start, end, at in rows
    ]


def list_groups(conn: Connection, dialect: Dialect, topic_name: str) -> list[str]:
    """Return the names of a topic's groups, in order. Raises UnknownTopicError."""
    return groups.names(conn, dialect, find_topic(conn, dialect, topic_name))
