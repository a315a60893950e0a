"""A rolling restart, played through by the plans of its members: how often partitions move, and how long they lie idle."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlmq.model.assignment import ClaimSnapshot, MemberSnapshot, assign, fair_shares

LEASE_SECONDS = 10.0
SURVEY_SECONDS = 1.0

group_sizes = st.integers(1, 6)
partition_counts = st.integers(6, 24)
"""At least as many as members: one that has nothing takes over at once what is left to a successor."""
seeds = st.integers()
quickly = settings(max_examples=50, deadline=None)
pauses = st.floats(0, LEASE_SECONDS / 2 - 2 * SURVEY_SECONDS)
"""How long after one of the two the other of old and new member comes or goes."""


@dataclass
class Claimed:
    """A partition: who has it, since when, and how often it went to somebody new."""

    owner: int | None = None
    since: float = 0.0
    is_reserved: bool = False
    moves: int = 0
    idle_seconds: float = 0.0


class Group:
    """Members that look at their group in turn, each at moments of its own, and do what their plans say."""

    def __init__(self, partitions: int, seed: int) -> None:
        self.now = 0.0
        self.claims = [Claimed() for _ in range(partitions)]
        self._joined: dict[int, float] = {}
        self._wants_partitions: dict[int, bool] = {}
        self._random = random.Random(seed)
        self._next_id = 1

    @property
    def members(self) -> list[int]:
        return list(self._joined)

    def join(self) -> int:
        member_id = self._next_id
        self._next_id += 1
        self._joined[member_id] = self.now
        self._wants_partitions[member_id] = False
        for claim in self.claims:
            if claim.is_reserved:
                claim.is_reserved, claim.since = False, self.now
        return member_id

    def leave(self, member_id: int, *, to_successor: bool = True) -> None:
        del self._joined[member_id], self._wants_partitions[member_id]
        for claim in self.claims:
            if claim.owner == member_id:
                claim.owner, claim.since, claim.is_reserved = None, self.now, to_successor

    def wait(self, seconds: float) -> None:
        """Let *seconds* pass, in which each member looks about once each SURVEY_SECONDS."""
        until = self.now + seconds
        while self.now < until:
            step = min(SURVEY_SECONDS, until - self.now)
            for member_id in self._random.sample(self.members, len(self.members)):
                self._look(member_id)
            self.now += step
            for claim in self.claims:
                claim.idle_seconds += step if claim.owner is None else 0.0

    def settle(self) -> None:
        self.wait(3 * LEASE_SECONDS)
        for claim in self.claims:
            claim.moves, claim.idle_seconds = 0, 0.0

    def counts(self) -> list[int]:
        owned = Counter(claim.owner for claim in self.claims)
        return sorted(owned[member_id] for member_id in self._joined)

    def moves(self) -> int:
        return sum(claim.moves for claim in self.claims)

    def _look(self, member_id: int) -> None:
        members = [
            MemberSnapshot(id_, self._wants_partitions[id_], self.now - joined) for id_, joined in self._joined.items()
        ]
        claims = [
            ClaimSnapshot(id_, claim.owner, self.now - claim.since if claim.owner is None else 0.0, claim.is_reserved)
            for id_, claim in enumerate(self.claims)
        ]
        mine = assign(member_id, members, claims, LEASE_SECONDS)
        for id_ in mine.release:
            assert self.claims[id_].owner == member_id
            self.claims[id_].owner, self.claims[id_].since = None, self.now
        free = sorted(id_ for id_ in mine.take if self.claims[id_].owner is None)
        for id_ in free[: mine.take_at_most]:
            claim = self.claims[id_]
            claim.owner, claim.is_reserved, claim.moves = member_id, False, claim.moves + 1
        self._wants_partitions[member_id] = sum(claim.owner == member_id for claim in self.claims) < mine.share


def settled(size: int, partitions: int, seed: int) -> Group:
    group = Group(partitions, seed)
    for _ in range(size):
        group.join()
        group.wait(2 * SURVEY_SECONDS)
    group.settle()
    return group


def is_fair(group: Group) -> bool:
    shares = fair_shares(dict.fromkeys(group.members, 0), len(group.claims))
    return group.counts() == sorted(shares.values())


@quickly
@given(size=group_sizes, partitions=partition_counts, seed=seeds, pause=pauses)
def test_where_each_is_stopped_before_its_successor_starts_each_partition_moves_once(
    size: int, partitions: int, seed: int, pause: float
) -> None:
    group = settled(size, partitions, seed)

    for member_id in group.members:
        group.leave(member_id)
        group.wait(pause)
        group.join()
        group.wait(3 * SURVEY_SECONDS)

    assert [claim.moves for claim in group.claims] == [1] * partitions
    assert is_fair(group)


@quickly
@given(size=group_sizes, partitions=partition_counts, seed=seeds, pause=pauses)
def test_where_each_successor_starts_before_its_predecessor_stops_each_partition_moves_once(
    size: int, partitions: int, seed: int, pause: float
) -> None:
    group = settled(size, partitions, seed)

    for member_id in group.members:
        group.join()
        group.wait(pause)
        group.leave(member_id)
        group.wait(3 * SURVEY_SECONDS)

    assert [claim.moves for claim in group.claims] == [1] * partitions
    assert is_fair(group)


@quickly
@given(size=st.integers(2, 6), partitions=partition_counts, seed=seeds)
def test_where_successors_start_first_no_partition_waits(size: int, partitions: int, seed: int) -> None:
    group = settled(size, partitions, seed)

    for member_id in group.members:
        group.join()
        group.wait(2 * SURVEY_SECONDS)
        group.leave(member_id)
        group.wait(3 * SURVEY_SECONDS)

    assert max(claim.idle_seconds for claim in group.claims) <= SURVEY_SECONDS


@quickly
@given(size=st.integers(2, 6), partitions=partition_counts, seed=seeds)
def test_what_no_successor_takes_is_shared_out_after_half_a_lease(size: int, partitions: int, seed: int) -> None:
    group = settled(size, partitions, seed)

    group.leave(group.members[0])
    group.wait(LEASE_SECONDS / 2 + 2 * SURVEY_SECONDS)

    assert None not in [claim.owner for claim in group.claims]
    assert max(claim.idle_seconds for claim in group.claims) <= LEASE_SECONDS / 2 + SURVEY_SECONDS
    assert is_fair(group)


@quickly
@given(size=st.integers(2, 6), partitions=partition_counts, seed=seeds)
def test_what_a_member_hands_over_for_good_is_shared_out_at_once(size: int, partitions: int, seed: int) -> None:
    group = settled(size, partitions, seed)

    group.leave(group.members[0], to_successor=False)
    group.wait(2 * SURVEY_SECONDS)

    assert is_fair(group)


@quickly
@given(size=group_sizes, partitions=partition_counts, seed=seeds)
def test_a_member_more_has_its_share_after_half_a_lease(size: int, partitions: int, seed: int) -> None:
    group = settled(size, partitions, seed)

    joined = group.join()
    group.wait(LEASE_SECONDS / 2 + 3 * SURVEY_SECONDS)

    assert is_fair(group)
    assert group.moves() == sum(claim.owner == joined for claim in group.claims)


@pytest.mark.parametrize("together", [2, 3, 6])
@quickly
@given(partitions=partition_counts, seed=seeds)
def test_where_several_are_replaced_together_each_partition_moves_once(
    together: int, partitions: int, seed: int
) -> None:
    group = settled(6, partitions, seed)
    old = group.members

    for first in range(0, len(old), together):
        for _ in range(together):
            group.join()
        group.wait(SURVEY_SECONDS)
        for member_id in old[first : first + together]:
            group.leave(member_id)
            group.wait(SURVEY_SECONDS)
    group.wait(LEASE_SECONDS)

    assert [claim.moves for claim in group.claims] == [1] * partitions
    assert is_fair(group)


@quickly
@given(
    steps=st.lists(st.sampled_from(["join", "leave", "hand over", "wait"]), max_size=30),
    partitions=st.integers(1, 24),
    seed=seeds,
)
def test_whoever_comes_and_goes_all_is_shared_out_fairly_in_the_end(
    steps: list[str], partitions: int, seed: int
) -> None:
    group = settled(2, partitions, seed)
    choose = random.Random(seed)

    for step in steps:
        if step == "join":
            group.join()
        elif step != "wait" and len(group.members) > 1:
            group.leave(choose.choice(group.members), to_successor=step == "leave")
        group.wait(choose.uniform(0, LEASE_SECONDS))
    group.settle()

    assert None not in [claim.owner for claim in group.claims]
    assert is_fair(group)
