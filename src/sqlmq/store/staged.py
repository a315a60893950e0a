"""`sqlmq_staged`: committed messages that are not in the log yet. Each has its partition and a due time.

Messages of 1970 are due as soon as they are committed. All others are delayed messages. An application may keep the id
of a delayed message for long, so what it gets is the row's id and the row's random ``token`` in one number: after the
tables were emptied, an id from before does not cancel another message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Numeric,
    Text,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    true,
    type_coerce,
    union_all,
)

from sqlmq.model.message import RecordBatch, moment_at
from sqlmq.schema import Json, Number

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row

    from sqlmq.dialects import Dialect, PartitionSlice
    from sqlmq.model.validation import Due

_INSERT_MESSAGES = 500
_INSERT_BYTES = 16 * 1024 * 1024
"""The most bytes that one statement inserts, except for a single message."""
_DELETE_MESSAGES = 1_000
_TOKENS = 1 << 24
"""How many different tokens there are."""


class DueMessages(NamedTuple):
    """The partitions with due messages, and when to look again."""

    partition_ids: list[int]
    """The partitions that have due messages, in order."""
    is_complete: bool
    """Whether there are no other due messages."""
    next_seconds: float | None
    """The time until another message is due; None if there is none."""


class DueBatch(NamedTuple):
    """Due messages of one partition, in order."""

    ids: list[int]
    contents: RecordBatch
    topic_partitions: list[int]
    """How many partitions the topic had when each message was staged."""

    @property
    def value_bytes(self) -> int:
        """The size of all values."""
        return sum(map(len, self.contents.values))


class StagingSlot(NamedTuple):
    """The due time of messages that are stored now, and which of their partitions exist."""

    partitions: dict[int, int]
    """The existing partitions, by id, with the number of partitions of their topic."""
    deliver_at: datetime
    wait_seconds: float
    """The time until they are due; negative if they are."""


class StagedMessage(NamedTuple):
    """A delayed message, for lists."""

    id: int
    partition_id: int
    deliver_at: datetime
    key: bytes | None
    value_bytes: int


def find_due(conn: Connection, dialect: Dialect, at_most: int, passing_over: Collection[int]) -> DueMessages:
    """Find the due messages, among the first *at_most*, and the time until the next one.

    Excludes the partitions *passing_over*. Takes no lock.
    """
    s = dialect.tables.staged
    # One moment for both parts: a message that became due between two moments would be in neither.
    now = select(dialect.now().label("now")).cte("moment")
    now_value = select(now.c.now).scalar_subquery()
    is_wanted = s.c.partition_id.not_in(passing_over) if passing_over else true()
    due = (
        select(s.c.partition_id, cast(null(), Numeric(asdecimal=False)).label("seconds"))
        .where(s.c.deliver_at <= now_value, is_wanted)
        .order_by(s.c.deliver_at)
        .limit(at_most)
        .subquery("due")
    )
    coming = (
        select(s.c.partition_id, (-dialect.age_seconds(s.c.deliver_at)).label("seconds"))
        .where(s.c.deliver_at > now_value)
        .order_by(s.c.deliver_at)
        .limit(1)
        .subquery("coming")
    )
    rows = conn.execute(union_all(select(due), select(coming))).all()
    found = [row.partition_id for row in rows if row.seconds is None]
    next_seconds = next((float(row.seconds) for row in rows if row.seconds is not None), None)
    return DueMessages(sorted(set(found)), len(found) < at_most, next_seconds)


def lock_due(conn: Connection, dialect: Dialect, partition_id: int, at_most: int, most_bytes: int) -> DueBatch:
    """Lock and return up to *at_most* messages of a partition that were due when the transaction began, in order.

    Stops once their values exceed *most_bytes*, but always returns the first. Skips messages that another transaction
    has locked. The caller has locked the partition, so no append comes between. A message that became due while the
    transaction waited for that lock is excluded: it would get a timestamp from before its due time.
    """
    s = dialect.tables.staged
    in_order = (s.c.deliver_at, s.c.id)
    due = (
        select(s.c.id, s.c.deliver_at, func.length(s.c.value).label("value_bytes"))
        .where(s.c.partition_id == partition_id, s.c.deliver_at <= select(dialect.began_at()).scalar_subquery())
        .order_by(*in_order)
        .limit(at_most)
        .subquery("due")
    )
    before = func.sum(due.c.value_bytes).over(order_by=(due.c.deliver_at, due.c.id), rows=(None, -1))
    sized = select(due.c.id, before.label("bytes_before")).subquery("sized")
    rows = conn.execute(
        select(s.c.id, s.c.key, s.c.value, cast(s.c.headers, Text).label("headers"), s.c.topic_partitions)
        .where(s.c.id.in_(select(sized.c.id).where(func.coalesce(sized.c.bytes_before, 0) < most_bytes)))
        .order_by(*in_order)
        .with_for_update(skip_locked=True, of=s)
    ).all()
    headers = [None if row.headers is None else row.headers.encode() for row in rows]
    contents = RecordBatch([row.key for row in rows], [row.value for row in rows], headers)
    return DueBatch([row.id for row in rows], contents, [row.topic_partitions for row in rows])


def remove(conn: Connection, dialect: Dialect, ids: Sequence[int]) -> None:
    """Delete the messages *ids*, which ``lock_due`` has locked."""
    s = dialect.tables.staged
    conn.execute(delete(s).where(s.c.id.in_(ids)))


def remove_all(conn: Connection, dialect: Dialect, partition_ids: Sequence[int]) -> None:
    """Delete all staged messages of *partition_ids*."""
    s = dialect.tables.staged
    conn.execute(delete(s).where(s.c.partition_id.in_(partition_ids)))


def slot(conn: Connection, dialect: Dialect, partition_ids: Collection[int], due: Due) -> StagingSlot | None:
    """Return what is needed to store messages for *partition_ids* that are *due* later; None if none exists."""
    p = dialect.tables.partition
    at = dialect.seconds_from_now(due) if isinstance(due, float) else dialect.moment(due)
    moment = select(at.label("deliver_at")).cte("moment")
    rows = conn.execute(
        select(
            p.c.id,
            p.c.topic_partitions,
            dialect.microseconds(moment.c.deliver_at).label("deliver_at_us"),
            (-dialect.age_seconds(moment.c.deliver_at)).label("wait_seconds"),
        )
        .select_from(p.join(moment, true()))
        .where(p.c.id.in_(partition_ids), p.c.topic_id.is_not(None))
    ).all()
    if not rows:
        return None
    return StagingSlot(
        {row.id: row.topic_partitions for row in rows}, moment_at(rows[0].deliver_at_us), float(rows[0].wait_seconds)
    )


def add(
    conn: Connection, dialect: Dialect, parts: Sequence[PartitionSlice], contents: RecordBatch, deliver_at: datetime
) -> list[int]:
    """Store messages, each for the part at the same index, until *deliver_at*; return their ids, ascending."""
    s = dialect.tables.staged
    moment = dialect.moment(deliver_at)
    ids: list[int] = []
    for first, end in _pieces(contents):
        rows = [
            {
                "partition_id": parts[place].partition_id,
                "topic_partitions": parts[place].topic_partitions,
                "key": contents.keys[place],
                "value": contents.values[place],
                "headers": _json(contents.headers[place]),
                "deliver_at": moment,
            }
            for place in range(first, end)
        ]
        given = conn.execute(insert(s).values(rows).returning(_public_id(dialect))).scalars()
        # Ids ascend in the order of the rows, but RETURNING promises no order.
        ids += sorted(given)
    return ids


def waiting(conn: Connection, dialect: Dialect, partition_ids: Sequence[int]) -> list[StagedMessage]:
    """Return the delayed messages of *partition_ids* in the order of their due times."""
    s = dialect.tables.staged
    rows = conn.execute(
        select(
            _public_id(dialect), s.c.partition_id, dialect.microseconds(s.c.deliver_at), s.c.key, func.length(s.c.value)
        )
        .where(s.c.partition_id.in_(partition_ids), _is_delayed(dialect))
        .order_by(s.c.deliver_at, s.c.id)
    )
    return [StagedMessage(id_, partition_id, moment_at(us), key, size) for id_, partition_id, us, key, size in rows]


def overdue(conn: Connection, dialect: Dialect, at_most: int) -> Sequence[Row[Any]]:
    """Return, for each topic, the number of due messages among the first *at_most* and how long the first has been due.

    A message that was due at once has been due since its transaction stored it. Takes no lock.
    """
    s, p, t = dialect.tables.staged, dialect.tables.partition, dialect.tables.topic
    since_due, stored = dialect.age_seconds(s.c.deliver_at), dialect.age_seconds(s.c.created_at)
    since_stored = case((stored < 0, literal(0.0)), else_=stored)  # stored before the clock was set back
    due = (
        select(s.c.partition_id, case((since_due < since_stored, since_due), else_=since_stored).label("seconds"))
        .where(s.c.deliver_at <= select(dialect.now()).scalar_subquery())
        .order_by(s.c.deliver_at)
        .limit(at_most)
        .subquery("due")
    )
    longest = type_coerce(func.max(due.c.seconds), Number)
    return conn.execute(
        select(t.c.name, func.count().label("messages"), longest.label("seconds"))
        .select_from(due.join(p, p.c.id == due.c.partition_id).join(t, t.c.id == p.c.topic_id))
        .group_by(t.c.name)
        .order_by(t.c.name)
    ).all()


def cancel(conn: Connection, dialect: Dialect, ids: Collection[int]) -> set[int]:
    """Delete those of the delayed messages *ids* that still exist, and return their ids.

    Locks them in order of id. Waits for a scheduler that has locked them.
    """
    s = dialect.tables.staged
    wanted = sorted(ids)
    cancelled: set[int] = set()
    for first in range(0, len(wanted), _DELETE_MESSAGES):
        some = wanted[first : first + _DELETE_MESSAGES]
        is_wanted = and_(s.c.id.in_([id_ // _TOKENS for id_ in some]), _public_id(dialect).in_(some))
        locked = select(s.c.id).where(is_wanted, _is_delayed(dialect)).order_by(s.c.id).with_for_update()
        statement = delete(s).where(s.c.id.in_(locked)).returning(_public_id(dialect))
        cancelled |= set(conn.execute(statement).scalars())
    return cancelled


def _public_id(dialect: Dialect) -> ColumnElement[int]:
    s = dialect.tables.staged
    id_: ColumnElement[int] = s.c.id * _TOKENS + s.c.token
    return id_


def _is_delayed(dialect: Dialect) -> ColumnElement[bool]:
    return dialect.tables.staged.c.deliver_at > dialect.moment(moment_at(0))


def _json(headers: bytes | None) -> ColumnElement[Any]:
    return null() if headers is None else cast(literal(headers.decode(), Text), Json)


def _pieces(contents: RecordBatch) -> Iterator[tuple[int, int]]:
    """Split *contents* into ranges that one statement can take each."""
    first, size = 0, 0
    for place, value in enumerate(contents.values):
        size += len(value)
        if place - first == _INSERT_MESSAGES or (size > _INSERT_BYTES and place > first):
            yield first, place
            first, size = place, len(value)
    if contents.values:
        yield first, len(contents.values)
