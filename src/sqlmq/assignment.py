"""Who reads what: the fair share of a group's members, decided by each of them alone.

Pure. Every member sees the same rows and comes to the same shares; where two decide at the same moment, the claims'
row locks decide between them. A member keeps what it owns (sticky), takes what is free up to its share, and hands back
what it has above its share as soon as somebody waits for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class MemberSeen:
    """A live member of a group."""

    member_id: int
    is_waiting: bool
    """It found less than its share when it last looked."""
    joined_seconds: float
    """How long ago it joined."""


@dataclass(frozen=True, slots=True)
class ClaimSeen:
    """One partition of a group, and who owns it."""

    partition_id: int
    owner_id: int | None
    """None if nobody does, or the owner is dead."""
    free_seconds: float
    """For how long nobody has owned it; 0 when somebody does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one member should change."""

    take: tuple[int, ...]
    """Ids of partitions to try for, best first; others may be quicker."""
    take_at_most: int
    release: tuple[int, ...]
    """Ids of own partitions to hand back, once nothing of them is in hand."""
    share: int
    """How many partitions are this member's by right."""


def fair_shares(member_ids: Sequence[int], partitions: int) -> dict[int, int]:
    """How many of *partitions* belong to each of *member_ids*: equal parts, the remainder to the first by id."""
    each, remainder = divmod(partitions, len(member_ids))
    return {id_: each + (place < remainder) for place, id_ in enumerate(sorted(member_ids))}


def plan(member_id: int, members: Sequence[MemberSeen], claims: Sequence[ClaimSeen], lease_seconds: float) -> Plan:
    """Decide what *member_id*, one of the live *members*, should take and hand back.

    A partition that nobody has claimed for a lease is taken by anyone, above the share too: its rightful owner may be
    an application that does not ask for messages. (A member that joined within the last lease still has its chance.)
    It goes back when that member asks, which it shows by waiting.
    """
    ids = [member.member_id for member in members]
    shares = fair_shares(ids, len(claims))
    owned = Counter(claim.owner_id for claim in claims)
    missing = {id_: shares[id_] - owned[id_] for id_ in ids}
    others = [member for member in members if member.member_id != member_id and missing[member.member_id] > 0]
    free = sorted((claim for claim in claims if claim.owner_id is None), key=lambda claim: -claim.free_seconds)
    lying = sum(claim.free_seconds >= lease_seconds for claim in free)
    if any(member.joined_seconds < lease_seconds for member in others):
        lying = 0
    wanted = sum(missing[member.member_id] for member in others if member.is_waiting)
    excess = min(max(0, -missing[member_id]), wanted)
    mine = sorted(claim.partition_id for claim in claims if claim.owner_id == member_id)
    return Plan(
        take=tuple(claim.partition_id for claim in free),
        take_at_most=0 if excess else min(len(free), max(0, missing[member_id], lying)),
        release=tuple(mine[len(mine) - excess :]),
        share=shares[member_id],
    )


def is_settled(members: Sequence[MemberSeen], claims: Sequence[ClaimSeen]) -> bool:
    """Whether each member owns its share, and none has said otherwise: then nobody's plan has anything to do."""
    if not members:
        return False
    shares = fair_shares([member.member_id for member in members], len(claims))
    owned = Counter(claim.owner_id for claim in claims)
    return all(owned[id_] == share for id_, share in shares.items()) and not any(one.is_waiting for one in members)
