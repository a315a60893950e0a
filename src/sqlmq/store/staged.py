"""Messages that are committed, but not in the log yet: each knows its partition, and when it is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Text, cast, delete, select

from sqlmq.message import Contents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect


def due(conn: Connection, dialect: Dialect, at_most: int) -> list[int]:
    """The ids of partitions that have messages due, in order, found among the first *at_most* of these. Takes no lock."""
    s = dialect.tables.staged
    rows = conn.execute(
        select(s.c.partition_id)
        .where(s.c.deliver_at <= select(dialect.now()).scalar_subquery())
        .order_by(s.c.deliver_at)
        .limit(at_most)
    )
    return sorted(set(rows.scalars()))


def take(conn: Connection, dialect: Dialect, partition_id: int, at_most: int) -> tuple[list[int], Contents]:
    """Lock up to *at_most* messages of a partition that are due, in order; return their ids, and what they hold.

    Passes over what somebody else has locked. The caller holds the partition's own lock, so nobody appends in between.
    """
    s = dialect.tables.staged
    rows = conn.execute(
        select(s.c.id, s.c.key, s.c.value, cast(s.c.headers, Text).label("headers"))
        .where(s.c.partition_id == partition_id, s.c.deliver_at <= select(dialect.now()).scalar_subquery())
        .order_by(s.c.deliver_at, s.c.id)
        .limit(at_most)
        .with_for_update(skip_locked=True)
    ).all()
    headers = [None if row.headers is None else row.headers.encode() for row in rows]
    return [row.id for row in rows], Contents([row.key for row in rows], [row.value for row in rows], headers)


def remove(conn: Connection, dialect: Dialect, ids: Sequence[int]) -> None:
    """Delete the messages *ids*, which ``take`` has locked."""
    s = dialect.tables.staged
    conn.execute(delete(s).where(s.c.id.in_(ids)))


def remove_all(conn: Connection, dialect: Dialect, partition_ids: Sequence[int]) -> None:
    """Delete everything staged for *partition_ids*."""
    s = dialect.tables.staged
    conn.execute(delete(s).where(s.c.partition_id.in_(partition_ids)))
