"""`sqlmq_parked`: messages that a group has parked, as references to the log with the state of their attempts.

States: ``waiting`` (parked; the first of its key is retried when due), ``held`` (retried in its place, its partition
waits), ``stopped`` (in its place, not retried, its partition waits), ``dead`` (a dead letter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Text, and_, bindparam, case, cast, delete, func, null, or_, select, tuple_, update

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, Join
    from sqlalchemy import Row as SqlRow

    from sqlmq.dialects import Dialect, Position
    from sqlmq.model.config import ParkedState
    from sqlmq.store.groups import Group

_KEY = ("group_id", "partition_id", "msg_offset")


class Reason(NamedTuple):
    """Why an attempt failed."""

    error_type: str
    error: str
    traceback: str | None


class ParkedRecord(NamedTuple):
    """The state to store for a message after a failed attempt, or before an attempt."""

    partition_id: int
    offset: int
    key: bytes | None
    state: ParkedState | None
    """None deletes the row."""
    attempts: int
    delay_seconds: float = 0.0
    """How long until it is due."""
    reason: Reason | None = None
    """Why the last attempt failed. None keeps the stored reason."""
    attempt_open: bool = False
    """Whether an attempt is about to begin."""
    is_known: bool = False
    """Whether the message has a row already, which this updates."""


class ParkedRow(NamedTuple):
    """A parked message that is not a dead letter, as the owner of its partition needs it."""

    partition_id: int
    offset: int
    key: bytes | None
    state: ParkedState
    attempts: int
    due_seconds: float
    """How long until it is due; 0 or less if it is due."""
    attempt_open: bool
    """Whether an attempt began and its end was not stored."""


def load(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> list[ParkedRow]:
    """Return what *group* has parked in *partition_ids*, without dead letters, in order of offset.

    A failure that lies ahead of the clock is from before the clock was set back. The whole delay counts from now on then.
    """
    k = dialect.tables.parked
    due, failed = (
        -dialect.age_seconds(k.c.due_at),
        dialect.age_seconds(func.coalesce(k.c.last_failed_at, k.c.parked_at)),
    )
    rows = conn.execute(
        select(
            k.c.partition_id,
            k.c.msg_offset,
            k.c.key,
            k.c.state,
            k.c.attempts,
            case((failed < 0, due + failed), else_=due),
            k.c.attempt_started_at.is_not(None),
        )
        .where(k.c.group_id == group.id, k.c.partition_id.in_(partition_ids), k.c.state != "dead")
        .order_by(k.c.partition_id, k.c.msg_offset)
    )
    return [ParkedRow(*row) for row in rows]


def put_waiting(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    partition_id: int,
    messages: Sequence[tuple[int, bytes | None, int]],
) -> None:
    """Park *messages*, by offset, key and attempts, behind others of their keys. Existing rows do not change."""
    rows = [
        {
            "group_id": group.id,
            "partition_id": partition_id,
            "msg_offset": offset,
            "key": key,
            "state": "waiting",
            "attempts": attempts,
        }
        for offset, key, attempts in messages
    ]
    if rows:
        conn.execute(dialect.insert_new(dialect.tables.parked, _KEY), rows)


def put(conn: Connection, dialect: Dialect, group: Group, record: ParkedRecord) -> bool:
    """Store *record*, over an existing row. The caller has locked the claim. Idempotent.

    Returns False, with nothing written, if a known row was deleted or restarted by another process, so that its
    attempts are different.
    """
    k = dialect.tables.parked
    place = (group.id, record.partition_id, record.offset)
    known = [column == value for column, value in zip((k.c[name] for name in _KEY), place, strict=True)]
    if record.is_known:
        known.append(k.c.attempts.in_((record.attempts, record.attempts - record.attempt_open)))
    if record.state is None:
        return conn.execute(delete(k).where(*known)).rowcount > 0 or not record.is_known
    new: dict[str, Any] = {
        "state": record.state,
        "attempts": record.attempts,
        "due_at": dialect.seconds_from_now(record.delay_seconds),
        "attempt_started_at": dialect.now() if record.attempt_open else null(),
    }
    if record.reason is not None:
        new |= {
            "error_type": record.reason.error_type,
            "last_error": record.reason.error,
            "traceback": record.reason.traceback,
            "last_failed_at": dialect.now(),
            "first_failed_at": dialect.now(),
        }
    if record.is_known:
        if record.reason is not None:
            new["first_failed_at"] = func.coalesce(k.c.first_failed_at, new["first_failed_at"])
        return conn.execute(update(k).where(*known).values(new)).rowcount > 0
    changed = [name for name in new if name != "first_failed_at"]
    row = new | dict(zip(_KEY, place, strict=True)) | {"key": record.key}
    conn.execute(dialect.insert_or_update(k, _KEY, changed, kept=["first_failed_at"]).values(row))
    return True


def remove(conn: Connection, dialect: Dialect, group: Group, partition_id: int, offset: int) -> None:
    """Delete a parked message: it was handled, or must not be."""
    k = dialect.tables.parked
    conn.execute(delete(k).where(k.c.group_id == group.id, k.c.partition_id == partition_id, k.c.msg_offset == offset))


def uncount_attempt(conn: Connection, dialect: Dialect, group: Group, partition_id: int, offset: int) -> None:
    """Uncount an interrupted attempt. A held message without another attempt is deleted: it was never tried."""
    k = dialect.tables.parked
    where = (k.c.group_id == group.id, k.c.partition_id == partition_id, k.c.msg_offset == offset)
    is_trying = k.c.attempt_started_at.is_not(None)
    conn.execute(update(k).where(*where, is_trying).values(attempts=k.c.attempts - 1, attempt_started_at=null()))
    conn.execute(delete(k).where(*where, k.c.state == "held", k.c.attempts <= 0))


def forget(conn: Connection, dialect: Dialect, group: Group, positions: Mapping[int, int]) -> None:
    """Delete the rows that are obsolete when a group is moved to *positions*, by partition id.

    These are messages that come again from the log, and messages that were held or stopped at the old position.
    """
    conn.execute(delete(dialect.tables.parked).where(*_forgotten(dialect, group, positions)))


def count_forgotten(conn: Connection, dialect: Dialect, group: Group, positions: Mapping[int, int]) -> dict[int, int]:
    """Return how many rows ``forget`` would delete, by partition id, without partitions that have none."""
    k = dialect.tables.parked
    rows = conn.execute(
        select(k.c.partition_id, func.count().label("messages"))
        .where(*_forgotten(dialect, group, positions))
        .group_by(k.c.partition_id)
    )
    return {row.partition_id: row.messages for row in rows}


def _forgotten(dialect: Dialect, group: Group, positions: Mapping[int, int]) -> list[ColumnElement[bool]]:
    k = dialect.tables.parked
    position = case(dict(positions), value=k.c.partition_id)
    return [
        k.c.group_id == group.id,
        k.c.partition_id.in_(list(positions)),
        or_(k.c.msg_offset >= position, k.c.state.in_(("held", "stopped"))),
    ]


class Selection(NamedTuple):
    """A selection of a group's parked messages. None selects all."""

    partition_ids: Sequence[int] | None = None
    offset: int | None = None
    key: bytes | None = None
    state: ParkedState | None = None
    only_in_log: bool = False
    """Whether to exclude messages that are no longer in the log."""


class Size(NamedTuple):
    """The sizes of the parts of a message."""

    value: int
    key: int
    headers: int
    """In characters."""


def page(
    conn: Connection, dialect: Dialect, group: Group, selection: Selection, *, after: Position | None, limit: int
) -> Sequence[SqlRow[Any]]:
    """Return up to *limit* parked messages after *after*, in order of partition and offset, without tracebacks."""
    k = dialect.tables.parked
    columns = [column for column in k.c if column.name not in ("group_id", "traceback", "attempt_started_at")]
    return conn.execute(
        select(*columns)
        .where(*_where(dialect, group, selection), *_behind(k.c.partition_id, k.c.msg_offset, after))
        .order_by(k.c.partition_id, k.c.msg_offset)
        .limit(limit)
    ).all()


def traceback(conn: Connection, dialect: Dialect, group: Group, place: Position) -> str | None:
    """Return the traceback of the last attempt at the message at *place*."""
    k = dialect.tables.parked
    found: str | None = conn.execute(
        select(k.c.traceback).where(*_where(dialect, group, Selection([place.partition_id], place.offset)))
    ).scalar()
    return found


def blocked_keys(
    conn: Connection, dialect: Dialect, group: Group, *, after: Position | None, limit: int
) -> Sequence[SqlRow[Any]]:
    """Return up to *limit* keys with a waiting message, in order of partition and of its first such offset."""
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
) -> Sequence[SqlRow[Any]]:
    """Return messages like ``page``, with what a copy needs. Excludes messages that are no longer in the log."""
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
    """Return the sizes of the messages that ``contents`` returns, without reading them."""
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
    """Return the ids of the partitions that have selected messages."""
    k = dialect.tables.parked
    return list(conn.execute(select(k.c.partition_id).distinct().where(*_where(dialect, group, selection))).scalars())


def in_place(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> list[tuple[int, int]]:
    """Return partition id and offset of those that are held or stopped, for which their partition waits."""
    k = dialect.tables.parked
    rows = conn.execute(
        select(k.c.partition_id, k.c.msg_offset).where(
            *_where(dialect, group, selection), k.c.state.in_(("held", "stopped"))
        )
    )
    return [(id_, offset) for id_, offset in rows]


def retry(conn: Connection, dialect: Dialect, group: Group, selection: Selection) -> int:
    """Reset the selected messages to ``waiting``, without attempts and due now; return how many there are.

    An attempt that is running is no longer counted.
    """
    k = dialect.tables.parked
    fresh = {"state": "waiting", "attempts": 0, "due_at": dialect.now(), "attempt_started_at": null()}
    return conn.execute(update(k).where(*_where(dialect, group, selection)).values(fresh)).rowcount


def set_held(conn: Connection, dialect: Dialect, group: Group, places: Sequence[Position]) -> None:
    """Set the state of the messages at *places* to ``held``."""
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
    """Delete the selected rows; return how many there were."""
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
    """The condition for rows after *after*: a comparison of rows, which can use the primary key."""
    return [] if after is None else [tuple_(partition_id, offset) > tuple_(after.partition_id, after.offset)]
