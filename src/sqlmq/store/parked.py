"""Messages that a group has set aside: references to the log, with what is known about their attempts.

States: ``waiting`` (aside; the first of its key is retried when due), ``held`` (retried in its place, the partition
waits), ``stopped`` (in its place, and nobody retries it), ``dead`` (a dead letter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import delete, null, select, update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.store.groups import Group

State: TypeAlias = Literal["waiting", "held", "stopped", "dead"]

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
    state: State
    attempts: int
    delay_seconds: float = 0.0
    """After how long it is due."""
    reason: Reason | None = None
    """Why the last attempt failed; None leaves what is known of the one before."""
    is_trying: bool = False
    """Whether an attempt is about to be made."""


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


def put(conn: Connection, dialect: Dialect, group: Group, record: Record) -> None:
    """Write what *record* says, over what was there before. The caller holds the claim's lock."""
    k = dialect.tables.parked
    new: dict[str, Any] = {
        "group_id": group.id,
        "partition_id": record.partition_id,
        "msg_offset": record.offset,
        "key": record.key,
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
    changed = [name for name in new if name not in (*_KEY, "key", "first_failed_at")]
    conn.execute(dialect.insert_or_update(k, _KEY, changed, kept=["first_failed_at"]).values(new))


def remove(conn: Connection, dialect: Dialect, group: Group, partition_id: int, offset: int) -> None:
    """Forget that a message was set aside: it was handled, or is not to be."""
    k = dialect.tables.parked
    conn.execute(delete(k).where(k.c.group_id == group.id, k.c.partition_id == partition_id, k.c.msg_offset == offset))


def take_back(conn: Connection, dialect: Dialect, group: Group, partition_id: int, offset: int) -> None:
    """Uncount an attempt that was interrupted; a message that was in its place and had no other is as if never tried."""
    k = dialect.tables.parked
    where = (k.c.group_id == group.id, k.c.partition_id == partition_id, k.c.msg_offset == offset)
    conn.execute(update(k).where(*where).values(attempts=k.c.attempts - 1, trying_since=null()))
    conn.execute(delete(k).where(*where, k.c.state == "held", k.c.attempts <= 0))
