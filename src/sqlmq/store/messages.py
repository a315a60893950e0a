"""`sqlmq_message`, the log: its bounds, and messages by time. Appends and reads differ between databases: see ``Dialect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import case, func, select

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.store.topics import Topic


def bounds(conn: Connection, dialect: Dialect, topic: Topic) -> dict[int, tuple[int, int]]:
    """Return the oldest offset and the next offset of each partition of *topic*, by its number."""
    p, m = dialect.tables.partition, dialect.tables.message
    newest = (
        select(m.c.msg_offset + 1)
        .where(m.c.partition_id == p.c.id, m.c.msg_offset >= p.c.start_offset)
        .order_by(m.c.msg_offset.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = conn.execute(
        select(p.c.number, p.c.start_offset, func.coalesce(newest, p.c.start_offset)).where(p.c.topic_id == topic.id)
    )
    return {number: (start, end) for number, start, end in rows}


def not_older(conn: Connection, dialect: Dialect, offsets: Mapping[int, int], moment: datetime) -> set[int]:
    """Return the ids of the partitions whose message at its offset in *offsets* is not older than *moment*."""
    p, m = dialect.tables.partition, dialect.tables.message
    # A subquery, for one index look-up in each partition. A join may read the whole log.
    created_at = (
        select(m.c.created_at)
        .where(m.c.partition_id == p.c.id, m.c.msg_offset == case(dict(offsets), value=p.c.id))
        .correlate(p)
        .scalar_subquery()
    )
    return set(
        conn.execute(select(p.c.id).where(p.c.id.in_(list(offsets)), created_at >= dialect.moment(moment))).scalars()
    )


def first_not_older(
    conn: Connection, dialect: Dialect, partition_id: int, start: int, end: int, moment: datetime
) -> int | None:
    """Return the first offset from *start* to *end* of a message that is not older than *moment*, or None.

    Reads the messages before it, one after the other.
    """
    m = dialect.tables.message
    found: int | None = conn.execute(
        select(m.c.msg_offset)
        .where(
            m.c.partition_id == partition_id,
            m.c.msg_offset >= start,
            m.c.msg_offset < end,
            m.c.created_at >= dialect.moment(moment),
        )
        .order_by(m.c.msg_offset)
        .limit(1)
    ).scalar()
    return found


def moment_ago(conn: Connection, dialect: Dialect, seconds: float) -> datetime:
    """Return the moment *seconds* ago by the database's clock."""
    return dialect.moment_of(conn.execute(select(dialect.seconds_from_now(-seconds))).scalar_one())
