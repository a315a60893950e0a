"""Claims held by a lock: the partition belongs to whoever has its claim's row locked, until his transaction ends.

Nothing is written to the claim. A lock of this kind and the claim of a member exclude each other: a member passes over
what is locked, and what a member has is not looked for here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, case, cast, func, insert, nulls_first, select

from sqlmq.store import growth
from sqlmq.store.groups import Claim, has_live_owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select

    from sqlmq.dialects import Dialect, Held
    from sqlmq.store.groups import Group
    from sqlmq.store.offsets import Commit


class Look(NamedTuple):
    """What a group has to offer at this moment, to be seen without any lock."""

    has_messages: bool
    """Whether there are messages, not yet read, in a partition that no member has."""
    has_dead_owners: bool
    """Whether a partition belongs to a member whose lease is over."""


def look(conn: Connection, dialect: Dialect, group: Group) -> Look | None:
    """Look whether something may be there to be held; None if *group* is gone."""
    c, g = dialect.tables.claim, dialect.tables.group
    # Not EXISTS, and in order: without that Postgres may read the claims of all groups to find one of this.
    free = _free(dialect, group).with_only_columns(c.c.partition_id)
    orphaned = select(c.c.partition_id).where(
        c.c.group_id == group.id, c.c.member_id.is_not(None), ~has_live_owner(dialect)
    )
    row = conn.execute(
        select(
            free.order_by(c.c.partition_id).limit(1).scalar_subquery().is_not(None),
            orphaned.order_by(c.c.partition_id).limit(1).scalar_subquery().is_not(None),
        ).where(g.c.id == group.id)
    ).first()
    return None if row is None else Look(row[0], row[1])


def hold(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    *,
    last: Sequence[int],
    quiet_seconds: float,
    vanished_seconds: float,
) -> tuple[Claim | None, Held]:
    """Lock the claim of a partition that has messages, which nobody has, and return it: the one served longest ago.

    Those of the ids *last* come after the others, in that order. Passes over what somebody else has locked. What the
    claim's position is has to be asked in a later statement.
    """
    c = dialect.tables.claim
    turn = case({id_: rank for rank, id_ in enumerate(last, 1)}, value=c.c.partition_id, else_=0) if last else None
    wanted = (
        _free(dialect, group)
        .order_by(
            *([] if turn is None else [turn]),
            nulls_first(_newest(dialect, dialect.tables.group_offset.c.committed_at)),
            c.c.partition_id,
        )
        .limit(1)
        .with_for_update(key_share=True, skip_locked=True, of=c)
    )
    held = dialect.hold(conn, wanted, quiet_seconds=quiet_seconds, vanished_seconds=vanished_seconds)
    return (None if held.row is None else Claim(held.row.partition_id, held.row.epoch)), held


def move_on(
    conn: Connection, dialect: Dialect, group: Group, claim: Claim, token: str | None, *, start: int, commit: Commit
) -> bool:
    """Move *group* on from *start* to *commit*; return False, with nothing written, unless all is as it was.

    That is: the transaction is the one in which ``hold`` gave *token*, the claim has the same epoch and no owner, and
    the position is still *start*.
    """
    c, o, p = dialect.tables.claim, dialect.tables.group_offset, dialect.tables.partition
    is_same = and_(
        c.c.group_id == group.id,
        c.c.partition_id == commit.partition_id,
        c.c.epoch == claim.epoch,
        c.c.member_id.is_(None),
        _position(dialect) == start,
        dialect.is_held(token),
    )
    new = (
        select(c.c.group_id, c.c.partition_id, cast(commit.offset, o.c.committed_offset.type))
        .join(p, and_(p.c.id == c.c.partition_id, p.c.topic_id.is_not(None)))
        .where(is_same)
    )
    columns = [o.c.group_id, o.c.partition_id, o.c.committed_offset]
    return conn.execute(insert(o).from_select(columns, new).returning(o.c.partition_id)).first() is not None


def is_held(conn: Connection, dialect: Dialect, token: str | None) -> bool:
    """Whether the transaction is the one in which ``hold`` gave *token*."""
    return bool(conn.execute(select(dialect.is_held(token))).scalar())


def identity(conn: Connection, dialect: Dialect, group: Group) -> object:
    """What no group in another database has in common with *group*, all together; None if it is not there."""
    g = dialect.tables.group
    row = conn.execute(select(g.c.topic_id, g.c.name, g.c.created_at).where(g.c.id == group.id)).first()
    return None if row is None else tuple(row)


def _free(dialect: Dialect, group: Group) -> Select[Any]:
    """The claims of *group* that no member has, in whose partition there are messages that are to be read."""
    c, m, p = dialect.tables.claim, dialect.tables.message, dialect.tables.partition
    # One look into the index for each partition: an EXISTS may become a join that reads the whole log.
    next_offset = (
        select(m.c.msg_offset)
        .where(m.c.partition_id == c.c.partition_id, m.c.msg_offset >= _position(dialect))
        .order_by(m.c.msg_offset)
        .limit(1)
        .correlate(c, p)
        .scalar_subquery()
    )
    return (
        select(c.c.partition_id, c.c.epoch)
        .join(p, and_(p.c.id == c.c.partition_id, p.c.topic_id.is_not(None)))
        .where(c.c.group_id == group.id, c.c.member_id.is_(None), next_offset.is_not(None), growth.is_open(dialect))
    )


def _position(dialect: Dialect) -> ColumnElement[int]:
    """The group's position in the partition of a claim: where it has committed nothing, the oldest message kept."""
    newest = _newest(dialect, dialect.tables.group_offset.c.committed_offset)
    return func.coalesce(newest, dialect.tables.partition.c.start_offset)


def _newest(dialect: Dialect, column: ColumnElement[Any]) -> ScalarSelect[Any]:
    c, o = dialect.tables.claim, dialect.tables.group_offset
    return (
        select(column)
        .where(o.c.group_id == c.c.group_id, o.c.partition_id == c.c.partition_id)
        .order_by(o.c.committed_offset.desc())
        .limit(1)
        .correlate(c)
        .scalar_subquery()
    )
