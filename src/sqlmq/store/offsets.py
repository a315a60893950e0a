"""`sqlmq_group_offset`: the position of each group in each partition.

A group's position is its newest row. Rows are only inserted, and old ones are deleted from time to time. With another
session holding an old snapshot, updating a row in place fell from 3,160 to 500 commits/s within 50,000 commits; inserts
stayed level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import bindparam, delete, func, select

from sqlmq.dialects import ClaimedPosition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column, ColumnElement, Connection, ScalarSelect

    from sqlmq.dialects import Dialect
    from sqlmq.store.claims import Claim
    from sqlmq.store.groups import Group


class Commit(NamedTuple):
    """A group's new position in one partition: the offset it will read next."""

    partition_id: int
    offset: int
    in_flight_to: int | None = None
    """The end of the messages in flight, from *offset* on, if the consumer counts attempts."""


def commit_claimed(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    member_id: int,
    finished: Sequence[tuple[Claim, Commit]],
    *,
    durably: bool,
    updating_in_flight: bool,
) -> set[int] | None:
    """Insert the commits whose claims *member_id* still has, and return the ids of their partitions.

    None, with nothing done, if the database needs several statements for it: ``claims.lock`` and ``insert_all``.
    """
    positions = [
        ClaimedPosition(claim.partition_id, claim.epoch, commit.offset, commit.in_flight_to)
        for claim, commit in finished
    ]
    return dialect.commit_claimed(
        conn, group.id, member_id, positions, durably=durably, updating_in_flight=updating_in_flight
    )


def insert_all(
    conn: Connection, dialect: Dialect, group: Group, commits: Sequence[Commit], *, updating_in_flight: bool = False
) -> None:
    """Insert *commits* as the group's positions. The caller has locked the claims (``claims.lock``).

    An existing row is a commit whose answer was lost or, if *updating_in_flight*, one whose in-flight offset changes.
    """
    rows = [
        {
            "group_id": group.id,
            "partition_id": commit.partition_id,
            "committed_offset": commit.offset,
            "in_flight_to": commit.in_flight_to,
        }
        for commit in commits
    ]
    if rows:
        o = dialect.tables.group_offset
        unique = ["group_id", "partition_id", "committed_offset"]
        new = (
            dialect.insert_or_update(o, unique, ["in_flight_to"])
            if updating_in_flight
            else dialect.insert_new(o, unique)
        )
        conn.execute(new, rows)


def replace(conn: Connection, dialect: Dialect, group: Group, commits: Sequence[Commit]) -> None:
    """Replace the group's positions by *commits*. The caller has locked the claims (``claims.lock_all``)."""
    o = dialect.tables.group_offset
    ids = [commit.partition_id for commit in commits]
    conn.execute(delete(o).where(o.c.group_id == group.id, o.c.partition_id.in_(ids)))
    insert_all(conn, dialect, group, commits)


def positions_in_flight(
    conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]
) -> dict[int, Commit]:
    """Return the group's position in each of *partition_ids*, by id, with its in-flight offset, or None."""
    o, p = dialect.tables.group_offset, dialect.tables.partition
    position, in_flight_to = (_of_newest(dialect, group, column) for column in (o.c.committed_offset, o.c.in_flight_to))
    rows = conn.execute(
        select(p.c.id, func.coalesce(position, p.c.start_offset), in_flight_to).where(p.c.id.in_(partition_ids))
    )
    return {id_: Commit(id_, offset, in_flight) for id_, offset, in_flight in rows}


class Window(NamedTuple):
    """Positions in one partition from *start* to *end*, without *end*."""

    partition_id: int
    start: int
    end: int


def prune(conn: Connection, dialect: Dialect, group: Group, windows: Sequence[Window]) -> None:
    """Delete the group's old positions in *windows*, which must not be empty.

    A window starts where the last pruning ended, because a search from the start would scan every deleted row again.
    """
    o = dialect.tables.group_offset
    where = (
        o.c.group_id == group.id,
        o.c.partition_id == bindparam("id"),
        o.c.committed_offset >= bindparam("start"),
        o.c.committed_offset < bindparam("end"),
    )
    conn.execute(
        delete(o).where(*where),
        [{"id": window.partition_id, "start": window.start, "end": window.end} for window in windows],
    )


def positions(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> dict[int, int]:
    """Return the group's position in each of *partition_ids*. Without a commit it is the oldest message."""
    o, p = dialect.tables.group_offset, dialect.tables.partition
    position = func.coalesce(_of_newest(dialect, group, o.c.committed_offset), p.c.start_offset)
    rows = conn.execute(select(p.c.id, position.label("position")).where(p.c.id.in_(partition_ids)))
    return {row.id: row.position for row in rows}


class InheritedPosition(NamedTuple):
    """The group's positions that previous owners left in a partition."""

    position: int
    has_older: bool
    """Whether older ones exist, which must be deleted at some time."""


def inherited_positions(
    conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]
) -> dict[int, InheritedPosition]:
    """Return the group's position in each of *partition_ids*, and whether older ones exist."""
    o, p = dialect.tables.group_offset, dialect.tables.partition
    offset = o.c.committed_offset
    newest, oldest = (_of_first(dialect, group, offset, by) for by in (offset.desc(), offset.asc()))
    rows = conn.execute(select(p.c.id, p.c.start_offset, newest, oldest).where(p.c.id.in_(partition_ids)))
    return {
        id_: InheritedPosition(start, has_older=False)
        if last is None
        else InheritedPosition(last, has_older=first < last)
        for id_, start, last, first in rows
    }


def _of_newest(dialect: Dialect, group: Group, column: Column[int]) -> ScalarSelect[int]:
    """Select *column* of the group's newest position in a partition; NULL if it has none."""
    return _of_first(dialect, group, column, dialect.tables.group_offset.c.committed_offset.desc())


def _of_first(dialect: Dialect, group: Group, column: Column[int], by: ColumnElement[int]) -> ScalarSelect[int]:
    """Select *column* of the group's first position, in the order *by*, in a partition; NULL if it has none."""
    o, p = dialect.tables.group_offset, dialect.tables.partition
    where = (o.c.group_id == group.id, o.c.partition_id == p.c.id)
    return select(column).where(*where).order_by(by).limit(1).scalar_subquery()
