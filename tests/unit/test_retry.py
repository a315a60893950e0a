"""When a message is tried again, and what happens when it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlmq import Retry
from sqlmq.model.retry import (
    FailureAction,
    attempts_of_interrupted,
    decide,
    is_exhausted,
    is_final,
    next_batch_hint,
    retry_delay_seconds,
)

POLICIES = (None, "park", "dead", "skip", "stop")
policies = st.sampled_from(POLICIES)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_delay_never_exceeds_the_maximum(attempts: int, random: float) -> None:
    retry = Retry(backoff_seconds=0.5, max_delay_seconds=60.0)

    assert 0 < retry_delay_seconds(retry, attempts, random) <= 60.0


def test_delays_double() -> None:
    retry = Retry(backoff_seconds=1.0, max_delay_seconds=10.0)

    assert [retry_delay_seconds(retry, attempts, 0.0) for attempts in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_takes_up_to_its_share_off() -> None:
    assert retry_delay_seconds(Retry(backoff_seconds=8.0, jitter=0.5), 1, 0.999999) == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize(("attempts", "expected"), [(1, False), (2, False), (3, True), (4, True)])
def test_attempts_are_used_up_with_the_last(attempts: int, expected: bool) -> None:
    assert is_exhausted(Retry(max_attempts=3), attempts) is expected


def test_without_a_maximum_there_is_always_another_attempt() -> None:
    assert not is_exhausted(Retry(max_attempts=None), 1_000_000)


def test_only_what_is_worth_it_is_tried_again() -> None:
    retry = Retry(retry_on=(OSError,), give_up_on=(FileNotFoundError,))

    assert not is_final(retry, ConnectionResetError(), 1)
    assert is_final(retry, FileNotFoundError(), 1)
    assert is_final(retry, ValueError(), 1)


def test_what_may_have_been_tried_gets_an_attempt_of_its_own() -> None:
    assert attempts_of_interrupted(Retry(max_attempts=1)) == 0
    assert attempts_of_interrupted(Retry(max_attempts=2)) == 1
    assert attempts_of_interrupted(Retry(max_attempts=None)) == 1


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_attempts": 0}, ValueError),
        ({"max_attempts": 2.5}, TypeError),
        ({"max_attempts": True}, TypeError),
        ({"backoff_seconds": -1}, ValueError),
        ({"backoff_seconds": "soon"}, TypeError),
        ({"max_delay_seconds": float("inf")}, ValueError),
        ({"jitter": 1.5}, ValueError),
        ({"jitter": float("nan")}, ValueError),
        ({"retry_on": ValueError}, TypeError),
        ({"give_up_on": ("ValueError",)}, TypeError),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        Retry(**options)


@given(policies, st.booleans())
def test_a_message_without_a_key_blocks_nothing_unless_the_policy_is_stop(policy: Any, is_final: bool) -> None:
    chosen = decide(policy, has_key=False, is_final=is_final, is_parked=False, has_room=True)

    assert (chosen in (FailureAction.BLOCK, FailureAction.STOP)) is (policy == "stop")


@given(policies, st.booleans(), st.booleans())
def test_a_final_failure_is_never_tried_again_and_another_one_is(policy: Any, has_key: bool, is_parked: bool) -> None:
    assert decide(policy, has_key=has_key, is_final=True, is_parked=is_parked, has_room=True) not in (
        FailureAction.PARK,
        FailureAction.BLOCK,
    )
    assert decide(policy, has_key=has_key, is_final=False, is_parked=is_parked, has_room=True) in (
        FailureAction.PARK,
        FailureAction.BLOCK,
    )


@given(policies, st.booleans(), st.booleans())
def test_a_parked_message_never_blocks_its_partition(policy: Any, has_key: bool, is_final: bool) -> None:
    assert decide(policy, has_key=has_key, is_final=is_final, is_parked=True, has_room=True) not in (
        FailureAction.BLOCK,
        FailureAction.STOP,
    )


@pytest.mark.parametrize(
    ("policy", "failed", "used_up"),
    [
        (None, FailureAction.PARK, FailureAction.DEAD),
        ("park", FailureAction.PARK, FailureAction.DEAD),
        ("dead", FailureAction.BLOCK, FailureAction.DEAD),
        ("skip", FailureAction.BLOCK, FailureAction.SKIP),
        ("stop", FailureAction.BLOCK, FailureAction.STOP),
    ],
)
def test_the_policies_do_to_a_keyed_message_what_the_table_says(
    policy: Any, failed: FailureAction, used_up: FailureAction
) -> None:
    assert decide(policy, has_key=True, is_final=False, is_parked=False, has_room=True) is failed
    assert decide(policy, has_key=True, is_final=True, is_parked=False, has_room=True) is used_up


@given(policies, st.booleans(), st.booleans())
def test_a_message_blocks_its_partition_only_where_it_could_be_parked(
    policy: Any, has_key: bool, is_parked: bool
) -> None:
    with_room, without = (
        decide(policy, has_key=has_key, is_final=False, is_parked=is_parked, has_room=has_room)
        for has_room in (True, False)
    )

    assert without is (FailureAction.PARK if is_parked else FailureAction.BLOCK)
    assert with_room in (without, FailureAction.PARK)


@given(st.integers(1, 100), st.integers(0, 100), st.floats(0, 1_000))
def test_a_batch_hint_is_within_its_bounds_and_at_most_doubles(batch_hint: int, handled: int, seconds: float) -> None:
    assert 1 <= next_batch_hint(batch_hint, handled, seconds) <= min(2 * batch_hint, 100)


def test_a_slow_handler_is_counted_message_by_message() -> None:
    assert next_batch_hint(64, 64, 64 * 0.05) == 1


def test_a_fast_handler_is_counted_by_the_hundred() -> None:
    batch_hint = 1
    for _ in range(10):
        batch_hint = next_batch_hint(batch_hint, batch_hint, batch_hint * 0.00001)

    assert batch_hint == 100
