"""Managing: topics are made, looked at and deleted, groups looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq import targets
from sqlmq.description import Eviction, GroupDescription, GroupPartition, PartitionDescription, TopicDescription
from sqlmq.errors import TopicConflictError, UnknownTopicError
from sqlmq.retention import Retention
from sqlmq.store import groups, messages, offsets, retained, topics

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.store.topics import Topic

DEFAULT_PARTITIONER = "murmur2"

PURGE_MESSAGES = 10_000
"""How many messages of a deleted topic one transaction deletes."""


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
    bounds = messages.bounds(conn, dialect, topic)
    return TopicDescription(
        name,
        topic.partitioner,
        tuple(PartitionDescription(number, start, end) for number, (start, end) in sorted(bounds.items())),
        tuple(groups.names(conn, dialect, topic)),
        retained.of_topic(conn, dialect, topic.id),
    )


def set_retention(conn: Connection, dialect: Dialect, name: str, retention: Retention) -> None:
    """Have a topic keep what *retention* says; raises UnknownTopicError if there is none."""
    retained.replace(conn, dialect, find_topic(conn, dialect, name).id, retention)


def evictions(conn: Connection, dialect: Dialect, name: str) -> list[Eviction]:
    """What a topic's groups have lost to retention, the newest last; raises UnknownTopicError if there is no topic."""
    rows = retained.evictions(conn, dialect, find_topic(conn, dialect, name).id)
    return [
        Eviction(name, group, number, kind, start, end, dialect.moment_of(at))
        for group, number, kind, start, end, at in rows
    ]


def list_groups(conn: Connection, dialect: Dialect, topic_name: str) -> list[str]:
    """The names of a topic's groups, in order; raises UnknownTopicError if there is no such topic."""
    return groups.names(conn, dialect, find_topic(conn, dialect, topic_name))


def describe_group(conn: Connection, dialect: Dialect, topic_name: str, name: str) -> GroupDescription:
    """A group as it is now; raises UnknownTopicError or UnknownGroupError if there is none."""
    topic = find_topic(conn, dialect, topic_name)
    group = groups.get(conn, dialect, topic, name)
    members = {member.id: member.name for member in groups.members(conn, dialect, group)}
    seen = groups.look(conn, dialect, [group.id])[group.id]
    owners = {claim.partition_id: members.get(claim.owner_id or 0) for claim in seen.claims}
    positions = offsets.positions(conn, dialect, group, topic.partition_ids)
    bounds = messages.bounds(conn, dialect, topic)
    return GroupDescription(
        topic_name,
        name,
        tuple(
            GroupPartition(number, positions[id_], bounds[number][1], owners.get(id_))
            for number, id_ in enumerate(topic.partition_ids)
        ),
        tuple(members.values()),
        targets.read(group.start_from),
    )
