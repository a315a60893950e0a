"""What the database reports about itself, and the health of each group. Only reads, without a lock."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.operations.admin import monitoring
from sqlmq.operations.admin.topics import find_topic
from sqlmq.reports.doctor import DatabaseStatus, GroupHealth, NotChecked, Overdue
from sqlmq.store import messages, staged
from sqlmq.store import retention as store_retention

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.reports.descriptions import PartitionLag


OVERDUE_MESSAGES = 10_000
"""The most overdue messages that are counted."""

_GROUPS = NotChecked("groups", "Run it as a monitor: sqlmq db roles --monitor ROLE | psql.")
_DELAYED = _GROUPS._replace(name="delayed messages")
_PARTS = [
    (_GROUPS, "sqlmq_lag", "dead"),
    (_GROUPS, "sqlmq_member_stats", "is_live"),
    (_GROUPS, "sqlmq_partition_barrier", "parent"),
    (_DELAYED, "sqlmq_staged", "created_at"),
]


class Examination(NamedTuple):
    """The state of the database and its groups."""

    database_status: DatabaseStatus
    now: datetime
    """By the database's clock."""
    groups: list[GroupHealth]
    overdue: list[Overdue]
    unseen: list[NotChecked]
    """What this role may not read."""


def examine(conn: Connection, dialect: Dialect) -> Examination:
    """Examine the database and all groups: a few statements for each of them, none of which counts the log."""
    now = messages.moment_ago(conn, dialect, 0.0)
    # Checked first: a refused statement would abort the transaction.
    unseen = list(dict.fromkeys(part for part, table, column in _PARTS if not dialect.may_read(conn, table, column)))
    found = [] if _GROUPS in unseen else _groups(conn, dialect, now)
    overdue = [] if _DELAYED in unseen else staged.overdue(conn, dialect, OVERDUE_MESSAGES)
    late = [Overdue(row.name, row.messages, row.seconds) for row in overdue]
    return Examination(dialect.database_status(conn), now, found, late, unseen)


def _groups(conn: Connection, dialect: Dialect, now: datetime) -> list[GroupHealth]:
    lags = groupby(monitoring.lag(conn, dialect, None, None), key=lambda lag: (lag.topic, lag.group))
    return [_group(conn, dialect, now, topic, name, list(of_group)) for (topic, name), of_group in lags]


def _group(
    conn: Connection, dialect: Dialect, now: datetime, topic: str, name: str, lags: list[PartitionLag]
) -> GroupHealth:
    members = monitoring.members(conn, dialect, topic, name)
    blocked = {barrier.partition for barrier in monitoring.barriers(conn, dialect, topic, name)}
    ownerless = [lag for lag in lags if lag.owner is None and lag.lag and lag.partition not in blocked]
    ahead = [member.heartbeat_ahead_seconds for member in members]
    ahead += [(lag.committed_at - now).total_seconds() for lag in lags if lag.committed_at is not None]
    retention = store_retention.of_topic(conn, dialect, find_topic(conn, dialect, topic).id)
    return GroupHealth(
        topic,
        name,
        sum(lag.lag for lag in lags),
        max((lag.lag_seconds for lag in ownerless), default=0.0),
        any(member.is_live for member in members),
        tuple(member.name for member in members if not member.is_live),
        sum(lag.dead for lag in lags),
        retention.is_limited and retention.protect_groups,
        max(ahead, default=0.0),
    )
