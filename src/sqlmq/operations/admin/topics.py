"""Managing: topics are made, looked at and deleted, groups looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
"""How long a change of partitions waits for a producer that has one locked, before it lets go of all and tries again."""
PURGE_MESSAGES = 10_000
"""How many messages of a deleted topic one transaction deletes."""


class Grown(NamedTuple):
    """A topic's id, and how many partitions it had before."""

    topic_id: int
    before: int


def create_topic(
    conn: Connection,
    dialect: Dialect,
    name: str,
    partitions: int,
    partitioner: str | None,
    retention: Retention | None = None,
) -> bool:
    """Make a topic, unless there is one of that name; return whether it was made.

    Raises TopicConflictError if the one there is places keys by another partitioner than the one named.
    """
    if topics.create(conn, dialect, name, partitions, partitioner or DEFAULT_PARTITIONER, retention or Retention()):
        return True
    existing = find_topic(conn, dialect, name)
    if partitioner not in (None, existing.partitioner):
        raise TopicConflictError(name, existing.partitioner, str(partitioner))
    return False


def add_partitions(conn: Connection, dialect: Dialect, name: str, partitions: int) -> Grown:
    """Have a topic be of *partitions*. Raises UnknownTopicError, and InvalidPartitionError unless they are a multiple.

    All its partitions are locked as by appends: the change comes between two messages in each of them, and producers
    that wait for a lock see it as soon as they have it.
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
    return Grown(topic.id, topic.partitions)


def find_topic(conn: Connection, dialect: Dialect, name: str) -> Topic:
    """The topic called *name*; raises UnknownTopicError if there is none."""
    topic = topics.find(conn, dialect, name)
    if topic is None:
        raise UnknownTopicError(name)
    return topic


def delete_topics(conn: Connection, dialect: Dialect, names: list[str]) -> list[str]:
    """Take those of the topics *names* that exist out of use, at once; return their names. ``purge`` does the rest."""
    return topics.delete_all(conn, dialect, names)


def purge(conn: Connection, dialect: Dialect) -> bool:
    """Delete some messages of deleted topics; return whether there may be more."""
    return topics.purge(conn, dialect, PURGE_MESSAGES)


def list_topics(conn: Connection, dialect: Dialect) -> list[str]:
    """The names of all topics, in order."""
    return topics.names(conn, dialect)


def describe_topic(conn: Connection, dialect: Dialect, name: str) -> TopicDescription:
    """A topic as it is now; raises UnknownTopicError if there is none."""
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
    """Have a topic keep what *retention* says; raises UnknownTopicError if there is none."""
    store_retention.replace(conn, dialect, find_topic(conn, dialect, name).id, retention)


def evictions(conn: Connection, dialect: Dialect, name: str) -> list[Eviction]:
    """What a topic's groups have lost to retention, the newest last; raises UnknownTopicError if there is no topic."""
    rows = store_retention.evictions(conn, dialect, find_topic(conn, dialect, name).id)
    return [
        Eviction(name, group, number, kind, start, end, dialect.moment_of(at))
        for group, number, kind, start, end, at in rows
    ]


def list_groups(conn: Connection, dialect: Dialect, topic_name: str) -> list[str]:
    """The names of a topic's groups, in order; raises UnknownTopicError if there is no such topic."""
    return groups.names(conn, dialect, find_topic(conn, dialect, topic_name))
