"""Shares are fair, plans lead to them from anywhere, and nothing moves that need not."""

from __future__ import annotations

import random
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from sqlmq.model.assignment import ClaimSnapshot, MemberSnapshot, assign, fair_shares, is_settled

LEASE_SECONDS = 10.0
LONG_AGO_SECONDS = 1_000.0

Owners: TypeAlias = dict[int, int | None]

member_ids = st.lists(st.integers(1, 1_000), min_size=1, max_size=8, unique=True)
partition_counts = st.integers(1, 24)


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[int], Owners]:
    """Members, and partitions that belong to any of them or to none."""
    ids = draw(member_ids)
    owner = st.none() | st.sampled_from(ids)
    return ids, {number: draw(owner) for number in range(draw(partition_counts))}


def settle(ids: list[int], owners: Owners, seed: int, *, rounds: int = 8) -> int:
    """Let all members act on their plans, in a random order each round; return how many partitions changed hands."""
    shuffle = random.Random(seed).shuffle
    wants_partitions = dict.fromkeys(ids, False)
    moves = 0
    for _ in range(rounds):
        order = list(ids)
        shuffle(order)
        for me in order:
            members = [MemberSnapshot(id_, wants_partitions[id_], LONG_AGO_SECONDS) for id_ in sorted(ids)]
            claims = [ClaimSnapshot(number, owner, 0.0) for number, owner in owners.items()]
            mine = assign(me, members, claims, LEASE_SECONDS)
            for number in mine.release:
                assert owners[number] == me
                owners[number] = None
            free = [number for number in mine.take if owners[number] is None]
            for number in free[: mine.take_at_most]:
                owners[number] = me
                moves += 1
            wants_partitions[me] = list(owners.values()).count(me) < mine.share
    return moves


def counts(ids: list[int], owners: Owners) -> list[int]:
    return [list(owners.values()).count(id_) for id_ in ids]


def fair_counts(ids: list[int], owners: Owners) -> list[int]:
    return sorted(fair_shares(dict.fromkeys(ids, 0), len(owners)).values())


@given(owned=st.dictionaries(st.integers(1, 1_000), st.integers(0, 24), min_size=1), partitions=st.integers(0, 100))
def test_shares_add_up_to_all_partitions_and_differ_by_one_at_most(owned: dict[int, int], partitions: int) -> None:
    shares = fair_shares(owned, partitions).values()

    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1


@given(ids=member_ids, partitions=st.integers(0, 100), seed=st.integers())
def test_a_share_does_not_depend_on_the_order_of_the_members(ids: list[int], partitions: int, seed: int) -> None:
    owned = {id_: id_ % 5 for id_ in ids}
    shuffled = list(owned.items())
    random.Random(seed).shuffle(shuffled)

    assert fair_shares(owned, partitions) == fair_shares(dict(shuffled), partitions)


@given(group=groups(), seed=st.integers())
def test_from_any_state_all_partitions_are_soon_shared_out_fairly(group: tuple[list[int], Owners], seed: int) -> None:
    ids, owners = group

    settle(ids, owners, seed)

    assert None not in owners.values()
    assert sorted(counts(ids, owners)) == fair_counts(ids, owners)


@given(group=groups(), seed=st.integers())
def test_a_fair_state_stays_as_it_is(group: tuple[list[int], Owners], seed: int) -> None:
    ids, owners = group
    settle(ids, owners, seed)
    before = dict(owners)

    moves = settle(ids, owners, seed + 1)

    assert (moves, owners) == (0, before)


@given(ids=member_ids, partitions=partition_counts, seed=st.integers())
def test_a_member_that_joins_moves_only_its_own_share(ids: list[int], partitions: int, seed: int) -> None:
    owners: Owners = dict.fromkeys(range(partitions))
    settle(ids, owners, seed)
    joined = [*ids, max(ids) + 1]

    moves = settle(joined, owners, seed)

    assert moves == counts(joined, owners)[-1] == min(fair_counts(joined, owners))


@given(ids=member_ids.filter(lambda ids: len(ids) > 1), partitions=partition_counts, seed=st.integers())
def test_a_member_that_leaves_moves_only_its_own_partitions(ids: list[int], partitions: int, seed: int) -> None:
    owners: Owners = dict.fromkeys(range(partitions))
    settle(ids, owners, seed)
    *staying, left = ids
    for number in [number for number, owner in owners.items() if owner == left]:
        owners[number] = None
    freed = list(owners.values()).count(None)

    moves = settle(staying, owners, seed)

    assert moves == freed


def test_nothing_is_released_while_no_member_wants_partitions() -> None:
    members = [MemberSnapshot(1, False, LONG_AGO_SECONDS), MemberSnapshot(2, False, LONG_AGO_SECONDS)]
    claims = [ClaimSnapshot(number, 1, 0.0) for number in range(4)]

    assert assign(1, members, claims, LEASE_SECONDS).release == ()


def test_what_is_above_the_share_is_released_for_a_member_that_wants_it() -> None:
    members = [MemberSnapshot(1, False, LONG_AGO_SECONDS), MemberSnapshot(2, True, LONG_AGO_SECONDS)]
    claims = [ClaimSnapshot(number, 1, 0.0) for number in range(4)]

    assert len(assign(1, members, claims, LEASE_SECONDS).release) == 2


def test_a_partition_that_lay_free_for_a_lease_is_taken_above_the_share() -> None:
    members = [MemberSnapshot(1, False, LONG_AGO_SECONDS), MemberSnapshot(2, False, LONG_AGO_SECONDS)]
    claims = [ClaimSnapshot(0, 1, 0.0), ClaimSnapshot(1, None, LEASE_SECONDS)]

    assert assign(1, members, claims, LEASE_SECONDS).take_at_most == 1


def test_a_partition_that_is_free_for_less_than_a_lease_is_left_to_its_rightful_owner() -> None:
    members = [MemberSnapshot(1, False, LONG_AGO_SECONDS), MemberSnapshot(2, False, LONG_AGO_SECONDS)]
    claims = [ClaimSnapshot(0, 1, 0.0), ClaimSnapshot(1, None, LEASE_SECONDS - 1)]

    assert assign(1, members, claims, LEASE_SECONDS).take_at_most == 0


def test_a_member_that_has_just_joined_has_its_chance_first() -> None:
    members = [MemberSnapshot(1, False, LONG_AGO_SECONDS), MemberSnapshot(2, False, 1.0)]
    claims = [ClaimSnapshot(0, 1, 0.0), ClaimSnapshot(1, None, LONG_AGO_SECONDS)]

    assert assign(1, members, claims, LEASE_SECONDS).take_at_most == 0


def test_what_lay_free_longest_is_taken_first() -> None:
    claims = [ClaimSnapshot(0, None, 1.0), ClaimSnapshot(1, None, 3.0), ClaimSnapshot(2, None, 2.0)]

    assert assign(1, [MemberSnapshot(1, True, 0.0)], claims, LEASE_SECONDS).take == (1, 2, 0)


@given(group=groups())
def test_a_member_that_misses_a_partition_tries_for_none_while_none_is_free(group: tuple[list[int], Owners]) -> None:
    ids, owners = group
    members = [MemberSnapshot(id_, wants_partitions=True, joined_seconds=LONG_AGO_SECONDS) for id_ in ids]
    claims = [ClaimSnapshot(number, owner or ids[0], 0.0) for number, owner in owners.items()]

    assert [assign(id_, members, claims, LEASE_SECONDS).take_at_most for id_ in ids] == [0] * len(ids)


@given(group=groups(), seed=st.integers(), wants_partitions=st.booleans())
def test_in_a_settled_group_no_member_has_anything_to_do(
    group: tuple[list[int], Owners], seed: int, *, wants_partitions: bool
) -> None:
    ids, owners = group
    settle(ids, owners, seed)
    members = [MemberSnapshot(id_, wants_partitions, LONG_AGO_SECONDS) for id_ in ids]
    claims = [ClaimSnapshot(number, owner, 0.0) for number, owner in owners.items()]
    plans = [assign(id_, members, claims, LEASE_SECONDS) for id_ in ids]

    assert is_settled(members, claims) is not wants_partitions
    assert [(mine.take, mine.take_at_most, mine.release) for mine in plans] == [((), 0, ())] * len(ids)


@given(group=groups())
def test_a_group_is_not_settled_while_a_member_has_something_to_do(group: tuple[list[int], Owners]) -> None:
    ids, owners = group
    shares = fair_shares(dict(zip(ids, counts(ids, owners), strict=True)), len(owners))
    members = [MemberSnapshot(id_, counts([id_], owners)[0] < shares[id_], LONG_AGO_SECONDS) for id_ in ids]
    claims = [ClaimSnapshot(number, owner, 0.0) for number, owner in owners.items()]
    plans = [assign(id_, members, claims, LEASE_SECONDS) for id_ in ids]

    assert is_settled(members, claims) is not any(mine.take_at_most or mine.release for mine in plans)
