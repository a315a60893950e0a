"""Observing: how far groups are behind, who is in them, and why one does not get on. Only reads, without a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.operations.admin import parked
from sqlmq.operations.admin.topics import find_topic
from sqlmq.reports import diagnosis
from sqlmq.reports.descriptions import MemberDescription, PartitionLag
from sqlmq.store import claims, groups, messages, views

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect

KEYS = 100
"""How many blocked keys, and messages in their place, are looked at."""


def lag(conn: Connection, dialect: Dialect, topic: str | None, group: str | None) -> list[PartitionLag]:
    """How far groups are in each partition, in order of topic, group, partition; of all if not told which.

    Raises UnknownTopicError, and UnknownGroupError if both are named.
    """
    if topic is not None:
        found = find_topic(conn, dialect, topic)
        if group is not None:
            groups.get(conn, dialect, found, group)
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


def members(conn: Connection, dialect: Dialect, topic: str, group: str) -> list[MemberDescription]:
    """Who is in a group, in order of when they came. Raises UnknownTopicError or UnknownGroupError."""
    groups.get(conn, dialect, find_topic(conn, dialect, topic), group)
    described = []
    for row in views.members(conn, dialect, topic, group):
        joined_at = dialect.moment_shown(row.joined_at)
        assert joined_at is not None  # noqa: S101 - a member has joined
        numbers = tuple(sorted(map(int, filter(None, row.partitions.split(",")))))
        facts = (row.heartbeat_seconds, row.lease_seconds, bool(row.is_live), bool(row.wants_partitions))
        described.append(MemberDescription(row.member, joined_at, *facts, numbers))
    return described


def barriers(conn: Connection, dialect: Dialect, topic: str, group: str) -> list[diagnosis.PartitionBarrier]:
    """The partitions that were added to the topic and that the group does not read yet."""
    return claims.partition_barriers(conn, dialect, topic, group)


def diagnose(
    conn: Connection, dialect: Dialect, topic: str, group: str, stuck_seconds: float
) -> list[diagnosis.Finding]:
    """Why messages of a group wait. Raises UnknownTopicError or UnknownGroupError."""
    scope = parked.Scope(topic, group)
    in_place = [
        message
        for state in ("stopped", "held")
        for message in parked.page(conn, dialect, scope, parked.ParkedFilter(state=state), after=None, limit=KEYS)
    ]
    bounds = messages.bounds(conn, dialect, find_topic(conn, dialect, topic))
    return diagnosis.findings(
        diagnosis.Seen(
            lag(conn, dialect, topic, group),
            members(conn, dialect, topic, group),
            {number: start for number, (start, _) in bounds.items()},
            in_place,
            parked.blocked_keys(conn, dialect, scope, after=None, limit=KEYS),
            barriers(conn, dialect, topic, group),
            [diagnosis.Transaction(*holder) for holder in dialect.claim_holders(conn)],
            messages.moment_ago(conn, dialect, 0.0),
        ),
        stuck_seconds,
    )
