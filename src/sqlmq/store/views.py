"""The views of lag, partitions and members. Only the views compute these numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import column, select, table

from sqlmq.schema import Moment, Number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnClause, Connection, Row
    from sqlalchemy.types import TypeEngine

    from sqlmq.dialects import Dialect

_LAG = (
    "topic",
    "group_name",
    "partition",
    "position",
    "end_offset",
    "lag_seconds",
    "owner",
    "committed_at",
    "waiting",
    "dead",
)
_TYPES: dict[str, TypeEngine[Any]] = {
    "committed_at": Moment,
    "newest_at": Moment,
    "joined_at": Moment,
    "lag_seconds": Number,
    "messages_per_second": Number,
    "heartbeat_seconds": Number,
    "heartbeat_ahead_seconds": Number,
    "lease_seconds": Number,
}
_PARTITIONS = ("partition", "start_offset", "end_offset", "messages_per_second", "estimated_bytes", "newest_at")
_MEMBERS = (
    "member",
    "joined_at",
    "heartbeat_seconds",
    "lease_seconds",
    "is_live",
    "wants_partitions",
    "partitions",
    "heartbeat_ahead_seconds",
)


def lag(conn: Connection, dialect: Dialect, topic: str | None, group: str | None) -> Sequence[Row[Any]]:
    """Return the lag of groups in each partition, in order of topic, group and partition, by one statement."""
    seen = table("sqlmq_lag", *_columns(_LAG), schema=dialect.schema)
    wanted = {"topic": topic, "group_name": group}
    return conn.execute(
        select(seen)
        .where(*(seen.c[name] == value for name, value in wanted.items() if value is not None))
        .order_by(seen.c.topic, seen.c.group_name, seen.c.partition)
    ).all()


def partitions(conn: Connection, dialect: Dialect, topic: str) -> Sequence[Row[Any]]:
    """Return what each partition of *topic* holds, and how fast it grows, in order."""
    seen = table("sqlmq_partition_stats", *_columns(("topic", *_PARTITIONS)), schema=dialect.schema)
    return conn.execute(
        select(*(seen.c[name] for name in _PARTITIONS)).where(seen.c.topic == topic).order_by(seen.c.partition)
    ).all()


def members(conn: Connection, dialect: Dialect, topic: str, group: str) -> Sequence[Row[Any]]:
    """Return the members of a group, in the order of joining. Some may have a row although their lease is over."""
    seen = table("sqlmq_member_stats", *_columns(("topic", "group_name", *_MEMBERS)), schema=dialect.schema)
    return conn.execute(
        select(*(seen.c[name] for name in _MEMBERS))
        .where(seen.c.topic == topic, seen.c.group_name == group)
        .order_by(seen.c.joined_at, seen.c.member)
    ).all()


def _columns(names: Sequence[str]) -> Iterator[ColumnClause[Any]]:
    return (column(name, _TYPES.get(name)) for name in names)
