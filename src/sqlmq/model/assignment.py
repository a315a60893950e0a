"""Who reads what: the fair share of a group's members, decided by each of them alone.

Pure. Every member sees the same rows and comes to the same shares; where two decide at the same moment, the claims'
row locks decide between them. A member keeps what it owns (sticky), takes what is free up to its share, and hands back
what it has above its share when somebody waits for it.

In a rolling restart each partition is to move once, from a member to its successor, whichever of the two comes or goes
first. So for half a lease what a member has left to its successor is not spread over those that stay, and one that has
just joined is not given what others still read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """A live member of a group."""

    member_id: int
    wants_partitions: bool
    """It found less than its share when it last looked."""
    joined_seconds: float
    """How long ago it joined."""


@dataclass(frozen=True, slots=True)
class ClaimSnapshot:
    """One partition of a group, and who owns it."""

    partition_id: int
    owner_id: int | None
    """None if nobody does, or the owner is dead."""
    free_seconds: float
    """For how long nobody has owned it; 0 when somebody does."""
    is_left: bool = False
    """Whether its last owner has left it to a successor, and nobody has joined since."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one member should change."""

    take: tuple[int, ...]
    """Ids of partitions to try for, best first; others may be quicker."""
    take_at_most: int
    release: tuple[int, ...]
    """Ids of own partitions to hand back, once nothing of them is in hand."""
    share: int
    """How many partitions are this member's by right."""


def fair_shares(owned: Mapping[int, int], partitions: int) -> dict[int, int]:
    """How many of *partitions* belong to each member by right, who has so many *owned* by its id.

    Equal parts; the remainder to those that have more than that already, then to those that joined last: in a rolling
    restart the successor gets as much as its predecessor had.
    """
    each, remainder = divmod(partitions, len(owned))
    first = sorted(owned, key=lambda id_: (owned[id_] <= each, -id_))
    return {id_: each + (place < remainder) for place, id_ in enumerate(first)}


def assign(
    member_id: int, members: Sequence[MemberSnapshot], claims: Sequence[ClaimSnapshot], lease_seconds: float
) -> Assignment:
    """Decide what *member_id*, one of the live *members*, should take and hand back.

    A partition that nobody has claimed for a lease is taken by anyone, above the share too: its rightful owner may be
    an application that does not ask for messages. (A member that joined within the last lease still has its chance.)
    It goes back when that member asks, which it shows by waiting.
    """
    owned = _owned(members, claims)
    shares = fair_shares(owned, len(claims))
    free = sorted((claim for claim in claims if claim.owner_id is None), key=lambda claim: -claim.free_seconds)
    me = next(member for member in members if member.member_id == member_id)
    free, share = _without_kept(me, owned, free, shares[member_id], lease_seconds / 2)
    missing = {id_: shares[id_] - owned[id_] for id_ in owned}
    others = [member for member in members if member.member_id != member_id and missing[member.member_id] > 0]
    lying = sum(claim.free_seconds >= lease_seconds for claim in free)
    if any(member.joined_seconds < lease_seconds for member in others):
        lying = 0
    wanted = sum(missing[member.member_id] for member in _asking(others, members, lease_seconds))
    excess = min(max(0, -missing[member_id]), wanted)
    mine = sorted(claim.partition_id for claim in claims if claim.owner_id == member_id)
    return Assignment(
        take=tuple(claim.partition_id for claim in free),
        take_at_most=0 if excess else min(len(free), max(0, share - owned[member_id], lying)),
        release=tuple(mine[len(mine) - excess :]),
        share=share,
    )


def is_settled(members: Sequence[MemberSnapshot], claims: Sequence[ClaimSnapshot]) -> bool:
    """Whether each member owns its share, and none has said otherwise: then nobody's plan has anything to do."""
    if not members:
        return False
    owned = _owned(members, claims)
    return owned == fair_shares(owned, len(claims)) and not any(member.wants_partitions for member in members)


def _owned(members: Sequence[MemberSnapshot], claims: Sequence[ClaimSnapshot]) -> dict[int, int]:
    counted = Counter(claim.owner_id for claim in claims)
    return {member.member_id: counted[member.member_id] for member in members}


def _without_kept(
    me: MemberSnapshot, owned: Mapping[int, int], free: list[ClaimSnapshot], share: int, settling_seconds: float
) -> tuple[list[ClaimSnapshot], int]:
    """What of *free* is not kept from me for a successor, and how much of my *share* I have till then.

    What was left is for those who have nothing yet. One that has just joined may be one of several successors: it may
    come up to one less than the most that anybody has, which is fair, and no more than it would get anyway.
    """
    kept = [claim for claim in free if claim.is_left and claim.free_seconds < settling_seconds]
    has, fair = owned[me.member_id], max(owned.values()) - 1
    if not kept or not has:
        return free, share
    if has < fair and me.joined_seconds < settling_seconds:
        return free, min(share, fair)
    free = [claim for claim in free if claim not in kept]
    return free, min(share, has + len(free))


def _asking(
    others: Sequence[MemberSnapshot], members: Sequence[MemberSnapshot], lease_seconds: float
) -> list[MemberSnapshot]:
    """Those of *others* that wait and are to be given something.

    Not one that has just joined members who have not: it may be the successor of one of them that has yet to leave.
    """
    settling_seconds = lease_seconds / 2
    is_young = all(member.joined_seconds < settling_seconds for member in members)
    return [one for one in others if one.wants_partitions and (is_young or one.joined_seconds >= settling_seconds)]
