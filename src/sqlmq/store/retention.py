"""Retention: the limits of topics, the start of each partition, deletions below it, and what groups lost."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import and_, delete, func, or_, select, update

from sqlmq.model.retention import GroupStanding, Retention
from sqlmq.store import groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection, ScalarSelect

    from sqlmq.dialects import Dialect
    from sqlmq.model.retention import Loss

Kind = Literal["unread", "parked"]


class RetentionCandidate(NamedTuple):
    """A partition that may have to be trimmed."""

    partition_id: int
    number: int
    topic_id: int
    topic: str
    has_rest: bool
    """Whether messages below its start may be left that an earlier round did not delete."""
    retention: Retention


class PartitionExtent(NamedTuple):
    """What a partition holds."""

    start: int
    """The oldest offset."""
    end: int
    """The offset of the next message."""
    purged_to: int
    """Everything below this is deleted. Messages from here to *start* must be deleted."""
    measured_to: int | None
    """The end of the measured messages, from *start* on; None if none are."""
    measured_bytes: int | None


def columns(retention: Retention) -> dict[str, float | int | bool | None]:
    """Return *retention* as it is stored with a topic."""
    return {f"retention_{field.name}": getattr(retention, field.name) for field in fields(retention)}


def of_topic(conn: Connection, dialect: Dialect, topic_id: int) -> Retention:
    """Return the retention of a topic."""
    t = dialect.tables.topic
    row = conn.execute(select(*(t.c[name] for name in columns(Retention()))).where(t.c.id == topic_id)).first()
    return Retention() if row is None else Retention(*row)


def replace(conn: Connection, dialect: Dialect, topic_id: int, retention: Retention) -> None:
    """Store *retention* for a topic."""
    t = dialect.tables.topic
    conn.execute(update(t).where(t.c.id == topic_id).values(columns(retention)))


def due(conn: Connection, dialect: Dialect, topic_id: int | None) -> list[RetentionCandidate]:
    """Return the partitions, of one topic or all, that have limits or messages below their start."""
    t, p = dialect.tables.topic, dialect.tables.partition
    limits = or_(
        t.c.retention_max_age_seconds.is_not(None),
        t.c.retention_max_bytes.is_not(None),
        t.c.retention_max_messages.is_not(None),
    )
    has_rest = p.c.purged_to < p.c.start_offset
    rows = conn.execute(
        select(p.c.id, p.c.number, t.c.id, t.c.name, has_rest, *(t.c[name] for name in columns(Retention())))
        .join(t, t.c.id == p.c.topic_id)
        .where(or_(limits, has_rest), *([] if topic_id is None else [t.c.id == topic_id]))
        .order_by(t.c.name, p.c.number)
    )
    return [
        RetentionCandidate(id_, number, of, name, bool(is_behind), Retention(*terms))
        for id_, number, of, name, is_behind, *terms in rows
    ]


def start(conn: Connection, dialect: Dialect, partition_id: int) -> int | None:
    """Return the oldest offset of a partition; None if its topic was deleted."""
    p = dialect.tables.partition
    found: int | None = conn.execute(
        select(p.c.start_offset).where(p.c.id == partition_id, p.c.topic_id.is_not(None))
    ).scalar()
    return found


def starts(conn: Connection, dialect: Dialect, partition_ids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the number and the oldest offset of each of *partition_ids*, by its id."""
    p = dialect.tables.partition
    if not partition_ids:
        return {}
    rows = conn.execute(select(p.c.id, p.c.number, p.c.start_offset).where(p.c.id.in_(partition_ids)))
    return {row.id: (row.number, row.start_offset) for row in rows}


def extent(conn: Connection, dialect: Dialect, partition_id: int, *, locked: bool = False) -> PartitionExtent | None:
    """Return what a partition holds; None if its topic was deleted.

    If *locked*, the row is locked, like by an append, until the transaction ends.
    """
    p, m = dialect.tables.partition, dialect.tables.message
    wanted = select(p.c.start_offset, p.c.purged_to, p.c.measured_to, p.c.measured_bytes).where(
        p.c.id == partition_id, p.c.topic_id.is_not(None)
    )
    row = conn.execute(wanted.with_for_update(key_share=True) if locked else wanted).first()
    if row is None:
        return None
    newest = conn.execute(
        select(m.c.msg_offset)
        .where(m.c.partition_id == partition_id, m.c.msg_offset >= row.start_offset)
        .order_by(m.c.msg_offset.desc())
        .limit(1)
    ).scalar()
    end = row.start_offset if newest is None else newest + 1
    return PartitionExtent(row.start_offset, end, row.purged_to, row.measured_to, row.measured_bytes)


def standings(conn: Connection, dialect: Dialect, topic_id: int, partition_id: int) -> list[GroupStanding]:
    """Return where each group of a topic is in one of its partitions."""
    g, o, k = dialect.tables.group, dialect.tables.group_offset, dialect.tables.parked
    p, m = dialect.tables.partition, dialect.tables.member
    newest = (
        select(o.c.committed_offset)
        .where(o.c.group_id == g.c.id, o.c.partition_id == partition_id)
        .order_by(o.c.committed_offset.desc())
        .limit(1)
        .scalar_subquery()
    )
    parked = (
        select(k.c.msg_offset)
        .where(k.c.group_id == g.c.id, k.c.partition_id == partition_id)
        .order_by(k.c.msg_offset)
        .limit(1)
        .scalar_subquery()
    )
    is_live = select(m.c.id).where(m.c.group_id == g.c.id, groups.is_live(dialect)).limit(1).scalar_subquery()
    start_offset = select(p.c.start_offset).where(p.c.id == partition_id).scalar_subquery()
    rows = conn.execute(
        select(g.c.id, g.c.name, func.coalesce(newest, start_offset), newest.is_not(None), parked, is_live.is_not(None))
        .where(g.c.topic_id == topic_id)
        .order_by(g.c.id)
    )
    return [
        GroupStanding(id_, name, at, bool(is_stored), first, bool(live))
        for id_, name, at, is_stored, first, live in rows
    ]


def expired(conn: Connection, dialect: Dialect, topic_id: int, seconds: float) -> set[int]:
    """Return the groups of a topic without activity for *seconds*: no member, no changed claim, no commit.

    Activity that lies further ahead than that, by a clock that was set back since, protects nothing either.
    """
    g, m, c, o = (dialect.tables.group, dialect.tables.member, dialect.tables.claim, dialect.tables.group_offset)

    def is_recent(moment: ColumnElement[Any] | ScalarSelect[Any]) -> ColumnElement[bool]:
        return groups.within(dialect, moment, seconds)

    committed_at = (
        select(o.c.committed_at)
        .where(o.c.group_id == c.c.group_id, o.c.partition_id == c.c.partition_id)
        .order_by(o.c.committed_offset.desc())
        .limit(1)
        .correlate(c)
        .scalar_subquery()
    )
    member = select(m.c.id).where(m.c.group_id == g.c.id, is_recent(m.c.heartbeat_at))
    claim = select(c.c.partition_id).where(
        c.c.group_id == g.c.id, or_(is_recent(c.c.changed_at), is_recent(committed_at))
    )
    rows = conn.execute(
        select(g.c.id).where(
            g.c.topic_id == topic_id, ~is_recent(g.c.created_at), ~member.exists(), ~claim.exists().correlate(g)
        )
    )
    return set(rows.scalars())


def first_younger(
    conn: Connection, dialect: Dialect, partition_id: int, start: int, end: int, seconds: float
) -> tuple[int, float] | None:
    """Return the first offset from *start* to *end* of a message younger than *seconds*, and its age; or None.

    The age is negative if the message's moment lies ahead of the clock.
    """
    m = dialect.tables.message
    age = dialect.age_seconds(m.c.created_at)
    row = conn.execute(
        select(m.c.msg_offset, age.label("age"))
        .where(*_range(dialect, partition_id, start, end), age < seconds)
        .order_by(m.c.msg_offset)
        .limit(1)
    ).first()
    return None if row is None else (row.msg_offset, row.age)


def first_older(
    conn: Connection, dialect: Dialect, partition_id: int, start: int, end: int, seconds: float
) -> int | None:
    """Return the first offset from *start* to *end* of a message that is not younger than *seconds*, or None."""
    m = dialect.tables.message
    found: int | None = conn.execute(
        select(m.c.msg_offset)
        .where(*_range(dialect, partition_id, start, end), dialect.age_seconds(m.c.created_at) >= seconds)
        .order_by(m.c.msg_offset)
        .limit(1)
    ).scalar()
    return found


def size_bytes(conn: Connection, dialect: Dialect, partition_id: int, start: int, end: int) -> int:
    """Return the size of the keys and values from *start* to *end*."""
    found = conn.execute(select(func.sum(_size(dialect))).where(*_range(dialect, partition_id, start, end))).scalar()
    return int(found or 0)


def sizes_bytes(conn: Connection, dialect: Dialect, partition_id: int, start: int, end: int) -> list[tuple[int, int]]:
    """Return offset and size of each message from *start* to *end*."""
    m = dialect.tables.message
    rows = conn.execute(
        select(m.c.msg_offset, _size(dialect))
        .where(*_range(dialect, partition_id, start, end))
        .order_by(m.c.msg_offset)
    )
    return [(offset, size) for offset, size in rows]


def begin_at(
    conn: Connection,
    dialect: Dialect,
    partition_id: int,
    start: int,
    measured_to: int | None,
    measured_bytes: int | None,
) -> None:
    """Move the start of a partition, whose row is locked, to *start*."""
    p = dialect.tables.partition
    new = {"start_offset": start, "measured_to": measured_to, "measured_bytes": measured_bytes}
    conn.execute(update(p).where(p.c.id == partition_id).values(new))


def keep_from_purge(conn: Connection, dialect: Dialect, partition_id: int) -> tuple[int, int] | None:
    """Protect a partition from the purge of its topic until the transaction ends; return ``purged_to`` and start.

    Does not block appends. None if its topic was deleted, or is being deleted now.
    """
    p = dialect.tables.partition
    row = conn.execute(
        select(p.c.purged_to, p.c.start_offset)
        .where(p.c.id == partition_id, p.c.topic_id.is_not(None))
        .with_for_update(read=True, key_share=True, skip_locked=True)
    ).first()
    return None if row is None else (row.purged_to, row.start_offset)


def delete_range(conn: Connection, dialect: Dialect, partition_id: int, start: int, end: int) -> int:
    """Delete the messages from *start*, the partition's ``purged_to``, to *end*; return how many there were.

    Writes the partition's row, which appends lock, last. A concurrent deletion of the same messages waits for this one.
    """
    p, m = dialect.tables.partition, dialect.tables.message
    deleted = conn.execute(delete(m).where(*_range(dialect, partition_id, start, end))).rowcount
    conn.execute(update(p).where(p.c.id == partition_id, p.c.purged_to == start).values(purged_to=end))
    return deleted


def settle_position(conn: Connection, dialect: Dialect, loss: Loss, partition_id: int) -> None:
    """Store the position of a group that has committed nothing, so that it notices when the log starts later.

    The row gets the time of the group's creation, because it is not an activity of the group.
    """
    g, o = dialect.tables.group, dialect.tables.group_offset
    names = ("group_id", "partition_id", "committed_offset", "committed_at")
    row = {"group_id": loss.group_id, "partition_id": partition_id, "committed_offset": loss.start} | {
        "committed_at": select(g.c.created_at).where(g.c.id == loss.group_id).scalar_subquery()
    }
    conn.execute(dialect.insert_new(o, names[:3]).values(row))


def note_eviction(
    conn: Connection, dialect: Dialect, group_id: int, partition_id: int, kind: Kind, start: int, end: int
) -> None:
    """Record that a group lost the messages from *start* to *end*. Extends an adjacent earlier loss."""
    e = dialect.tables.eviction
    of_group = and_(e.c.group_id == group_id, e.c.partition_id == partition_id, e.c.kind == kind)
    before = select(e.c.from_offset).where(of_group, e.c.from_offset < start).order_by(e.c.from_offset.desc()).limit(1)
    grown = update(e).where(of_group, e.c.from_offset == before.scalar_subquery(), e.c.to_offset == start)
    if conn.execute(grown.values(to_offset=end, evicted_at=dialect.now())).rowcount == 0:
        row = {"group_id": group_id, "partition_id": partition_id, "kind": kind} | {
            "from_offset": start,
            "to_offset": end,
        }
        conn.execute(dialect.insert_new(e, [column.name for column in e.primary_key]).values(row))


def evictions(conn: Connection, dialect: Dialect, topic_id: int) -> Sequence[Any]:
    """Return what the groups of a topic lost, the newest last."""
    e, g, p = dialect.tables.eviction, dialect.tables.group, dialect.tables.partition
    return conn.execute(
        select(g.c.name, p.c.number, e.c.kind, e.c.from_offset, e.c.to_offset, e.c.evicted_at)
        .join(g, g.c.id == e.c.group_id)
        .join(p, p.c.id == e.c.partition_id)
        .where(g.c.topic_id == topic_id)
        .order_by(e.c.evicted_at, g.c.name, p.c.number, e.c.from_offset)
    ).all()


def parked_below(
    conn: Connection, dialect: Dialect, group_id: int, partition_id: int, start: int, limit: int
) -> list[int]:
    """Return up to *limit* offsets below *start* that a group has parked, in order."""
    k = dialect.tables.parked
    rows = conn.execute(
        select(k.c.msg_offset)
        .where(k.c.group_id == group_id, k.c.partition_id == partition_id, k.c.msg_offset < start)
        .order_by(k.c.msg_offset)
        .limit(limit)
    )
    return list(rows.scalars())


def forget_parked(conn: Connection, dialect: Dialect, group_id: int, partition_id: int, offsets: Sequence[int]) -> None:
    """Delete the parked messages *offsets* of a group. The caller has locked the claim."""
    k = dialect.tables.parked
    conn.execute(
        delete(k).where(k.c.group_id == group_id, k.c.partition_id == partition_id, k.c.msg_offset.in_(offsets))
    )


def _range(dialect: Dialect, partition_id: int, start: int, end: int) -> list[ColumnElement[bool]]:
    m = dialect.tables.message
    return [m.c.partition_id == partition_id, m.c.msg_offset >= start, m.c.msg_offset < end]


def _size(dialect: Dialect) -> ColumnElement[int]:
    # length() does not read a large value, in either database.
    m = dialect.tables.message
    size: ColumnElement[int] = func.length(m.c.value) + func.coalesce(func.length(m.c.key), 0)
    return size
