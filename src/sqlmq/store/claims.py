"""`sqlmq_claim`: which member owns a partition in a group, and the fence that keeps all others out.

A claim has an owner and an epoch, which rises whenever a member takes the partition or is fenced. Its row is locked in two ways. A member locks
its own claims (``lock``) before it writes for them. ``consumer.transaction()`` locks a claim that no member owns
(``lock_free_claim``): the partition belongs to that transaction until it ends, and the claim is not changed. The two
exclude each other, because members skip locked claims, and ``lock_free_claim`` looks only for claims without an owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Numeric,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    null,
    nulls_first,
    or_,
    select,
    table,
    union_all,
    update,
)

from sqlmq.model.assignment import ClaimSnapshot, MemberSnapshot
from sqlmq.model.timing import elapsed_seconds
from sqlmq.reports.diagnosis import PartitionBarrier
from sqlmq.store.groups import is_live

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, TableClause

    from sqlmq.dialects import Dialect, LockedRow
    from sqlmq.store.groups import Group
    from sqlmq.store.offsets import Commit
    from sqlmq.store.topics import Topic


_BARRIER = ("topic", "group_name", "partition", "parent", "barrier_offset", "group_id", "partition_id")


@dataclass(frozen=True, slots=True)
class Claim:
    """A member's right to one partition, valid until another owner raises the epoch."""

    partition_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """The live members of a group and its claims, at one moment."""

    members: list[MemberSnapshot]
    claims: list[ClaimSnapshot]
    owned: dict[int, dict[int, Claim]]
    """The claims of each live member, by member id and partition id. Members without claims are missing."""


class FreeClaims(NamedTuple):
    """Whether a transaction could lock a claim in a group, read without a lock."""

    has_messages: bool
    """Whether a partition without an owner has unread messages."""
    has_dead_owners: bool
    """Whether a member whose lease is over owns a partition."""


def add_claims(conn: Connection, dialect: Dialect, group: Group, topic: Topic) -> None:
    """Create a claim, without an owner, for each partition of *topic* that has none in *group*."""
    c = dialect.tables.claim
    have = set(conn.execute(select(c.c.partition_id).where(c.c.group_id == group.id)).scalars())
    rows = [{"group_id": group.id, "partition_id": id_} for id_ in topic.partition_ids if id_ not in have]
    if rows:
        conn.execute(dialect.insert_new(c, ["group_id", "partition_id"]), rows)


def claim_free(
    conn: Connection, dialect: Dialect, group: Group, member_id: int, partition_ids: Sequence[int], at_most: int
) -> list[Claim]:
    """Claim up to *at_most* of *partition_ids* that are open and have no live owner; return them with new epochs.

    Takes those first that have been free longest, in whole seconds. Skips claims that another transaction has locked.
    The claims' rows stay locked until the transaction ends.
    """
    c, m = dialect.tables.claim, dialect.tables.member
    # The join only orders. Postgres checks a row again that has changed since it was read, but with the member that it
    # was joined to before. Only a subquery sees the new one.
    is_free = or_(c.c.member_id.is_(None), ~has_live_owner(dialect))
    free = conn.execute(
        select(c.c.partition_id, c.c.epoch)
        .select_from(c.outerjoin(m, m.c.id == c.c.member_id))
        .where(c.c.group_id == group.id, c.c.partition_id.in_(partition_ids), is_free, is_open(dialect))
        .order_by(cast(_free_seconds(dialect), BigInteger).desc(), c.c.partition_id)
        .limit(at_most)
        .with_for_update(key_share=True, skip_locked=True, of=c)
    ).all()
    taken = [Claim(row.partition_id, row.epoch + 1) for row in free]
    _set_owner(conn, dialect, group, taken, member_id)
    return taken


def release(conn: Connection, dialect: Dialect, group: Group, member_id: int, given: Iterable[Claim]) -> None:
    """Release those of the claims *given* that *member_id* still has."""
    held = lock(conn, dialect, group, member_id, given)
    _set_owner(conn, dialect, group, held, None)


def reserve_for_successor(
    conn: Connection, dialect: Dialect, group: Group, member_id: int, given: Iterable[Claim]
) -> None:
    """Reserve the claims *given* that *member_id* still has for its successor. The caller removes the member, too.

    They keep the member's id, which marks them as reserved until another member joins, and get an epoch that it does
    not know.
    """
    held = lock(conn, dialect, group, member_id, given)
    _set_owner(conn, dialect, group, [Claim(claim.partition_id, claim.epoch + 1) for claim in held], member_id)


def lock(conn: Connection, dialect: Dialect, group: Group, member_id: int, wanted: Iterable[Claim]) -> list[Claim]:
    """Lock those of the claims *wanted* that *member_id* still has, until the transaction ends, and return them.

    This is the fence: no other member can take the locked claims over, and claims that were taken over are not
    returned.
    """
    epochs = {claim.partition_id: claim.epoch for claim in wanted}
    c = dialect.tables.claim
    rows = conn.execute(
        select(c.c.partition_id, c.c.epoch)
        .where(c.c.group_id == group.id, c.c.partition_id.in_(sorted(epochs)), c.c.member_id == member_id)
        .order_by(c.c.partition_id)
        .with_for_update(key_share=True)
    )
    return [Claim(row.partition_id, row.epoch) for row in rows if epochs[row.partition_id] == row.epoch]


def lock_all(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> list[int]:
    """Lock the claims on *partition_ids*, of any owner, until the transaction ends; return the ids that exist.

    Meanwhile no member takes a partition over, and no owner commits for it.
    """
    c = dialect.tables.claim
    rows = conn.execute(
        select(c.c.partition_id)
        .where(c.c.group_id == group.id, c.c.partition_id.in_(partition_ids))
        .order_by(c.c.partition_id)
        .with_for_update(key_share=True)
    )
    return list(rows.scalars())


def revoke(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> None:
    """Take *partition_ids* from their owners, which are fenced. The caller has locked the claims (``lock_all``)."""
    c = dialect.tables.claim
    conn.execute(
        update(c)
        .where(c.c.group_id == group.id, c.c.partition_id.in_(partition_ids))
        .values(member_id=null(), epoch=c.c.epoch + 1, changed_at=dialect.now())
    )


def bump_epoch(conn: Connection, dialect: Dialect, group: Group, member_id: int, claim: Claim) -> Claim | None:
    """Raise the epoch of *claim*, which the member keeps, and lock it; None if *member_id* has lost it.

    Fences what the member itself has sent, or will send, with the old epoch.
    """
    if not lock(conn, dialect, group, member_id, [claim]):
        return None
    renewed = Claim(claim.partition_id, claim.epoch + 1)
    _set_owner(conn, dialect, group, [renewed], member_id)
    return renewed


def snapshots(conn: Connection, dialect: Dialect, group_ids: Collection[int]) -> dict[int, GroupSnapshot]:
    """Return the live members and the claims of *group_ids*, at one moment, by group id.

    Excludes free claims on partitions that are not open yet.
    """
    c, m = dialect.tables.claim, dialect.tables.member
    live = _has_live_member(dialect)
    is_left = and_(c.c.member_id.is_not(None), m.c.id.is_(None))
    members = select(
        m.c.group_id,
        m.c.id.label("member_id"),
        m.c.wants_partitions.label("flag"),
        dialect.age_seconds(m.c.joined_at).label("seconds"),
        null().label("partition_id"),
        null().label("epoch"),
    ).where(m.c.group_id.in_(group_ids), is_live(dialect))
    claims = (
        select(c.c.group_id, case((live, c.c.member_id)), is_left, _free_seconds(dialect), c.c.partition_id, c.c.epoch)
        .select_from(c.outerjoin(m, m.c.id == c.c.member_id))
        .where(c.c.group_id.in_(group_ids), or_(c.c.member_id.is_not(None), is_open(dialect)))
    )
    seen = {id_: GroupSnapshot([], [], {}) for id_ in group_ids}
    for group_id, member_id, flag, seconds, partition_id, epoch in conn.execute(union_all(members, claims)):
        group = seen[group_id]
        if partition_id is None:
            group.members.append(MemberSnapshot(member_id, bool(flag), elapsed_seconds(seconds)))
            continue
        group.claims.append(ClaimSnapshot(partition_id, member_id, elapsed_seconds(seconds), bool(flag)))
        if member_id is not None:
            group.owned.setdefault(member_id, {})[partition_id] = Claim(partition_id, epoch)
    return seen


def remove_dead(conn: Connection, dialect: Dialect, group: Group) -> None:
    """Free the claims of *group* without a live owner, and remove the members whose lease is over.

    A removed member that is alive after all notices it, and joins again. Skips rows that another transaction has
    locked. Locks claims before members, like every transaction.
    """
    c, m = dialect.tables.claim, dialect.tables.member
    dead = select(m.c.id).where(m.c.group_id == group.id, ~is_live(dialect))
    orphaned = conn.execute(
        select(c.c.partition_id, c.c.epoch)
        .where(c.c.group_id == group.id, c.c.member_id.is_not(None), ~has_live_owner(dialect))
        .order_by(c.c.partition_id)
        .with_for_update(key_share=True, skip_locked=True)
    ).all()
    _set_owner(conn, dialect, group, [Claim(row.partition_id, row.epoch) for row in orphaned], None)
    ownerless = ~select(c.c.partition_id).where(c.c.group_id == group.id, c.c.member_id == m.c.id).exists()
    locked = dead.where(ownerless).order_by(m.c.id).with_for_update(skip_locked=True).cte("locked")
    conn.execute(delete(m).where(m.c.id.in_(select(locked.c.id))))


def find_free(conn: Connection, dialect: Dialect, group: Group) -> FreeClaims | None:
    """Read whether *group* may have a claim to lock; None if the group is gone."""
    c, g = dialect.tables.claim, dialect.tables.group
    # Not EXISTS, and ordered: otherwise Postgres may read the claims of all groups to find one of this group.
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
    return None if row is None else FreeClaims(row[0], row[1])


def lock_free_claim(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    *,
    last: Sequence[int],
    quiet_seconds: float,
    vanished_seconds: float,
) -> tuple[Claim | None, LockedRow]:
    """Lock and return the claim of a partition with messages and without an owner, the one served longest ago.

    The ids *last* come after all others, in that order. Skips claims that another transaction has locked. The caller
    must read the claim's position in a later statement.
    """
    c = dialect.tables.claim
    # A moment that lies ahead is from before the clock was set back. It counts as none, and comes first: otherwise it would
    # come last until the clock has caught up, however long the others have messages.
    committed_at = dialect.tables.group_offset.c.committed_at
    served_at = case((committed_at <= dialect.now(), committed_at))
    turn = case({id_: rank for rank, id_ in enumerate(last, 1)}, value=c.c.partition_id, else_=0) if last else None
    wanted = (
        _free(dialect, group)
        .order_by(
            *([] if turn is None else [turn]),
            nulls_first(_newest(dialect, served_at)),
            c.c.partition_id,
        )
        .limit(1)
        .with_for_update(key_share=True, skip_locked=True, of=c)
    )
    held = dialect.lock_and_watch(conn, wanted, quiet_seconds=quiet_seconds, vanished_seconds=vanished_seconds)
    return (None if held.row is None else Claim(held.row.partition_id, held.row.epoch)), held


def commit_locked(
    conn: Connection, dialect: Dialect, group: Group, claim: Claim, token: str | None, *, start: int, commit: Commit
) -> bool:
    """Move *group* from *start* to *commit*. Returns False, with nothing written, if anything has changed.

    The transaction must be the one for which ``lock_free_claim`` returned *token*, the claim must have the same epoch
    and no owner, and the position must still be *start*.
    """
    c, o, p = dialect.tables.claim, dialect.tables.group_offset, dialect.tables.partition
    is_same = and_(
        c.c.group_id == group.id,
        c.c.partition_id == commit.partition_id,
        c.c.epoch == claim.epoch,
        c.c.member_id.is_(None),
        _position(dialect) == start,
        dialect.is_same_transaction(token),
    )
    new = (
        select(c.c.group_id, c.c.partition_id, cast(commit.offset, o.c.committed_offset.type))
        .join(p, and_(p.c.id == c.c.partition_id, p.c.topic_id.is_not(None)))
        .where(is_same)
    )
    columns = [o.c.group_id, o.c.partition_id, o.c.committed_offset]
    return conn.execute(insert(o).from_select(columns, new).returning(o.c.partition_id)).first() is not None


def is_same_transaction(conn: Connection, dialect: Dialect, token: str | None) -> bool:
    """Whether the transaction is the one for which ``lock_free_claim`` returned *token*."""
    return bool(conn.execute(select(dialect.is_same_transaction(token))).scalar())


def identity(conn: Connection, dialect: Dialect, group: Group) -> object:
    """Return values that together no group in another database has; None if *group* is gone."""
    g = dialect.tables.group
    row = conn.execute(select(g.c.topic_id, g.c.name, g.c.created_at).where(g.c.id == group.id)).first()
    return None if row is None else tuple(row)


def _free(dialect: Dialect, group: Group) -> Select[Any]:
    """Select the claims of *group* without an owner whose partition is open and has unread messages."""
    c, m, p = dialect.tables.claim, dialect.tables.message, dialect.tables.partition
    # A subquery, for one index look-up in each partition. An EXISTS may become a join that reads the whole log.
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
        .where(c.c.group_id == group.id, c.c.member_id.is_(None), next_offset.is_not(None), is_open(dialect))
    )


def _position(dialect: Dialect) -> ColumnElement[int]:
    """The group's position in the partition of a claim; without a commit, the oldest message."""
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


def partition_barriers(conn: Connection, dialect: Dialect, topic: str, group: str) -> list[PartitionBarrier]:
    """Return the partitions that a group does not read yet, each with the first barrier it waits for."""
    seen = _barriers(dialect)
    rows = conn.execute(
        select(seen.c.partition, seen.c.parent, seen.c.barrier_offset)
        .where(seen.c.topic == topic, seen.c.group_name == group)
        .order_by(seen.c.partition, seen.c.parent)
    )
    found: dict[int, PartitionBarrier] = {}
    for row in rows:
        found.setdefault(row.partition, PartitionBarrier(*row))
    return list(found.values())


def is_open(dialect: Dialect) -> ColumnElement[bool]:
    """Whether a claim's partition, in the enclosing statement, may be read: its group is past every barrier."""
    c, seen = dialect.tables.claim, _barriers(dialect)
    # A subquery, for one look-up for each claim. For an EXISTS, Postgres may compute the barriers of all groups.
    closed = (
        select(seen.c.partition_id)
        .where(seen.c.group_id == c.c.group_id, seen.c.partition_id == c.c.partition_id)
        .limit(1)
        .correlate(c)
        .scalar_subquery()
    )
    return closed.is_(None)


def _free_seconds(dialect: Dialect) -> ColumnElement[float]:
    """How long a claim has had no live owner, for claims joined to their members; 0 while it has one."""
    c, m = dialect.tables.claim, dialect.tables.member
    return case(
        (_has_live_member(dialect), literal_column("0")),
        (m.c.id.is_not(None), dialect.age_seconds(m.c.heartbeat_at) - cast(m.c.lease_seconds, Numeric)),
        else_=dialect.age_seconds(c.c.changed_at),
    )


def _has_live_member(dialect: Dialect) -> ColumnElement[bool]:
    return and_(dialect.tables.member.c.id.is_not(None), is_live(dialect))


def has_live_owner(dialect: Dialect) -> ColumnElement[bool]:
    """Whether a claim, in the enclosing statement, belongs to a member whose lease is valid."""
    c, m = dialect.tables.claim, dialect.tables.member
    return select(m.c.id).where(m.c.id == c.c.member_id, is_live(dialect)).correlate(c).exists()


def _set_owner(
    conn: Connection, dialect: Dialect, group: Group, claims_: Iterable[Claim], member_id: int | None
) -> None:
    c = dialect.tables.claim
    rows = [{"p": claim.partition_id, "epoch": claim.epoch, "member_id": member_id} for claim in claims_]
    if rows:
        where = and_(c.c.group_id == group.id, c.c.partition_id == bindparam("p"))
        conn.execute(update(c).where(where).values(changed_at=dialect.now()), rows)


def _barriers(dialect: Dialect) -> TableClause:
    """The view that computes which partitions a group does not read yet. No other statement computes it."""
    return table("sqlmq_partition_barrier", *map(column, _BARRIER), schema=dialect.schema)
