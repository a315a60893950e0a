"""Whether a member has something to do in its group is the same by the short way, for settled groups, and by its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sqlmq.model import assignment
from sqlmq.model.assignment import ClaimSnapshot, MemberSnapshot
from sqlmq.operations import membership
from sqlmq.operations.poll import PollRequest, has_changes
from sqlmq.store.claims import Claim, GroupSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

LEASE_SECONDS = 10.0


@st.composite
def groups(draw: st.DrawFn) -> GroupSnapshot:
    """Members, some of them waiting, and partitions that belong to any of them or to nobody."""
    ids = draw(st.lists(st.integers(1, 6), max_size=4, unique=True))
    members = [MemberSnapshot(id_, draw(st.booleans()), draw(st.sampled_from([1.0, 100.0]))) for id_ in ids]
    seen = GroupSnapshot(members, [], {})
    for partition_id in range(draw(st.integers(1, 6))):
        owner = draw(st.sampled_from([None, *ids]))
        seen.claims.append(ClaimSnapshot(partition_id, owner, 0.0 if owner else draw(st.sampled_from([1.0, 100.0]))))
        if owner is not None:
            seen.owned.setdefault(owner, {})[partition_id] = Claim(partition_id, 1)
    return seen


def view(member_id: int, claims: Mapping[int, Claim]) -> PollRequest:
    return PollRequest(1, member_id, LEASE_SECONDS, claims, ())


@given(seen=groups(), member_id=st.integers(1, 6), knows_its_own=st.booleans())
def test_the_short_way_and_the_plan_agree(seen: GroupSnapshot, member_id: int, *, knows_its_own: bool) -> None:
    claims = seen.owned.get(member_id, {}) if knows_its_own else {0: Claim(0, 7)}
    is_settled = assignment.is_settled(seen.members, seen.claims)

    short = has_changes(view(member_id, claims), seen, is_settled=is_settled)

    assert short is has_changes(view(member_id, claims), seen, is_settled=False)


def test_a_member_that_is_gone_has_to_look() -> None:
    seen = GroupSnapshot(
        [MemberSnapshot(1, wants_partitions=False, joined_seconds=100.0)],
        [ClaimSnapshot(0, 1, 0.0)],
        {1: {0: Claim(0, 1)}},
    )

    assert has_changes(view(2, {}), seen, is_settled=True)


def test_a_member_whose_claim_somebody_has_taken_has_to_look() -> None:
    seen = GroupSnapshot(
        [MemberSnapshot(1, wants_partitions=False, joined_seconds=100.0)],
        [ClaimSnapshot(0, 1, 0.0)],
        {1: {0: Claim(0, 5)}},
    )

    assert has_changes(view(1, {0: Claim(0, 4)}), seen, is_settled=True)
    assert not has_changes(view(1, {0: Claim(0, 5)}), seen, is_settled=True)


def test_a_member_hands_back_only_what_somebody_waits_for() -> None:
    members = [
        MemberSnapshot(1, wants_partitions=False, joined_seconds=100.0),
        MemberSnapshot(2, wants_partitions=True, joined_seconds=100.0),
    ]
    mine = {0: Claim(0, 1), 1: Claim(1, 1)}
    survey = membership.group_view(
        GroupSnapshot(members, [ClaimSnapshot(0, 1, 0.0), ClaimSnapshot(1, 1, 0.0)], {1: mine}), 1, 10.0
    )

    assert survey is not None
    assert survey.has_work_for(mine)
    assert survey.plan.release == (1,)
