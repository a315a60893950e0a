"""Which member of a group reads which partitions. Each member decides its own part alone.

Pure. All members read the same rows and compute the same shares. If two decide at the same moment, the row locks of
the claims decide between them. A member keeps the partitions it owns (sticky), takes free ones up to its share, and
releases those above its share when another member wants partitions.

In a rolling restart each partition should move once, from a member to its successor, even if the successor joins
before its predecessor leaves. So for half a lease, partitions left for a successor are not spread over the remaining
members, and a member that has just joined gets nothing that others still read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """A live member of a group."""

    member_id: int
    wants_partitions: bool
    """Whether it owned less than its share when it last checked the group."""
    joined_seconds: float
    """How long ago it joined the group."""


@dataclass(frozen=True, slots=True)
class ClaimSnapshot:
    """One partition of a group, and its owner."""

    partition_id: int
    owner_id: int | None
    """The member that owns it; None if it is free or its owner is dead."""
    free_seconds: float
    """How long it has been free; 0 while it has an owner."""
    is_reserved: bool = False
    """Whether its last owner left it for a successor, and no member has joined since."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The changes that one member should make to its partitions."""

    take: tuple[int, ...]
    """Ids of partitions to claim, best first. Another member may claim them earlier."""
    take_at_most: int
    release: tuple[int, ...]
    """Ids of owned partitions to release as soon as none of their messages is in flight."""
    share: int
    """How many partitions the member should own."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The differences between the partitions that a member holds and the group's rows, by the action that each needs."""

    lost: tuple[int, ...]
    """Ids of held partitions whose claim is not the member's any more. It drops them."""
    releasing: frozenset[int]
    """Ids of held partitions to release: now if they are idle, else as soon as nothing of them is in flight."""
    release_now: tuple[int, ...]
    """Ids of the claims to release now."""
    kept: int
    """How many claims the member has after that."""
    share: int
    may_take: bool
    """Whether there are free partitions to claim."""
    must_report_wants: bool
    """Whether the group's row of the member is wrong about its wanting partitions, even if it claims none."""

    @property
    def changes_database(self) -> bool:
        """Whether any row has to be changed."""
        return bool(self.release_now) or self.may_take or self.must_report_wants

    def changed_group(self, taken: int) -> bool:
        """Whether the other members should check the group, after this one has claimed *taken* partitions."""
        return bool(self.release_now) or taken > 0 or self.must_report_wants

    def is_complete(self, taken: int) -> bool:
        """Whether the member has its share, after it has claimed *taken* partitions, and has nothing left to release."""
        return self.kept + taken >= self.share and self.releasing <= set(self.release_now)


def reconcile(
    assignment: Assignment,
    *,
    held: Mapping[int, int],
    recorded: Mapping[int, int],
    idle: Collection[int],
    recorded_as_wanting: bool,
) -> Reconciliation:
    """Compare the partitions that a member has *held* with those *recorded* as its own; both are epochs by partition id.

    The *idle* ones have no message in flight.
    """
    lost = tuple(id_ for id_, epoch in held.items() if recorded.get(id_) != epoch)
    still_held = held.keys() - lost
    releasing = frozenset(assignment.release) & still_held
    # A recorded claim that the member does not hold is one whose COMMIT got no answer, or one of an epoch that is over.
    release_now = tuple(id_ for id_ in recorded if id_ not in still_held or (id_ in releasing and id_ in idle))
    kept = len(recorded) - len(release_now)
    return Reconciliation(
        lost,
        releasing,
        release_now,
        kept,
        assignment.share,
        may_take=assignment.take_at_most > 0,
        must_report_wants=recorded_as_wanting != (kept < assignment.share),
    )


def fair_shares(owned: Mapping[int, int], partitions: int) -> dict[int, int]:
    """Divide *partitions* between the members; *owned* is how many each member owns now, by its id.

    The parts are equal. The remainder goes to members that own more than that already, then to those that joined last:
    in a rolling restart the successor gets as many partitions as its predecessor had.
    """
    each, remainder = divmod(partitions, len(owned))
    newest_first = sorted(owned, reverse=True)
    above = [id_ for id_ in newest_first if owned[id_] > each]
    others = [id_ for id_ in newest_first if owned[id_] <= each]
    return {id_: each + 1 if place < remainder else each for place, id_ in enumerate(above + others)}


def assign(
    member_id: int, members: Sequence[MemberSnapshot], claims: Sequence[ClaimSnapshot], lease_seconds: float
) -> Assignment:
    """Decide what *member_id*, one of the live *members*, should take and release.

    Any member takes a partition that was free for a whole lease, even above its share: the member it belongs to may be
    in an application that does not poll. The exception is a group that a member has joined within the last lease, which
    may claim it yet. The partition goes back as soon as that member wants it.
    """
    owned = _owned(members, claims)
    shares = fair_shares(owned, len(claims))
    free = sorted((claim for claim in claims if claim.owner_id is None), key=attrgetter("free_seconds"), reverse=True)
    me = next(member for member in members if member.member_id == member_id)
    free, share = _without_reserved(me, owned, free, shares[member_id], lease_seconds / 2)
    missing = {id_: shares[id_] - owned[id_] for id_ in owned}
    others = [member for member in members if member.member_id != member_id and missing[member.member_id] > 0]
    neglected = sum(claim.free_seconds >= lease_seconds for claim in free)
    if any(member.joined_seconds < lease_seconds for member in others):
        neglected = 0
    wanted = sum(missing[member.member_id] for member in _entitled(others, members, lease_seconds))
    excess = min(max(0, -missing[member_id]), wanted)
    mine = sorted(claim.partition_id for claim in claims if claim.owner_id == member_id)
    return Assignment(
        take=tuple(claim.partition_id for claim in free),
        take_at_most=0 if excess else min(len(free), max(0, share - owned[member_id], neglected)),
        release=tuple(mine[len(mine) - excess :]),
        share=share,
    )


def is_settled(members: Sequence[MemberSnapshot], claims: Sequence[ClaimSnapshot]) -> bool:
    """Whether every member owns its share and none wants partitions. Then no member has anything to change."""
    if not members:
        return False
    owned = _owned(members, claims)
    return owned == fair_shares(owned, len(claims)) and not any(member.wants_partitions for member in members)


def _owned(members: Sequence[MemberSnapshot], claims: Sequence[ClaimSnapshot]) -> dict[int, int]:
    counted = Counter(claim.owner_id for claim in claims)
    return {member.member_id: counted[member.member_id] for member in members}


def _without_reserved(
    me: MemberSnapshot, owned: Mapping[int, int], free: list[ClaimSnapshot], share: int, settling_seconds: float
) -> tuple[list[ClaimSnapshot], int]:
    """Return the *free* partitions that are not reserved for a successor of another member, and my *share* until then.

    Reserved partitions are for members that own nothing yet. A member that has just joined may be one of several
    successors. It may own up to one partition less than the member with the most: that is fair, and no more than it
    would get anyway.
    """
    reserved = [claim for claim in free if claim.is_reserved and claim.free_seconds < settling_seconds]
    has, fair = owned[me.member_id], max(owned.values()) - 1
    if not reserved or not has:
        return free, share
    if has < fair and me.joined_seconds < settling_seconds:
        return free, min(share, fair)
    free = [claim for claim in free if claim not in reserved]
    return free, min(share, has + len(free))


def _entitled(
    others: Sequence[MemberSnapshot], members: Sequence[MemberSnapshot], lease_seconds: float
) -> list[MemberSnapshot]:
    """Those of *others* that want partitions and for which this member may release some.

    A member that has just joined an older group is not one of them: it may be the successor of a member that has yet
    to leave.
    """
    settling_seconds = lease_seconds / 2
    is_new_group = all(member.joined_seconds < settling_seconds for member in members)
    return [one for one in others if one.wants_partitions and (is_new_group or one.joined_seconds >= settling_seconds)]
