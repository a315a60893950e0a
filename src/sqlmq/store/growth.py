"""Topics that get more partitions, and what has to be read before those that were added.

A topic grows to a multiple of what it had, so a key either stays where it is or goes to a partition that is new. That
one continues the one which the key has left, its origin: a group reads it when it is done with the origin up to where
that ended at the change, the barrier. Origins of an origin count as well, whatever came in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import column, insert, select, table, update

from sqlmq.diagnosis import NotYet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, TableClause

    from sqlmq.dialects import Dialect
    from sqlmq.store.topics import Topic

_NOT_YET = ("topic", "group_name", "partition", "origin", "barrier_offset", "group_id", "partition_id")


def add_partitions(conn: Connection, dialect: Dialect, topic: Topic, partitions: int, ends: Mapping[int, int]) -> None:
    """Have *topic* be of *partitions*, a multiple of what it had, with claims for all its groups.

    *ends* are the offsets, by number, that the next messages get. The caller has locked the topic and its partitions.
    """
    t, p = dialect.tables.topic, dialect.tables.partition
    new = [
        {"topic_id": topic.id, "number": number, "topic_partitions": partitions}
        for number in range(topic.partitions, partitions)
    ]
    conn.execute(insert(p), new)
    conn.execute(update(p).where(p.c.topic_id == topic.id).values(topic_partitions=partitions))
    conn.execute(update(t).where(t.c.id == topic.id).values(partitions=partitions))
    added = conn.execute(
        select(p.c.id, p.c.number).where(p.c.topic_id == topic.id, p.c.number >= topic.partitions)
    ).all()
    _add_origins(conn, dialect, topic, [(id_, number) for id_, number in added], ends)
    _add_claims(conn, dialect, topic, [id_ for id_, _ in added])


def is_open(dialect: Dialect) -> ColumnElement[bool]:
    """Whether the group of a claim, of the enclosing statement, is done with what has to be read before its partition."""
    c, seen = dialect.tables.claim, _seen(dialect)
    # One look for each claim: an EXISTS may become a table of all groups' partitions, for whose sake all is read.
    closed = (
        select(seen.c.partition_id)
        .where(seen.c.group_id == c.c.group_id, seen.c.partition_id == c.c.partition_id)
        .limit(1)
        .correlate(c)
        .scalar_subquery()
    )
    return closed.is_(None)


def waiting(conn: Connection, dialect: Dialect, topic: str, group: str) -> list[NotYet]:
    """The partitions that a group does not read yet, each with the first of what it waits for."""
    seen = _seen(dialect)
    rows = conn.execute(
        select(seen.c.partition, seen.c.origin, seen.c.barrier_offset)
        .where(seen.c.topic == topic, seen.c.group_name == group)
        .order_by(seen.c.partition, seen.c.origin)
    )
    found: dict[int, NotYet] = {}
    for row in rows:
        found.setdefault(row.partition, NotYet(*row))
    return list(found.values())


def _seen(dialect: Dialect) -> TableClause:
    """The view, which is the one place that works out what a group does not read yet."""
    return table("sqlmq_not_yet", *map(column, _NOT_YET), schema=dialect.schema)


def _add_origins(
    conn: Connection, dialect: Dialect, topic: Topic, added: Sequence[tuple[int, int]], ends: Mapping[int, int]
) -> None:
    o = dialect.tables.origin
    known = conn.execute(select(o).where(o.c.partition_id.in_(topic.partition_ids))).all()
    rows = []
    for id_, number in added:
        before = number % topic.partitions
        origin_id = topic.partition_ids[before]
        rows.append({"partition_id": id_, "origin_id": origin_id, "barrier_offset": ends[before]})
        rows += [
            {"partition_id": id_, "origin_id": row.origin_id, "barrier_offset": row.barrier_offset}
            for row in known
            if row.partition_id == origin_id
        ]
    conn.execute(insert(o), rows)


def _add_claims(conn: Connection, dialect: Dialect, topic: Topic, partition_ids: Sequence[int]) -> None:
    c, g = dialect.tables.claim, dialect.tables.group
    group_ids = conn.execute(select(g.c.id).where(g.c.topic_id == topic.id)).scalars().all()
    rows = [{"group_id": group_id, "partition_id": id_} for group_id in group_ids for id_ in partition_ids]
    if rows:
        conn.execute(insert(c), rows)
