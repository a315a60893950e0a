"""`sqlmq_group` and `sqlmq_member`: groups, and their live members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from sqlmq.errors import UnknownGroupError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import ColumnElement, Connection, ScalarSelect

    from sqlmq.dialects import Dialect
    from sqlmq.store.topics import Topic


@dataclass(frozen=True, slots=True)
class Group:
    """A group as it is stored."""

    id: int
    name: str
    start_from: str


@dataclass(frozen=True, slots=True)
class Member:
    """A live member, for displays."""

    id: int
    name: str


def find(conn: Connection, dialect: Dialect, topic: Topic, name: str) -> Group | None:
    """Return the group *name* of *topic*, or None."""
    g = dialect.tables.group
    row = conn.execute(select(g.c.id, g.c.start_from).where(g.c.topic_id == topic.id, g.c.name == name)).first()
    return Group(row.id, name, row.start_from) if row else None


def get(conn: Connection, dialect: Dialect, topic: Topic, name: str) -> Group:
    """Return the group *name* of *topic*. Raises UnknownGroupError."""
    group = find(conn, dialect, topic, name)
    if group is None:
        raise UnknownGroupError(topic.name, name)
    return group


def names(conn: Connection, dialect: Dialect, topic: Topic) -> list[str]:
    """Return the names of the groups of *topic*, sorted."""
    g = dialect.tables.group
    return list(conn.execute(select(g.c.name).where(g.c.topic_id == topic.id).order_by(g.c.name)).scalars())


def create(conn: Connection, dialect: Dialect, topic: Topic, name: str, start_from: str) -> bool:
    """Create a group of *topic* unless one with that name exists, and return whether it was created."""
    g = dialect.tables.group
    row = {"id": dialect.new_id(g), "topic_id": topic.id, "name": name, "start_from": start_from}
    return conn.execute(dialect.insert_new(g, ["topic_id", "name"]).values(row).returning(g.c.id)).first() is not None


def add_member(conn: Connection, dialect: Dialect, group: Group, name: str, lease_seconds: float) -> int:
    """Add a member and return its id."""
    m = dialect.tables.member
    row = {"id": dialect.new_id(m), "group_id": group.id, "name": name, "lease_seconds": lease_seconds}
    member_id: int = conn.execute(insert(m).values(row).returning(m.c.id)).scalar_one()
    return member_id


def remove_member(conn: Connection, dialect: Dialect, member_id: int) -> None:
    """Remove a member. Its claims do not change."""
    m = dialect.tables.member
    conn.execute(delete(m).where(m.c.id == member_id))


def heartbeat(conn: Connection, dialect: Dialect, member_ids: Sequence[int]) -> set[int]:
    """Record a heartbeat of *member_ids* and return those that are still members."""
    m = dialect.tables.member
    ordered = select(m.c.id).where(m.c.id.in_(member_ids)).order_by(m.c.id).with_for_update(key_share=True)
    there = list(conn.execute(ordered).scalars())
    conn.execute(update(m).where(m.c.id.in_(there)).values(heartbeat_at=dialect.now()))
    return set(there)


def set_wants_partitions(conn: Connection, dialect: Dialect, member_id: int, *, wants_partitions: bool) -> None:
    """Record whether a member wants more partitions, because it has less than its share."""
    m = dialect.tables.member
    conn.execute(update(m).where(m.c.id == member_id).values(wants_partitions=wants_partitions))


def members(conn: Connection, dialect: Dialect, group: Group) -> list[Member]:
    """Return the live members of *group*, for displays."""
    m = dialect.tables.member
    rows = conn.execute(select(m.c.id, m.c.name).where(m.c.group_id == group.id, is_live(dialect)).order_by(m.c.id))
    return [Member(row.id, row.name) for row in rows]


def awaited_topics(conn: Connection, dialect: Dialect, topic_ids: Collection[int], but: Collection[int]) -> set[int]:
    """Return those of *topic_ids* that have live members in any group, except the members *but*."""
    g, m = dialect.tables.group, dialect.tables.member
    rows = conn.execute(
        select(g.c.topic_id)
        .distinct()
        .select_from(g.join(m, m.c.group_id == g.c.id))
        .where(g.c.topic_id.in_(topic_ids), m.c.id.not_in(but), is_live(dialect))
    )
    return set(rows.scalars())


def is_live(dialect: Dialect) -> ColumnElement[bool]:
    """Whether the lease of a member, in the enclosing statement, is valid by the database's clock.

    A heartbeat that lies in the clock's future shows that the clock was set back. Further ahead than a lease, it counts as
    over, so a dead member is not taken to be alive until the clock has caught up. A live one sends the next heartbeat soon.
    """
    m = dialect.tables.member
    return within(dialect, m.c.heartbeat_at, m.c.lease_seconds)


def within(
    dialect: Dialect, moment: ColumnElement[Any] | ScalarSelect[Any], seconds: ColumnElement[float] | float
) -> ColumnElement[bool]:
    """Whether *moment* is less than *seconds* away from now: ago, or ahead because the clock was set back since."""
    return func.abs(dialect.age_seconds(moment)) < seconds
