"""`sqlmq_topic` and `sqlmq_partition`: topics and their partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, func, insert, select, update

from sqlmq.store import retention as store_retention
from sqlmq.store import staged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.retention import Retention


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is stored."""

    id: int
    name: str
    partitioner: str
    partition_ids: tuple[int, ...]
    """The id of each partition, by its number."""

    @property
    def partitions(self) -> int:
        """How many partitions it has."""
        return len(self.partition_ids)


def find(conn: Connection, dialect: Dialect, name: str) -> Topic | None:
    """Return the topic called *name*, or None."""
    return _find(conn, dialect, dialect.tables.topic.c.name == name)


def lock_shared(conn: Connection, dialect: Dialect, topic: Topic) -> Topic | None:
    """Lock *topic* against changes until the transaction ends. Returns its current state, or None if it is gone."""
    return _lock(conn, dialect, topic, is_shared=True)


def lock(conn: Connection, dialect: Dialect, topic: Topic) -> Topic | None:
    """Lock *topic* in order to change it. Returns its current state, or None if it is gone."""
    return _lock(conn, dialect, topic, is_shared=False)


def number_of(conn: Connection, dialect: Dialect, topic: Topic, partition_id: int) -> int:
    """Return the number of a partition, which may have been added after *topic* was read."""
    if partition_id in topic.partition_ids:
        return topic.partition_ids.index(partition_id)
    p = dialect.tables.partition
    number: int = conn.execute(select(p.c.number).where(p.c.id == partition_id)).scalar_one()
    return number


def lock_partition(conn: Connection, dialect: Dialect, partition_id: int) -> Topic | None:
    """Lock a partition like an append, until the transaction ends. Returns its topic, or None if that is gone."""
    p = dialect.tables.partition
    row = select(p.c.topic_id).where(p.c.id == partition_id).with_for_update(key_share=True)
    topic_id: int | None = conn.execute(row).scalar()
    return None if topic_id is None else _find(conn, dialect, dialect.tables.topic.c.id == topic_id)


def lock_partitions(conn: Connection, dialect: Dialect, topic: Topic) -> None:
    """Lock all partitions of *topic* like appends, in their order, until the transaction ends."""
    p = dialect.tables.partition
    conn.execute(select(p.c.id).where(p.c.topic_id == topic.id).order_by(p.c.id).with_for_update(key_share=True)).all()


def names(conn: Connection, dialect: Dialect) -> list[str]:
    """Return the names of all topics, sorted."""
    t = dialect.tables.topic
    return list(conn.execute(select(t.c.name).order_by(t.c.name)).scalars())


def create(
    conn: Connection, dialect: Dialect, name: str, partitions: int, partitioner: str, retention: Retention
) -> bool:
    """Create a topic unless one with that name exists, and return whether it was created.

    Waits for a concurrent transaction that creates the same one.
    """
    t = dialect.tables.topic
    row = {"name": name, "partitions": partitions, "partitioner": partitioner} | store_retention.columns(retention)
    row["id"] = dialect.new_id(t)
    made = conn.execute(dialect.insert_new(t, ["name"]).values(row).returning(t.c.id)).scalar()
    if made is None:
        return False
    _insert_partitions(conn, dialect, made, range(partitions), of=partitions)
    return True


def add_partitions(conn: Connection, dialect: Dialect, topic: Topic, partitions: int, ends: Mapping[int, int]) -> None:
    """Grow *topic* to *partitions*, a multiple of what it has, with claims for all its groups.

    *ends* are the next offsets, by partition number. The caller has locked the topic and its partitions.
    """
    t, p = dialect.tables.topic, dialect.tables.partition
    _insert_partitions(conn, dialect, topic.id, range(topic.partitions, partitions), of=partitions)
    conn.execute(update(p).where(p.c.topic_id == topic.id).values(topic_partitions=partitions))
    conn.execute(update(t).where(t.c.id == topic.id).values(partitions=partitions))
    added = conn.execute(
        select(p.c.id, p.c.number).where(p.c.topic_id == topic.id, p.c.number >= topic.partitions)
    ).all()
    _add_parents(conn, dialect, topic, [(id_, number) for id_, number in added], ends)
    _add_claims(conn, dialect, topic, [id_ for id_, _ in added])


def delete_all(conn: Connection, dialect: Dialect, topics: list[str]) -> list[str]:
    """Delete those of *topics* that exist, with their groups, and return their names.

    The partitions stay, without a topic, until ``purge`` has deleted their messages. Waits for transactions that hold a
    claim and for producers that are committing. Locks in the common order, topic, claims, members, partitions: a
    transaction that holds a claim may be about to produce.
    """
    t, p, g = dialect.tables.topic, dialect.tables.partition, dialect.tables.group
    c, m = dialect.tables.claim, dialect.tables.member
    found = conn.execute(select(t.c.id, t.c.name).where(t.c.name.in_(topics)).order_by(t.c.id).with_for_update()).all()
    ids = [row.id for row in found]
    group_ids = list(conn.execute(select(g.c.id).where(g.c.topic_id.in_(ids))).scalars())
    partition_ids: list[int] = []
    for key, where in (
        (c.c.partition_id, c.c.group_id.in_(group_ids)),
        (m.c.id, m.c.group_id.in_(group_ids)),
        (p.c.id, p.c.topic_id.in_(ids)),
    ):
        partition_ids = list(conn.execute(select(key).where(where).order_by(key).with_for_update()).scalars())
    _delete_groups(conn, dialect, group_ids)
    staged.remove_all(conn, dialect, partition_ids)
    conn.execute(update(p).where(p.c.topic_id.in_(ids)).values(topic_id=None))
    conn.execute(delete(t).where(t.c.id.in_(ids)))
    return [row.name for row in found]


def purge(conn: Connection, dialect: Dialect, at_most: int) -> bool:
    """Delete up to *at_most* messages of a partition whose topic is gone; return whether more are left.

    Prefers a partition that no other transaction has locked. If all are locked, it waits for one: an append that lost
    against the deletion holds such a lock for a moment, and skipping it would leave the messages undeleted.
    """
    p, m, o = dialect.tables.partition, dialect.tables.message, dialect.tables.partition_parent
    wanted = select(p.c.id, p.c.purged_to).where(p.c.topic_id.is_(None)).order_by(p.c.id).limit(1)
    partition = (
        conn.execute(wanted.with_for_update(skip_locked=True)).first() or conn.execute(wanted.with_for_update()).first()
    )
    if partition is None:
        return False
    # Each search starts where the previous one ended, so it does not scan the index entries that one deleted.
    rest = and_(m.c.partition_id == partition.id, m.c.msg_offset >= partition.purged_to)
    oldest = conn.execute(select(func.min(m.c.msg_offset)).where(rest)).scalar()
    if oldest is None:
        conn.execute(delete(o).where(o.c.partition_id == partition.id))
        conn.execute(delete(p).where(p.c.id == partition.id))
    else:
        conn.execute(delete(m).where(rest, m.c.msg_offset < oldest + at_most))
        conn.execute(update(p).where(p.c.id == partition.id).values(purged_to=oldest + at_most))
    return True


def _find(conn: Connection, dialect: Dialect, which: ColumnElement[bool]) -> Topic | None:
    t, p = dialect.tables.topic, dialect.tables.partition
    rows = conn.execute(
        select(t.c.id, t.c.name, t.c.partitioner, p.c.id.label("partition_id"))
        .join(p, p.c.topic_id == t.c.id)
        .where(which)
        .order_by(p.c.number)
    ).all()
    return (
        Topic(rows[0].id, rows[0].name, rows[0].partitioner, tuple(row.partition_id for row in rows)) if rows else None
    )


def _lock(conn: Connection, dialect: Dialect, topic: Topic, *, is_shared: bool) -> Topic | None:
    t = dialect.tables.topic
    row = select(t.c.id).where(t.c.id == topic.id).with_for_update(read=is_shared, key_share=is_shared)
    is_there = conn.execute(row).first() is not None
    # Read after locking: the topic may have changed while this transaction waited for the lock.
    return _find(conn, dialect, t.c.id == topic.id) if is_there else None


def _insert_partitions(conn: Connection, dialect: Dialect, topic_id: int, numbers: range, *, of: int) -> None:
    """Insert the partitions *numbers* of a topic that has *of* partitions. Their ids ascend in that order."""
    p = dialect.tables.partition
    first: int = conn.execute(select(dialect.new_id(p))).scalar_one()
    rows = [
        {"id": first + place, "topic_id": topic_id, "number": number, "topic_partitions": of}
        for place, number in enumerate(numbers)
    ]
    conn.execute(insert(p), rows)


def _delete_groups(conn: Connection, dialect: Dialect, group_ids: list[int]) -> None:
    g = dialect.tables.group
    tables = dialect.tables
    for table in (tables.claim, tables.group_offset, tables.parked, tables.eviction, tables.member):
        conn.execute(delete(table).where(table.c.group_id.in_(group_ids)))
    conn.execute(delete(g).where(g.c.id.in_(group_ids)))


def _add_parents(
    conn: Connection, dialect: Dialect, topic: Topic, added: Sequence[tuple[int, int]], ends: Mapping[int, int]
) -> None:
    o = dialect.tables.partition_parent
    known = conn.execute(select(o).where(o.c.partition_id.in_(topic.partition_ids))).all()
    rows = []
    for id_, number in added:
        before = number % topic.partitions
        parent_id = topic.partition_ids[before]
        rows.append({"partition_id": id_, "parent_id": parent_id, "barrier_offset": ends[before]})
        rows += [
            {"partition_id": id_, "parent_id": row.parent_id, "barrier_offset": row.barrier_offset}
            for row in known
            if row.partition_id == parent_id
        ]
    conn.execute(insert(o), rows)


def _add_claims(conn: Connection, dialect: Dialect, topic: Topic, partition_ids: Sequence[int]) -> None:
    c, g = dialect.tables.claim, dialect.tables.group
    group_ids = conn.execute(select(g.c.id).where(g.c.topic_id == topic.id)).scalars().all()
    rows = [{"group_id": group_id, "partition_id": id_} for group_id in group_ids for id_ in partition_ids]
    if rows:
        conn.execute(insert(c), rows)
