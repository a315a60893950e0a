"""Waits double up to their limit, deadlines end, and trust ends before the lease does."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sqlmq.model.timing import (
    Deadline,
    PollWait,
    heartbeat_interval,
    lease_valid_until,
    pause,
    poll_pause,
    watch_interval,
)

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
    assert [poll_pause(attempt, least=1, most=10, random=0) for attempt in range(6)] == [1, 2, 4, 8, 10, 10]


@given(attempt=st.integers(0, 10**9), least=st.floats(0.001, 1), most=st.floats(1, 100), random=fractions)
def test_a_wait_is_never_longer_than_the_most_nor_shorter_than_three_quarters_of_the_least(
    attempt: int, least: float, most: float, random: float
) -> None:
    assert least * 0.75 <= poll_pause(attempt, least=least, most=most, random=random) <= most


@given(st.floats(0.01, 1e6))
def test_two_heartbeats_may_fail_before_trust_ends(lease_seconds: float) -> None:
    assert 2 * heartbeat_interval(lease_seconds) < lease_valid_until(0.0, lease_seconds)


@given(began=moments, lease_seconds=st.floats(0.1, 1e6))
def test_trust_ends_before_the_lease(began: float, lease_seconds: float) -> None:
    assert began < lease_valid_until(began, lease_seconds) < began + lease_seconds


def resting(*, began: float, until: float, deadline: float = math.inf) -> PollWait:
    return PollWait(began, until, deadline, may_delegate=True, rest_seconds=3.0)


def test_a_wait_for_which_nobody_looks_ends_when_it_is_time_to_look() -> None:
    wait = resting(began=10.0, until=11.0)

    assert [wait.remaining(now, -math.inf) for now in (10.0, 10.5, 11.0, 12.0)] == [1.0, 0.5, 0.0, 0.0]


def test_a_wait_goes_on_after_each_look_of_somebody_else() -> None:
    wait = resting(began=10.0, until=11.0)

    assert [wait.remaining(11.5, looked_at) for looked_at in (10.0, 10.75, 11.5)] == [1.5, 2.25, 3.0]


def test_a_look_that_began_before_the_wait_may_have_been_too_early_to_count() -> None:
    assert resting(began=10.0, until=11.0).remaining(11.5, 9.999) == 0.0


def test_a_wait_ends_at_its_deadline_whoever_looks() -> None:
    assert resting(began=10.0, until=11.0, deadline=12.0).remaining(11.5, 11.5) == 0.5


@given(attempt=st.integers(0, 40), random=fractions, now=moments)
def test_only_a_wait_at_the_end_of_the_backoff_goes_on_while_others_look(
    attempt: int, random: float, now: float
) -> None:
    last = 8  # 0.005 seconds doubled eight times are more than a second
    forever = Deadline.after(None, now)

    may, may_not = (
        pause(attempt, now, forever, least=0.005, most=1.0, random=random, may_delegate=may_rest)
        for may_rest in (True, False)
    )

    assert may.is_delegated is (attempt >= last)
    assert not may_not.is_delegated
    assert may.until == may_not.until == now + poll_pause(attempt, least=0.005, most=1.0, random=random)


@given(quiet=seconds, longer=seconds)
def test_the_longer_nothing_came_the_less_often_a_counter_is_looked_at_within_limits(
    quiet: float, longer: float
) -> None:
    assert 0.01 <= watch_interval(quiet) <= watch_interval(quiet + longer) <= 0.05
