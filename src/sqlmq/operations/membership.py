"""Membership: who is in a group, and which partitions each member reads."""

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
    """What a member sees of its group, and what it should do about it."""

    mine: dict[int, Claim]
    """The claims that are the member's by the database, by partition id."""
    plan: assignment.Assignment
    wants_partitions: bool

    def has_work_for(self, claims: Mapping[int, Claim]) -> bool:
        """Whether there is something to do for the member, which has *claims* and nothing of them in hand."""
        is_short = len(self.mine) < self.plan.share
        return (
            self.mine != claims
            or bool(self.plan.take_at_most or self.plan.release)
            or self.wants_partitions != is_short
        )


@dataclass(frozen=True, slots=True)
class ClaimedNow:
    """A partition that was just claimed, and the group's position in it."""

    claim: Claim
    number: int
    """The partition's."""
    position: int
    has_older: bool
    """Whether the owners before have left older positions of the group's."""
    log_start: int
    """The oldest offset kept."""


def join(
    conn: Connection, dialect: Dialect, topic: Topic, group_name: str, start: Start, name: str, lease_seconds: float
) -> tuple[Group, int]:
    """Make the group if it is new, add a member to it, and return both; no partition is claimed yet.

    A new group starts where *start* says, in all partitions at once, and keeps to it; for an old one it means nothing.
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
    """Look at members and claims, and decide; None if *member_id* is not a live member any more. Only reads."""
    return group_view(claims.snapshots(conn, dialect, [group.id])[group.id], member_id, lease_seconds)


def group_view(seen: GroupSnapshot, member_id: int, lease_seconds: float) -> GroupView | None:
    """What *member_id* makes of its group; None if it is not a live member any more."""
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
    """Commit *finished*, hand back *give*, claim what *seen* says is free; return the commits written and the claims.

    The group's positions in the new claims are read under their locks: whoever had them has written his last commit.
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
    left, starts = offsets.inherited(conn, dialect, group, ids), retention.starts(conn, dialect, ids)
    wants_partitions = len(seen.mine) - len(give) + len(taken) < plan.share
    if wants_partitions != seen.wants_partitions:
        groups.set_wants_partitions(conn, dialect, member_id, wants_partitions=wants_partitions)
    return written, [
        ClaimedNow(claim, number, *left[claim.partition_id], start)
        for claim in taken
        if claim.partition_id in left and claim.partition_id in starts
        for number, start in [starts[claim.partition_id]]
    ]


class Ending(Protocol):
    """A way to part with partitions: ``hand_back``, ``leave`` or ``leave_to_successor``."""

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
        """Part with *given*."""


def release(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    member_id: int,
    *,
    finished: Iterable[tuple[Claim, offsets.Commit]],
    given: Iterable[Claim],
) -> None:
    """Commit *finished* and leave the claims *given* for others."""
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
    """Commit *finished*, leave the claims *given* for others, and stop being a member."""
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
    """As ``leave``, but the claims *given* wait for a member that joins, before others share them out."""
    commit(conn, dialect, group, member_id, finished, updating_in_flight=True)
    failpoint("handover.before")
    claims.reserve_for_successor(conn, dialect, group, member_id, given)
    failpoint("handover.after")
    groups.remove_member(conn, dialect, member_id)
    failpoint("leave.after")


def heartbeat(conn: Connection, dialect: Dialect, member_ids: Sequence[int]) -> set[int]:
    """Say that *member_ids* are alive; return those that are still members."""
    failpoint("heartbeat.before")
    alive = groups.heartbeat(conn, dialect, member_ids)
    failpoint("heartbeat.after")
    return alive
