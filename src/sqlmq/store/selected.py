"""Parked messages that somebody has selected: looked at, retried, discarded, copied.

What changes them is for those who have locked the claims of their partitions (``groups.lock_all``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Text, and_, bindparam, cast, delete, func, null, select, tuple_, update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection, Join, Row

    from sqlmq.description import ParkedState
    from sqlmq.dialects import Dialect, Position
    from sqlmq.store.groups import Group


class Selection(NamedTuple):
    """Which of a group's parked messages; what is None makes no difference."""

    partition_ids: Sequence[int] | None = None
    offset: int | None = None
    key: bytes | None = None
    state: ParkedState | None = None
    only_in_log: bool = False
    """Whether to leave out those that are in the log no more."""


class Size(NamedTuple):
    """How large the parts of a message are."""

    value: int
    key: int
    headers: int
    """In characters."""


def page(
    conn: Connection, dialect: Dialect, group: Group, selection: Selection, *, after: Position | None, limit: int
) -> Sequence[Row[Any]]:
    """Up to *limit* of them behind *after*, in order of partition and offset, without traceback."""
    k = dialect.tables.parked
    columns = [column for column in k.c if column.name not in ("group_id", "traceback", "trying_since")]
    return conn.execute(
        select(*columns)
        .where(*_where(dialect, group, selection), *_behind(k.c.partition_id, k.c.msg_offset, after))
        .order_by(k.c.partition_id, k.c.msg_offset)
        .limit(limit)
    ).all()


def traceback(conn: Connection, dialect: Dialect, group: Group, place: Position) -> str | None:
    """The traceback of the last attempt at the message at *place*."""
    k = dialect.tables.parked
    found: str | None = conn.execute(
        select(k.c.traceback).where(*_where(dialect, group, Selection([place.partition_id], place.offset)))
    ).scalar()
    return found


def blocked_keys(
    conn: Connection, dialect: Dialect, group: Group, *, after: Position | None, limit: int
) -> Sequence[Row[Any]]:
    """Up to *limit* keys of which a message waits, in order of partition and of the first such message's offset."""
    k, head = dialect.tables.parked, dialect.tables.parked.alias("head")
    first = func.min(k.c.msg_offset)
    blocked = (
        select(
            k.c.partition_id,
            k.c.key,
            func.count().label("messages"),
            first.label("first_offset"),
            func.min(k.c.parked_at).label("blocked_since"),
        )
        .where(k.c.group_id == group.id, k.c.state != "dead", k.c.key.is_not(None))
        .group_by(k.c.partition_id, k.c.key)
        .having(*_behind(k.c.partition_id, first, after))
        .order_by(k.c.partition_id, first)
        .limit(limit)
        .subquery("blocked")
    )
    is_head = and_(
        head.c.group_id == group.id,
        head.c.partition_id == blocked.c.partition_id,
        head.c.msg_offset == blocked.c.first_offset,
    )
    return conn.execute(
        select(blocked, head.c.state, head.c.attempts, head.c.due_at)
        .select_from(blocked.join(head, is_head))
        .order_by(blocked.c.partition_id, blocked.c.first_offset)
    ).all()


def contents(
    conn: Connection, dialect: Dialect, group: Group, selection: Selection, *, after: Position | None, limit: int
) -> Sequence[Row[Any]]:
    """As ``page``, but what is to be known for copying them; those that are in the log no more are passed over."""
    k, m = dialect.tables.parked, dialect.tables.message
    return conn.execute(
        select(
            k.c.partition_id,
            k.c.msg_offset,
            k.c.error_type,
            k.c.last_error,
            m.c.key,
            m.c.value,
            cast(m.c.headers, Text).label("headers"),
        )
        .select_from(_in_log(dialect))
        .where(*_where(dialect, group, selection), *_behind(k.c.partition_id, k.c.msg_offset, after))
        .order_by(k.c.partition_id, k.c.msg_offset)
        .limit(limit)
    ).all()


def sizes(
    conn: Connection, dialect: Dialect, group: Group, selection: Selection, *, after: Position | None, limit: int
) -> list[Size]:
    """How large that is which ``contents`` gives, without reading it."""
    k, m = dialect.tables.parked, dialect.tables.message
    rows = conn.execute(
        select(
            func.length(m.c.value),
            func.coalesce(func.length(m.c.key), 0),
            func.coalesce(func.length(cast(m.c.headers, Text)), 0),
        )
        .select_from(_in_log(dialect))
        .where(*_where(dialect, group, selection), *_behind(k.c.partition_id, k.c.msg_offset, after))
        .order_by(k.c.partition_id, k.c.msg_offset)
        .limit(limit)
    )
    return [Size(value, key, headers) for value, key, headers in rows]


def partition_ids(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> list[int]:
    """The ids of the partitions in which there are any."""
    k = dialect.tables.parked
    return list(conn.execute(select(k.c.partition_id).distinct().where(*_where(dialect, group, selection))).scalars())


def in_place(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> list[tuple[int, int]]:
    """Partition id and offset of those for which their partitions wait, or did when they were written."""
    k = dialect.tables.parked
    rows = conn.execute(
        select(k.c.partition_id, k.c.msg_offset).where(
            *_where(dialect, group, selection), k.c.state.in_(("held", "stopped"))
        )
    )
    return [(id_, offset) for id_, offset in rows]


def retry(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> int:
    """Let them wait for a first attempt, due now, whatever their state was; return how many there are.

    An attempt that is being made does not count any more.
    """
    k = dialect.tables.parked
    fresh = {"state": "waiting", "attempts": 0, "due_at": dialect.now(), "trying_since": null()}
    return conn.execute(update(k).where(*_where(dialect, group, selection)).values(fresh)).rowcount


def hold(conn: Connection, dialect: Dialect, group: Group, places: Sequence[Position]) -> None:
    """Say of those at *places* that they are tried in their place."""
    k = dialect.tables.parked
    if places:
        where = (
            k.c.group_id == group.id,
            k.c.partition_id == bindparam("id"),
            k.c.msg_offset == bindparam("place"),
        )
        rows = [{"id": place.partition_id, "place": place.offset} for place in places]
        conn.execute(update(k).where(*where).values(state="held"), rows)


def discard(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> int:
    """Forget them; return how many there were."""
    k = dialect.tables.parked
    return conn.execute(delete(k).where(*_where(dialect, group, selection))).rowcount


def _in_log(dialect: Dialect) -> Join:
    k, m = dialect.tables.parked, dialect.tables.message
    return k.join(m, and_(m.c.partition_id == k.c.partition_id, m.c.msg_offset == k.c.msg_offset))


def _where(dialect: Dialect, group: Group, selection: Selection) -> list[ColumnElement[bool]]:
    k, m = dialect.tables.parked, dialect.tables.message
    ids, offset, key, state, only_in_log = selection
    in_log = select(m.c.msg_offset).where(m.c.partition_id == k.c.partition_id, m.c.msg_offset == k.c.msg_offset)
    return [
        k.c.group_id == group.id,
        *([] if ids is None else [k.c.partition_id.in_(ids)]),
        *([] if offset is None else [k.c.msg_offset == offset]),
        *([] if key is None else [k.c.key == key]),
        *([] if state is None else [k.c.state == state]),
        *([in_log.exists()] if only_in_log else []),
    ]


def _behind(
    partition_id: ColumnElement[int], offset: ColumnElement[int], after: Position | None
) -> list[ColumnElement[bool]]:
    """What stands behind *after*: compared as a row, which the primary key is searched for."""
    return [] if after is None else [tuple_(partition_id, offset) > tuple_(after.partition_id, after.offset)]
