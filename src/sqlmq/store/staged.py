"""Messages that are committed, but not in the log yet: each knows its partition, and when it is due.

Those of 1970 are due as soon as they are committed; all others are delayed ones. What an application's transaction
carries goes past a ``schema_translate_map`` of its connection: that is for the application's tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Float,
    Text,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    true,
    union_all,
)

from sqlmq.model.message import RecordBatch, moment_at
from sqlmq.schema import Json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row

    from sqlmq.dialects import Dialect, PartitionSlice
    from sqlmq.model.validation import Due

_INSERT_MESSAGES = 500
_INSERT_BYTES = 16 * 1024 * 1024
"""What one statement inserts at the most, but for a single message."""
_DELETE_MESSAGES = 1_000

_OWN_NAMES: dict[str, Any] = {"schema_translate_map": None}


class DueMessages(NamedTuple):
    """What is due, and when to look again."""

    partition_ids: list[int]
    """Those that have messages due, in order."""
    is_complete: bool
    """Whether there are no others."""
    next_seconds: float | None
    """In how many seconds another message is due; None if there is none."""


class DueBatch(NamedTuple):
    """Messages that are due, in order."""

    ids: list[int]
    contents: RecordBatch
    topic_partitions: list[int]
    """Of each, how many partitions its topic had when it was staged."""

    @property
    def value_bytes(self) -> int:
        """What the values take."""
        return sum(map(len, self.contents.values))


class Slot(NamedTuple):
    """When messages will be due that are stored now, and which of their partitions are there."""

    partitions: dict[int, int]
    """The ids of those, each with how many its topic has."""
    deliver_at: datetime
    wait_seconds: float
    """How long that is from now, less than 0 if it is over."""


class StagedMessage(NamedTuple):
    """A delayed message as it is listed."""

    id: int
    partition_id: int
    deliver_at: datetime
    key: bytes | None
    value_bytes: int


def find_due(conn: Connection, dialect: Dialect, at_most: int, passing_over: Collection[int]) -> DueMessages:
    """Find out what is due, among the first *at_most* messages that are, and when the next one will be.

    The partitions *passing_over* are left out. Takes no lock.
    """
    s = dialect.tables.staged
    # One moment for both parts, or what becomes due between them would be in neither.
    now = select(dialect.now().label("now")).cte("moment")
    now_value = select(now.c.now).scalar_subquery()
    is_wanted = s.c.partition_id.not_in(passing_over) if passing_over else true()
    due = (
        select(s.c.partition_id, cast(null(), Float).label("seconds"))
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
    """Lock up to *at_most* messages of a partition that were due when the transaction began, in order, and return them.

    No more are taken once their values are *most_bytes*; the first one always is. Passes over what somebody else has
    locked. The caller holds the partition's own lock, so nobody appends in between. What has become due while it waited
    for that would get a timestamp from before it was.
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
    """Delete the messages *ids*, which ``take`` has locked."""
    s = dialect.tables.staged
    conn.execute(delete(s).where(s.c.id.in_(ids)))


def remove_all(conn: Connection, dialect: Dialect, partition_ids: Sequence[int]) -> None:
    """Delete everything staged for *partition_ids*."""
    s = dialect.tables.staged
    conn.execute(delete(s).where(s.c.partition_id.in_(partition_ids)))


def slot(conn: Connection, dialect: Dialect, partition_ids: Collection[int], due: Due) -> Slot | None:
    """What to know before messages for *partition_ids* are stored that are *due* later; None if no partition is there."""
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
        .where(p.c.id.in_(partition_ids), p.c.topic_id.is_not(None)),
        execution_options=_OWN_NAMES,
    ).all()
    if not rows:
        return None
    return Slot(
        {row.id: row.topic_partitions for row in rows}, moment_at(rows[0].deliver_at_us), float(rows[0].wait_seconds)
    )


def add(
    conn: Connection, dialect: Dialect, parts: Sequence[PartitionSlice], contents: RecordBatch, deliver_at: datetime
) -> list[int]:
    """Store messages, each for the part that stands at its place, until *deliver_at*; return their ids, ascending."""
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
        given = conn.execute(insert(s).values(rows).returning(s.c.id), execution_options=_OWN_NAMES).scalars()
        # Ids ascend in the order of the rows; that of what is returned is nobody's promise.
        ids += sorted(given)
    return ids


def waiting(conn: Connection, dialect: Dialect, partition_ids: Sequence[int]) -> list[StagedMessage]:
    """The delayed messages of *partition_ids* in the order in which they are due."""
    s = dialect.tables.staged
    rows = conn.execute(
        select(s.c.id, s.c.partition_id, dialect.microseconds(s.c.deliver_at), s.c.key, func.length(s.c.value))
        .where(s.c.partition_id.in_(partition_ids), _is_delayed(dialect))
        .order_by(s.c.deliver_at, s.c.id)
    )
    return [StagedMessage(id_, partition_id, moment_at(us), key, size) for id_, partition_id, us, key, size in rows]


def overdue(conn: Connection, dialect: Dialect, at_most: int) -> Sequence[Row[Any]]:
    """Of each topic, how many messages are due, among the first *at_most*, and for how many seconds the first has been.

    What was due as soon as it was committed has been since its transaction began to write it. Takes no lock.
    """
    s, p, t = dialect.tables.staged, dialect.tables.partition, dialect.tables.topic
    since_due, since_stored = dialect.age_seconds(s.c.deliver_at), dialect.age_seconds(s.c.created_at)
    due = (
        select(s.c.partition_id, case((since_due < since_stored, since_due), else_=since_stored).label("seconds"))
        .where(s.c.deliver_at <= select(dialect.now()).scalar_subquery())
        .order_by(s.c.deliver_at)
        .limit(at_most)
        .subquery("due")
    )
    return conn.execute(
        select(t.c.name, func.count().label("messages"), func.max(due.c.seconds).label("seconds"))
        .select_from(due.join(p, p.c.id == due.c.partition_id).join(t, t.c.id == p.c.topic_id))
        .group_by(t.c.name)
        .order_by(t.c.name)
    ).all()


def cancel(conn: Connection, dialect: Dialect, ids: Collection[int]) -> set[int]:
    """Delete those delayed messages of *ids* that are still there, and return their ids.

    Waits for a mover that has them locked; whoever cancels locks them in order of id.
    """
    s = dialect.tables.staged
    wanted = sorted(ids)
    cancelled: set[int] = set()
    for first in range(0, len(wanted), _DELETE_MESSAGES):
        some = wanted[first : first + _DELETE_MESSAGES]
        locked = select(s.c.id).where(s.c.id.in_(some), _is_delayed(dialect)).order_by(s.c.id).with_for_update()
        statement = delete(s).where(s.c.id.in_(locked)).returning(s.c.id)
        cancelled |= set(conn.execute(statement, execution_options=_OWN_NAMES).scalars())
    return cancelled


def _is_delayed(dialect: Dialect) -> ColumnElement[bool]:
    return dialect.tables.staged.c.deliver_at > dialect.moment(moment_at(0))


def _json(headers: bytes | None) -> ColumnElement[Any]:
    return null() if headers is None else cast(literal(headers.decode(), Text), Json)


def _pieces(contents: RecordBatch) -> Iterator[tuple[int, int]]:
    """The places from which, and up to which, one statement takes *contents*."""
    first, size = 0, 0
    for place, value in enumerate(contents.values):
        size += len(value)
        if place - first == _INSERT_MESSAGES or (size > _INSERT_BYTES and place > first):
            yield first, place
            first, size = place, len(value)
    if contents.values:
        yield first, len(contents.values)
