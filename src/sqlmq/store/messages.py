"""`sqlmq_message`, the log, read from a position. Appending differs between databases: ``Dialect.append``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import case, func, select

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect, Position
    from sqlmq.model.message import LogRow
    from sqlmq.store.topics import Topic


def read(
    conn: Connection, dialect: Dialect, positions: Sequence[Position], *, limit: int, max_bytes: int
) -> list[LogRow]:
    """Read messages from *positions* on, with an equal share of *limit* and *max_bytes* for each partition.

    The rows of a partition are adjacent and in order of offset. Takes no lock and waits for none.
    """
    return dialect.read(conn, positions, limit, max_bytes)


def ready(conn: Connection, dialect: Dialect, positions: Collection[Position]) -> set[Position]:
    """Return those of *positions* that have a message at or after them: one look into an index for each."""
    return dialect.ready(conn, positions) if positions else set()


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


def moment_ago(conn: Connection, dialect: Dialect, seconds: float) -> datetime:
    """Return the moment *seconds* ago by the database's clock."""
    return dialect.moment_of(conn.execute(select(dialect.seconds_from_now(-seconds))).scalar_one())
