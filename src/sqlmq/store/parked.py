"""Messages that a group has set aside: references to the log, with what is known about their attempts.

States: ``waiting`` (aside; the first of its key is retried when due), ``held`` (retried in its place, the partition
waits), ``stopped`` (in its place, and nobody retries it), ``dead`` (a dead letter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sqlalchemy import case, delete, func, null, or_, select, update

from sqlmq.description import ParkedState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

    from sqlmq.dialects import Dialect
    from sqlmq.store.groups import Group

State: TypeAlias = ParkedState

_KEY = ("group_id", "partition_id", "msg_offset")


class Reason(NamedTuple):
    """Why an attempt failed."""

    error_type: str
    error: str
    traceback: str | None


class Record(NamedTuple):
    """What becomes of a message whose attempt has failed, or is about to be made."""

    partition_id: int
    offset: int
    key: bytes | None
    state: State | None
    """None is to forget it."""
    attempts: int
    delay_seconds: float = 0.0
    """After how long it is due."""
    reason: Reason | None = None
    """Why the last attempt failed; None leaves what is known of the one before."""
    is_trying: bool = False
    """Whether an attempt is about to be made."""
    is_known: bool = False
    """Whether it has a row already, to which this is what comes next."""


class Row(NamedTuple):
    """A message that is not a dead letter, as its partition's owner needs it."""

    partition_id: int
    offset: int
    key: bytes | None
    state: State
    attempts: int
    due_seconds: float
    """How long until it is due; 0 or less if it is."""
    is_trying: bool
    """Whether an attempt was begun of which nobody knows how it ended."""


def load(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> list[Row]:
    """What *group* has set aside of *partition_ids*, dead letters apart, in order of offset in each."""
    k = dialect.tables.parked
    rows = conn.execute(
        select(
            k.c.partition_id,
            k.c.msg_offset,
            k.c.key,
            k.c.state,
            k.c.attempts,
            -dialect.age_seconds(k.c.due_at),
            k.c.trying_since.is_not(None),
        )
        .where(k.c.group_id == group.id, k.c.partition_id.in_(partition_ids), k.c.state != "dead")
        .order_by(k.c.partition_id, k.c.msg_offset)
    )
    return [Row(*row) for row in rows]


def put_waiting(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    partition_id: int,
    messages: Sequence[tuple[int, bytes | None, int]],
) -> None:
    """Set *messages*, by offset, key and attempts, aside behind others of their keys. Those that are there stay as they are."""
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


def put(conn: Connection, dialect: Dialect, group: Group, record: Record) -> bool:
    """Write what *record* says, over what was there before. The caller holds the claim's lock.

    Returns False, with nothing written, for a row that should be known, and was removed or begun anew by somebody else:
    its attempts are others. Can be repeated without harm.
    """
    k = dialect.tables.parked
    place = (group.id, record.partition_id, record.offset)
    known = [column == value for column, value in zip((k.c[name] for name in _KEY), place, strict=True)]
    if record.is_known:
        known.append(k.c.attempts.in_((record.attempts, record.attempts - record.is_trying)))
    if record.state is None:
        return conn.execute(delete(k).where(*known)).rowcount > 0 or not record.is_known
    new: dict[str, Any] = {
        "state": record.state,
        "attempts": record.attempts,
        "due_at": dialect.seconds_from_now(record.delay_seconds),
        "trying_since": dialect.now() if record.is_trying else null(),
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
    """Forget that a message was set aside: it was handled, or is not to be."""
    k = dialect.tables.parked
    conn.execute(delete(k).where(k.c.group_id == group.id, k.c.partition_id == partition_id, k.c.msg_offset == offset))


def take_back(conn: Connection, dialect: Dialect, group: Group, partition_id: int, offset: int) -> None:
    """Uncount an attempt that was interrupted; a message that was in its place and had no other is as if never tried."""
    k = dialect.tables.parked
    where = (k.c.group_id == group.id, k.c.partition_id == partition_id, k.c.msg_offset == offset)
    is_trying = k.c.trying_since.is_not(None)
    conn.execute(update(k).where(*where, is_trying).values(attempts=k.c.attempts - 1, trying_since=null()))
    conn.execute(delete(k).where(*where, k.c.state == "held", k.c.attempts <= 0))


def forget(conn: Connection, dialect: Dialect, group: Group, positions: Mapping[int, int]) -> None:
    """Forget what a group that is moved to *positions*, by partition id, is not to know of any more.

    That is what comes again from the log, and what was in its place, which is not the group's position any more.
    """
    conn.execute(delete(dialect.tables.parked).where(*_forgotten(dialect, group, positions)))


def count_forgotten(conn: Connection, dialect: Dialect, group: Group, positions: Mapping[int, int]) -> dict[int, int]:
    """How many ``forget`` would forget, by partition id; nothing of partitions in which there are none."""
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
