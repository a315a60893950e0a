"""Waits double up to their limit, deadlines end, and trust ends before the lease does."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sqlmq.timing import Deadline, backoff, heartbeat_interval, trusted_until

moments = st.floats(0, 1e9)
seconds = st.floats(0, 1e6)
fractions = st.floats(0, 1, exclude_max=True)


def test_a_deadline_passes_at_its_moment() -> None:
    deadline = Deadline.after(2.0, 10.0)

    assert [deadline.passed(now) for now in (11.9, 12.0, 13.0)] == [False, True, True]


def test_a_deadline_tells_what_is_left() -> None:
    deadline = Deadline.after(2.0, 10.0)

    assert [deadline.remaining(now) for now in (10.0, 11.5, 12.0, 13.0)] == [2.0, 0.5, 0.0, 0.0]


def test_no_timeout_is_no_deadline() -> None:
    deadline = Deadline.after(None, 10.0)

    assert deadline.remaining(1e300) == math.inf
    assert not deadline.passed(1e300)


def test_a_timeout_of_0_has_passed_at_once() -> None:
    assert Deadline.after(0.0, 10.0).passed(10.0)


@given(timeout=seconds, began=moments, now=moments)
def test_nothing_is_left_exactly_when_a_deadline_has_passed(timeout: float, began: float, now: float) -> None:
    deadline = Deadline.after(timeout, began)

    assert (deadline.remaining(now) == 0) == deadline.passed(now)


def test_the_first_wait_is_the_least_and_each_further_one_twice_as_long() -> None:
    assert [backoff(attempt, least=1, most=10, random=0) for attempt in range(6)] == [1, 2, 4, 8, 10, 10]


@given(attempt=st.integers(0, 10**9), least=st.floats(0.001, 1), most=st.floats(1, 100), random=fractions)
def test_a_wait_is_never_longer_than_the_most_nor_shorter_than_three_quarters_of_the_least(
    attempt: int, least: float, most: float, random: float
) -> None:
    assert least * 0.75 <= backoff(attempt, least=least, most=most, random=random) <= most


@given(st.floats(0.01, 1e6))
def test_two_heartbeats_may_fail_before_trust_ends(lease_seconds: float) -> None:
    assert 2 * heartbeat_interval(lease_seconds) < trusted_until(0.0, lease_seconds)


@given(began=moments, lease_seconds=st.floats(0.1, 1e6))
def test_trust_ends_before_the_lease(began: float, lease_seconds: float) -> None:
    assert began < trusted_until(began, lease_seconds) < began + lease_seconds
