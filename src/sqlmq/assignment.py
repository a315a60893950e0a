"""Who reads what: the fair share of a group's members, decided by each of them alone.

Pure. Every member sees the same rows and comes to the same shares; where two decide at the same moment, the claims'
row locks decide between them. A member keeps what it owns (sticky), takes what is free up to its share, and hands back
what it has above its share as soon as somebody waits for it.
"""

from __future__ import annotations

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


def fair_share(member_id: int, member_ids: Sequence[int], partitions: int) -> int:
    """How many of *partitions* belong to *member_id*: equal parts, the remainder to the first by id."""
    each, remainder = divmod(partitions, len(member_ids))
    return each + (sorted(member_ids).index(member_id) < remainder)


def plan(member_id: int, members: Sequence[MemberSeen], claims: Sequence[ClaimSeen], lease_seconds: float) -> Plan:
    """Decide what *member_id*, one of the live *members*, should take and hand back.

    A partition that nobody has claimed for a lease is taken by anyone, above the share too: its rightful owner may be
    an application that does not ask for messages. (A member that joined within the last lease still has its chance.)
    It goes back when that member asks, which it shows by waiting.
    """
    ids = [member.member_id for member in members]
    missing = {id_: fair_share(id_, ids, len(claims)) - sum(claim.owner_id == id_ for claim in claims) for id_ in ids}
    others = [member for member in members if member.member_id != member_id and missing[member.member_id] > 0]
    free = sorted((claim for claim in claims if claim.owner_id is None), key=lambda claim: -claim.free_seconds)
    lying = sum(claim.free_seconds >= lease_seconds for claim in free)
    if any(member.joined_seconds < lease_seconds for member in others):
        lying = 0
    wanted = sum(missing[member.member_id] for member in others if member.is_waiting)
    excess = min(max(0, -missing[member_id]), wanted)
    owned = sorted(claim.partition_id for claim in claims if claim.owner_id == member_id)
    return Plan(
        take=tuple(claim.partition_id for claim in free),
        take_at_most=0 if excess else max(0, missing[member_id], lying),
        release=tuple(owned[len(owned) - excess :]),
        share=fair_share(member_id, ids, len(claims)),
    )
