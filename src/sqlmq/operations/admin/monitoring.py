"""Lag, members, and what a waiting group waits for. Only reads, without a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.model import positions
from sqlmq.operations.admin import parked
from sqlmq.operations.admin.topics import find_topic
from sqlmq.reports import diagnosis
from sqlmq.reports.descriptions import GroupDescription, MemberDescription, PartitionLag
from sqlmq.store import claims, groups, messages, views

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.reports.problem import Problem

KEYS = 100
"""How many blocked keys, and how many messages that block a partition, a diagnosis reads."""


def describe_group(conn: Connection, dialect: Dialect, topic: str, name: str) -> GroupDescription:
    """Return a group as it is now. Raises UnknownTopicError or UnknownGroupError."""
    group = groups.get(conn, dialect, find_topic(conn, dialect, topic), name)
    return GroupDescription(
        topic,
        name,
        tuple(_partition_lags(conn, dialect, topic, name)),
        tuple(member.name for member in groups.members(conn, dialect, group)),
        positions.start_from_text(group.start_from),
    )


def lag(conn: Connection, dialect: Dialect, topic: str | None, group: str | None) -> list[PartitionLag]:
    """Return the lag of one topic's groups, one group, or all, in order of topic, group and partition.

    Raises UnknownTopicError, and UnknownGroupError if both are named.
    """
    if topic is not None:
        found = find_topic(conn, dialect, topic)
        if group is not None:
            groups.get(conn, dialect, found, group)
    return _partition_lags(conn, dialect, topic, group)


def members(conn: Connection, dialect: Dialect, topic: str, group: str) -> list[MemberDescription]:
    """Return the members of a group in the order in which they joined. Raises UnknownTopicError or UnknownGroupError."""
    groups.get(conn, dialect, find_topic(conn, dialect, topic), group)
    described = []
    for row in views.members(conn, dialect, topic, group):
        joined_at = dialect.moment_shown(row.joined_at)
        assert joined_at is not None  # noqa: S101 - the column is NOT NULL
        numbers = tuple(sorted(map(int, filter(None, row.partitions.split(",")))))
        facts = (row.heartbeat_seconds, row.lease_seconds, bool(row.is_live), bool(row.wants_partitions))
        described.append(MemberDescription(row.member, joined_at, *facts, numbers, row.heartbeat_ahead_seconds))
    return described


def barriers(conn: Connection, dialect: Dialect, topic: str, group: str) -> list[diagnosis.PartitionBarrier]:
    """Return the partitions that were added to the topic and that the group may not read yet."""
    return claims.partition_barriers(conn, dialect, topic, group)


def diagnose(conn: Connection, dialect: Dialect, topic: str, group: str, stuck_seconds: float) -> list[Problem]:
    """Return why messages of a group wait. Raises UnknownTopicError or UnknownGroupError."""
    in_place = [
        message
        for state in ("stopped", "held")
        for message in parked.page(
            conn, dialect, topic, group, parked.ParkedFilter(state=state), after=None, limit=KEYS
        )
    ]
    bounds = messages.bounds(conn, dialect, find_topic(conn, dialect, topic))
    evidence = diagnosis.GroupEvidence(
        lag(conn, dialect, topic, group),
        members(conn, dialect, topic, group),
        {number: start for number, (start, _) in bounds.items()},
        in_place,
        parked.blocked_keys(conn, dialect, topic, group, after=None, limit=KEYS),
        barriers(conn, dialect, topic, group),
        [diagnosis.OpenClaimTransaction(*holder) for holder in dialect.claim_holders(conn)],
        messages.moment_ago(conn, dialect, 0.0),
    )
    return diagnosis.find_problems(evidence, stuck_seconds)


def _partition_lags(conn: Connection, dialect: Dialect, topic: str | None, group: str | None) -> list[PartitionLag]:
    return [
        PartitionLag(
            row.topic,
            row.group_name,
            row.partition,
            row.position,
            row.end_offset,
            row.lag_seconds,
            row.owner,
            dialect.moment_shown(row.committed_at),
            row.waiting,
            row.dead,
        )
        for row in views.lag(conn, dialect, topic, group)
    ]
