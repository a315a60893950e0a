"""The log itself: messages are appended to a partition's end and read from a position on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import case, func, select

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect, PartitionSlice, Position
    from sqlmq.model.message import LogRow, RecordBatch
    from sqlmq.store.topics import Topic


def append(conn: Connection, dialect: Dialect, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
    """Number the messages *contents*, which lie in order of *parts*, and add them to the end of the log.

    Returns the offset of the first message of each part; the others of a part follow without gaps. The partitions' rows,
    by whose ids the parts ascend, stay locked until the caller's transaction ends, so no message becomes readable before
    one with a smaller offset. Raises UnknownTopicError if a topic was deleted.
    """
    return dialect.append(conn, parts, contents)


def append_to_any(
    conn: Connection, dialect: Dialect, part: PartitionSlice, others: Sequence[int], contents: RecordBatch
) -> tuple[int, int]:
    """As ``append``, to *part* or, if it would have to be waited for, one of *others*; return its id, and the offset."""
    return dialect.append_to_any(conn, part, others, contents)


def publish(
    conn: Connection, dialect: Dialect, parts: Sequence[PartitionSlice], contents: RecordBatch
) -> list[int] | None:
    """As ``append``; but above READ COMMITTED, stage the messages instead, without a lock, and return None."""
    return dialect.publish(conn, parts, contents)


def read(
    conn: Connection, dialect: Dialect, positions: Sequence[Position], *, limit: int, max_bytes: int
) -> list[LogRow]:
    """Read what stands at *positions* and after, a fair part of *limit* and *max_bytes* from each partition.

    The rows of a partition come together and in order of offset. Takes no lock, and waits for nobody.
    """
    return dialect.read(conn, positions, limit, max_bytes)


def ready(conn: Connection, dialect: Dialect, positions: Collection[Position]) -> set[Position]:
    """Those of *positions* at which, or after which, there is a message: a look into an index for each."""
    return dialect.ready(conn, positions) if positions else set()


def bounds(conn: Connection, dialect: Dialect, topic: Topic) -> dict[int, tuple[int, int]]:
    """For each partition of *topic*, by its number: the oldest offset kept, and the one the next message will get."""
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
    """The ids of those partitions whose message at the offset that *offsets* gives for them is not older than *moment*."""
    p, m = dialect.tables.partition, dialect.tables.message
    # One look into the index for each partition: a join may read the whole log.
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
    """The moment *seconds* ago by the database's clock."""
    return dialect.moment_of(conn.execute(select(dialect.seconds_from_now(-seconds))).scalar_one())
