"""Groups, their members, and the claims of members on partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, case, delete, insert, literal, null, or_, select, union_all, update

from sqlmq.assignment import ClaimSeen, MemberSeen
from sqlmq.errors import UnknownGroupError
from sqlmq.store import growth

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy import ColumnElement, Connection

    from sqlmq.dialects import Dialect
    from sqlmq.store.topics import Topic


@dataclass(frozen=True, slots=True)
class Group:
    """A group as it is stored."""

    id: int
    name: str
    start_from: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A member's right to one partition, good as long as nobody has raised the epoch."""

    partition_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class GroupSeen:
    """The live members of a group and its claims, at one moment."""

    members: list[MemberSeen]
    claims: list[ClaimSeen]
    owned: dict[int, dict[int, Claim]]
    """What each live member owns, by member id and partition id; nothing of those who own nothing."""


@dataclass(frozen=True, slots=True)
class Member:
    """A live member, for people to look at."""

    id: int
    name: str
    heartbeat_seconds: float
    """How long ago it was last heard of."""


def find(conn: Connection, dialect: Dialect, topic: Topic, name: str) -> Group | None:
    """The group called *name* on *topic*."""
    g = dialect.tables.group
    row = conn.execute(select(g.c.id, g.c.start_from).where(g.c.topic_id == topic.id, g.c.name == name)).first()
    return Group(row.id, name, row.start_from) if row else None


def get(conn: Connection, dialect: Dialect, topic: Topic, name: str) -> Group:
    """The group called *name* on *topic*; raises UnknownGroupError if there is none."""
    group = find(conn, dialect, topic, name)
    if group is None:
        raise UnknownGroupError(topic.name, name)
    return group


def names(conn: Connection, dialect: Dialect, topic: Topic) -> list[str]:
    """The names of the groups on *topic*, in order."""
    g = dialect.tables.group
    return list(conn.execute(select(g.c.name).where(g.c.topic_id == topic.id).order_by(g.c.name)).scalars())


def create(conn: Connection, dialect: Dialect, topic: Topic, name: str, start_from: str) -> bool:
    """Make a group, unless there is one of that name on *topic*; return whether it was made."""
    g = dialect.tables.group
    row = {"topic_id": topic.id, "name": name, "start_from": start_from}
    return conn.execute(dialect.insert_new(g, ["topic_id", "name"]).values(row).returning(g.c.id)).first() is not None


def add_claims(conn: Connection, dialect: Dialect, group: Group, topic: Topic) -> None:
    """Make a claim, without an owner, for each partition of *topic* that the group has none for."""
    c = dialect.tables.claim
    have = set(conn.execute(select(c.c.partition_id).where(c.c.group_id == group.id)).scalars())
    rows = [{"group_id": group.id, "partition_id": id_} for id_ in topic.partition_ids if id_ not in have]
    if rows:
        conn.execute(dialect.insert_new(c, ["group_id", "partition_id"]), rows)


def add_member(conn: Connection, dialect: Dialect, group: Group, name: str, lease_seconds: float) -> int:
    """Add a member and return its id."""
    m = dialect.tables.member
    row = {"group_id": group.id, "name": name, "lease_seconds": lease_seconds}
    member_id: int = conn.execute(insert(m).values(row).returning(m.c.id)).scalar_one()
    return member_id


def remove_member(conn: Connection, dialect: Dialect, member_id: int) -> None:
    """Remove a member; its claims are not touched."""
    m = dialect.tables.member
    conn.execute(delete(m).where(m.c.id == member_id))


def remove_dead(conn: Connection, dialect: Dialect, group: Group) -> None:
    """Free the claims of *group* that no live member has, and remove the members whose lease is over.

    One that lives on after all finds itself gone, and joins anew. Rows that somebody else has locked are left for the
    next time. Claims are locked before members, as everywhere.
    """
    c, m = dialect.tables.claim, dialect.tables.member
    dead = select(m.c.id).where(m.c.group_id == group.id, ~_is_live(dialect))
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


def beat(conn: Connection, dialect: Dialect, member_ids: Sequence[int]) -> set[int]:
    """Say that *member_ids* are alive, now; return those that are still members."""
    m = dialect.tables.member
    ordered = select(m.c.id).where(m.c.id.in_(member_ids)).order_by(m.c.id).with_for_update(key_share=True)
    there = list(conn.execute(ordered).scalars())
    conn.execute(update(m).where(m.c.id.in_(there)).values(heartbeat_at=dialect.now()))
    return set(there)


def set_waiting(conn: Connection, dialect: Dialect, member_id: int, *, is_waiting: bool) -> None:
    """Say whether a member has less than its share."""
    m = dialect.tables.member
    conn.execute(update(m).where(m.c.id == member_id).values(is_waiting=is_waiting))


def look(conn: Connection, dialect: Dialect, group_ids: Collection[int]) -> dict[int, GroupSeen]:
    """The live members of *group_ids*, and the claims, of one moment; by group id.

    Without those on partitions that are not to be read yet.
    """
    c, m = dialect.tables.claim, dialect.tables.member
    live = and_(m.c.id.is_not(None), _is_live(dialect))
    free_seconds = case(
        (live, literal(0.0)),
        (m.c.id.is_not(None), dialect.age_seconds(m.c.heartbeat_at) - m.c.lease_seconds),
        else_=dialect.age_seconds(c.c.changed_at),
    )
    is_left = and_(c.c.member_id.is_not(None), m.c.id.is_(None))
    members = select(
        m.c.group_id,
        m.c.id.label("member_id"),
        m.c.is_waiting.label("flag"),
        dialect.age_seconds(m.c.joined_at).label("seconds"),
        null().label("partition_id"),
        null().label("epoch"),
    ).where(m.c.group_id.in_(group_ids), _is_live(dialect))
    claims = (
        select(c.c.group_id, case((live, c.c.member_id)), is_left, free_seconds, c.c.partition_id, c.c.epoch)
        .select_from(c.outerjoin(m, m.c.id == c.c.member_id))
        .where(c.c.group_id.in_(group_ids), or_(c.c.member_id.is_not(None), growth.is_open(dialect)))
    )
    seen = {id_: GroupSeen([], [], {}) for id_ in group_ids}
    for group_id, member_id, flag, seconds, partition_id, epoch in conn.execute(union_all(members, claims)):
        group = seen[group_id]
        if partition_id is None:
            group.members.append(MemberSeen(member_id, bool(flag), seconds))
            continue
        group.claims.append(ClaimSeen(partition_id, member_id, seconds, bool(flag)))
        if member_id is not None:
            group.owned.setdefault(member_id, {})[partition_id] = Claim(partition_id, epoch)
    return seen


def members(conn: Connection, dialect: Dialect, group: Group) -> list[Member]:
    """The live members of *group*, for people to look at."""
    m = dialect.tables.member
    rows = conn.execute(
        select(m.c.id, m.c.name, dialect.age_seconds(m.c.heartbeat_at).label("age"))
        .where(m.c.group_id == group.id, _is_live(dialect))
        .order_by(m.c.id)
    )
    return [Member(row.id, row.name, row.age) for row in rows]


def awaited_topics(conn: Connection, dialect: Dialect, topic_ids: Collection[int], but: Collection[int]) -> set[int]:
    """Those of *topic_ids* that have live members, *but* those, in any group."""
    g, m = dialect.tables.group, dialect.tables.member
    rows = conn.execute(
        select(g.c.topic_id)
        .distinct()
        .select_from(g.join(m, m.c.group_id == g.c.id))
        .where(g.c.topic_id.in_(topic_ids), m.c.id.not_in(but), _is_live(dialect))
    )
    return set(rows.scalars())


def take(
    conn: Connection, dialect: Dialect, group: Group, member_id: int, partition_ids: Sequence[int], at_most: int
) -> list[Claim]:
    """Claim up to *at_most* of *partition_ids* that are to be read and nobody live owns; return them with new epochs.

    Passes over what somebody else is claiming or committing at this moment. The claims' rows stay locked until the
    transaction ends.
    """
    c = dialect.tables.claim
    is_free = or_(c.c.member_id.is_(None), ~has_live_owner(dialect))
    free = conn.execute(
        select(c.c.partition_id, c.c.epoch)
        .where(c.c.group_id == group.id, c.c.partition_id.in_(partition_ids), is_free, growth.is_open(dialect))
        .order_by(c.c.partition_id)
        .limit(at_most)
        .with_for_update(key_share=True, skip_locked=True, of=c)
    ).all()
    taken = [Claim(row.partition_id, row.epoch + 1) for row in free]
    _set_owner(conn, dialect, group, taken, member_id)
    return taken


def hand_back(conn: Connection, dialect: Dialect, group: Group, member_id: int, given: Iterable[Claim]) -> None:
    """Leave the claims *given* without an owner, those that *member_id* still has; the others are passed over."""
    held = lock(conn, dialect, group, member_id, given)
    _set_owner(conn, dialect, group, held, None)


def bequeath(conn: Connection, dialect: Dialect, group: Group, member_id: int, given: Iterable[Claim]) -> None:
    """Leave the claims *given* to whoever succeeds *member_id*, those that it still has; it is to be removed with this.

    They keep its id, by which they are known until somebody joins, and get an epoch that is not its own.
    """
    held = lock(conn, dialect, group, member_id, given)
    _set_owner(conn, dialect, group, [Claim(claim.partition_id, claim.epoch + 1) for claim in held], member_id)


def lock(conn: Connection, dialect: Dialect, group: Group, member_id: int, wanted: Iterable[Claim]) -> list[Claim]:
    """Lock those of the claims *wanted* that *member_id* still has, until the transaction ends, and return them.

    This is the fence: while the rows are locked nobody can take them over, and what was taken over is not returned.
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
    """Lock the claims on *partition_ids*, whoever has them, until the transaction ends; return the ids of those there are.

    While they are locked, nobody takes a partition over, and its owner writes nothing for it.
    """
    c = dialect.tables.claim
    rows = conn.execute(
        select(c.c.partition_id)
        .where(c.c.group_id == group.id, c.c.partition_id.in_(partition_ids))
        .order_by(c.c.partition_id)
        .with_for_update(key_share=True)
    )
    return list(rows.scalars())


def dispossess(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> None:
    """Take *partition_ids* from whoever has them, who is fenced. The caller has locked their claims (``lock_all``)."""
    c = dialect.tables.claim
    conn.execute(
        update(c)
        .where(c.c.group_id == group.id, c.c.partition_id.in_(partition_ids))
        .values(member_id=null(), epoch=c.c.epoch + 1, changed_at=dialect.now())
    )


def renew(conn: Connection, dialect: Dialect, group: Group, member_id: int, claim: Claim) -> Claim | None:
    """Raise the epoch of *claim*, which stays the member's, and lock it; None if *member_id* has it no more.

    What the member itself has sent, or is to send, by the old one is fenced.
    """
    if not lock(conn, dialect, group, member_id, [claim]):
        return None
    renewed = Claim(claim.partition_id, claim.epoch + 1)
    _set_owner(conn, dialect, group, [renewed], member_id)
    return renewed


def _set_owner(
    conn: Connection, dialect: Dialect, group: Group, claims_: Iterable[Claim], member_id: int | None
) -> None:
    c = dialect.tables.claim
    rows = [{"p": claim.partition_id, "epoch": claim.epoch, "member_id": member_id} for claim in claims_]
    if rows:
        where = and_(c.c.group_id == group.id, c.c.partition_id == bindparam("p"))
        conn.execute(update(c).where(where).values(changed_at=dialect.now()), rows)


def has_live_owner(dialect: Dialect) -> ColumnElement[bool]:
    """Whether a claim of the enclosing statement belongs to a member whose lease is not over."""
    c, m = dialect.tables.claim, dialect.tables.member
    return select(m.c.id).where(m.c.id == c.c.member_id, _is_live(dialect)).exists()


def _is_live(dialect: Dialect) -> ColumnElement[bool]:
    m = dialect.tables.member
    return dialect.age_seconds(m.c.heartbeat_at) < m.c.lease_seconds
