"""What a topic keeps, and for whom: decided without a database."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlmq import Retention
from sqlmq.model.retention import GroupStanding, losses, protected_from, runs


def standing(group_id: int, position: int, *, parked: int | None = None, is_live: bool = False) -> GroupStanding:
    return GroupStanding(group_id, f"group {group_id}", position, True, parked, is_live)


def test_without_limits_nothing_ever_goes() -> None:
    assert not Retention().is_limited
    assert not Retention(protect_max_seconds=5.0).is_limited


@pytest.mark.parametrize("limit", [{"max_age_seconds": 1.5}, {"max_bytes": 1}, {"max_messages": 1}])
def test_each_limit_is_one(limit: dict[str, Any]) -> None:
    assert Retention(**limit).is_limited


@pytest.mark.parametrize(
    "terms",
    [
        {"max_age_seconds": 0},
        {"max_age_seconds": -1.0},
        {"max_age_seconds": float("inf")},
        {"max_age_seconds": float("nan")},
        {"max_bytes": 0},
        {"max_messages": -5},
        {"max_messages": 2**63},
        {"group_expiry_seconds": 0},
        {"max_age_seconds": 10, "protect_max_seconds": 9},
        {"max_age_seconds": 10, "protect_max_seconds": 11, "protect_groups": False},
    ],
)
def test_what_cannot_be_is_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|protected"):
        Retention(**terms)


@pytest.mark.parametrize(
    "terms",
    [
        {"max_age_seconds": "7d"},
        {"max_bytes": 1.5},
        {"max_messages": True},
        {"protect_max_seconds": "x"},
        {"protect_groups": 1},
        {"group_expiry_seconds": None},
    ],
)
def test_what_is_of_another_type_is_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be"):
        Retention(**terms)


def test_the_lowest_position_or_parked_message_protects() -> None:
    standings = [standing(1, 70), standing(2, 50), standing(3, 90, parked=40)]

    assert protected_from(Retention(), standings, set(), 20, 100) == 40
    assert protected_from(Retention(), standings, {3}, 20, 100) == 50
    assert protected_from(Retention(), standings, {1, 2, 3}, 20, 100) == 100
    assert protected_from(Retention(protect_groups=False), standings, set(), 20, 100) == 100


def test_a_group_that_has_lost_something_protects_all_that_is_left() -> None:
    assert protected_from(Retention(), [standing(1, 5)], set(), 20, 100) == 20


def test_a_group_that_has_expired_and_has_come_back_protects() -> None:
    assert protected_from(Retention(), [standing(1, 50, is_live=True)], {1}, 20, 100) == 50


def test_a_group_loses_what_it_had_not_committed_of_what_was_there() -> None:
    standings = [standing(1, 10), standing(2, 25), standing(3, 30), standing(4, 99)]

    lost = losses(Retention(), standings, {2}, 20, 30)

    assert [(loss.group_id, loss.start, loss.end, loss.is_protected) for loss in lost] == [
        (1, 20, 30, True),
        (2, 25, 30, False),
    ]


@given(st.sets(st.integers(0, 50)))
def test_runs_hold_each_offset_once_and_do_not_touch(offsets: set[int]) -> None:
    found = runs(sorted(offsets))

    assert [offset for start, end in found for offset in range(start, end)] == sorted(offsets)
    assert all(before < start for (_, before), (start, _) in itertools.pairwise(found))
