"""Membership: the members of a group, and which partitions each of them reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sqlmq.errors import UnknownTopicError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model import assignment, positions
from sqlmq.operations.admin import reset
from sqlmq.operations.consume import commit
from sqlmq.store import claims, groups, offsets, retention, topics
from sqlmq.store.claims import Claim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.positions import Start
    from sqlmq.store.claims import GroupSnapshot
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic


@dataclass(frozen=True, slots=True)
class GroupView:
    """A member's view of its group, and the assignment that follows from it."""

    mine: dict[int, Claim]
    """The claims that the member has in the database, by partition id."""
    plan: assignment.Assignment
    wants_partitions: bool

    def has_work_for(self, claims: Mapping[int, Claim]) -> bool:
        """Whether a member that believes it has *claims*, with nothing in flight, has something to change."""
        is_short = len(self.mine) < self.plan.share
        return (
            self.mine != claims
            or bool(self.plan.take_at_most or self.plan.release)
            or self.wants_partitions != is_short
        )


@dataclass(frozen=True, slots=True)
class ClaimedNow:
    """A newly claimed partition and the group's position in it."""

    claim: Claim
    number: int
    """The number of the partition."""
    position: int
    has_older: bool
    """Whether previous owners left older positions of the group."""
    log_start: int
    """The oldest offset."""


def join(
    conn: Connection, dialect: Dialect, topic: Topic, group_name: str, start: Start, name: str, lease_seconds: float
) -> tuple[Group, int]:
    """Create the group if it is new, add a member, and return both. Claims no partition yet.

    A new group starts at *start* in all partitions, and keeps that for partitions added later. An existing group
    ignores it.
    """
    held = topics.lock_shared(conn, dialect, topic)
    if held is None:
        raise UnknownTopicError(topic.name)
    topic = held
    made = groups.create(conn, dialect, topic, group_name, positions.start_to_text(start))
    group = groups.get(conn, dialect, topic, group_name)
    if made and start != "earliest":
        reset.start(conn, dialect, topic, group, start)
    claims.add_claims(conn, dialect, group, topic)
    claims.remove_dead(conn, dialect, group)
    member_id = groups.add_member(conn, dialect, group, name, lease_seconds)
    failpoint("join.after")
    return group, member_id


def read_group(
    conn: Connection, dialect: Dialect, group: Group, member_id: int, lease_seconds: float
) -> GroupView | None:
    """Read members and claims and assign partitions; None if *member_id* is not a live member. Only reads."""
    return group_view(claims.snapshots(conn, dialect, [group.id])[group.id], member_id, lease_seconds)


def group_view(seen: GroupSnapshot, member_id: int, lease_seconds: float) -> GroupView | None:
    """Return the view of *member_id* on its group; None if it is not a live member."""
    me = next((member for member in seen.members if member.member_id == member_id), None)
    if me is None:
        return None
    plan = assignment.assign(member_id, seen.members, seen.claims, lease_seconds)
    return GroupView(seen.owned.get(member_id, {}), plan, me.wants_partitions)


def change(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    member_id: int,
    seen: GroupView,
    *,
    finished: Iterable[tuple[Claim, offsets.Commit]],
    give: Sequence[Claim],
) -> tuple[list[offsets.Commit], list[ClaimedNow]]:
    """Commit *finished*, release *give* and claim what is free by *seen*; return the written commits and new claims.

    Reads the group's positions in the new claims under their locks, after the previous owner's last commit.
    """
    written = commit(conn, dialect, group, member_id, finished, updating_in_flight=True)
    claims.release(conn, dialect, group, member_id, give)
    plan = seen.plan
    taken = []
    if plan.take_at_most:
        failpoint("claim.before")
        taken = claims.claim_free(conn, dialect, group, member_id, plan.take, plan.take_at_most)
        failpoint("claim.after")
    ids = [claim.partition_id for claim in taken]
    left, starts = offsets.inherited_positions(conn, dialect, group, ids), retention.starts(conn, dialect, ids)
    wants_partitions = len(seen.mine) - len(give) + len(taken) < plan.share
    if wants_partitions != seen.wants_partitions:
        groups.set_wants_partitions(conn, dialect, member_id, wants_partitions=wants_partitions)
    return written, [
        ClaimedNow(claim, number, *left[claim.partition_id], start)
        for claim in taken
        if claim.partition_id in left and claim.partition_id in starts
        for number, start in [starts[claim.partition_id]]
    ]


class ReleaseOperation(Protocol):
    """A way to release partitions: ``release``, ``leave`` or ``leave_for_successor``."""

    def __call__(
        self,
        conn: Connection,
        dialect: Dialect,
        group: Group,
        member_id: int,
        *,
        finished: Iterable[tuple[Claim, offsets.Commit]],
        given: Iterable[Claim],
    ) -> None:
        """Release *given*."""


def release(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    member_id: int,
    *,
    finished: Iterable[tuple[Claim, offsets.Commit]],
    given: Iterable[Claim],
) -> None:
    """Commit *finished* and release the claims *given*."""
    commit(conn, dialect, group, member_id, finished, updating_in_flight=True)
    failpoint("handover.before")
    claims.release(conn, dialect, group, member_id, given)
    failpoint("handover.after")


def leave(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    member_id: int,
    *,
    finished: Iterable[tuple[Claim, offsets.Commit]],
    given: Iterable[Claim],
) -> None:
    """Commit *finished*, release the claims *given*, and leave the group."""
    release(conn, dialect, group, member_id, finished=finished, given=given)
    groups.remove_member(conn, dialect, member_id)
    failpoint("leave.after")


def leave_for_successor(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    member_id: int,
    *,
    finished: Iterable[tuple[Claim, offsets.Commit]],
    given: Iterable[Claim],
) -> None:
    """Leave like ``leave``, but reserve the claims *given* for the next member that joins."""
    commit(conn, dialect, group, member_id, finished, updating_in_flight=True)
    failpoint("handover.before")
    claims.reserve_for_successor(conn, dialect, group, member_id, given)
    failpoint("handover.after")
    groups.remove_member(conn, dialect, member_id)
    failpoint("leave.after")


def heartbeat(conn: Connection, dialect: Dialect, member_ids: Sequence[int]) -> set[int]:
    """Record a heartbeat of *member_ids* and return those that are still members."""
    failpoint("heartbeat.before")
    alive = groups.heartbeat(conn, dialect, member_ids)
    failpoint("heartbeat.after")
    return alive
