"""What a run is going to do: the same for the same seed, and nothing to be told that is secret."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sqlmq.verify.plan import FAULTS, Plan, fault_schedule

SECRET = "pa55word"  # noqa: S105 - not a real one
PLAN = Plan.of(f"postgres://user:{SECRET}@host/name?sslmode=require", None, "abc", Path("out"), seconds=120.0)


def test_a_seed_makes_the_same_faults_again() -> None:
    assert fault_schedule(PLAN) == fault_schedule(replace(PLAN, run="another"))
    assert fault_schedule(PLAN) != fault_schedule(replace(PLAN, seed=1))


@given(st.integers(0, 1_000), st.floats(12.0, 600.0))
def test_every_fault_happens_and_not_in_the_last_tenth_nor_in_a_quarter_of_the_time(seed: int, seconds: float) -> None:
    happenings = fault_schedule(replace(PLAN, seed=seed, seconds=seconds))
    moments = [happening.at for happening in happenings]

    assert {happening.fault for happening in happenings} == set(FAULTS)
    assert moments == sorted(moments)
    assert moments[-1] < 0.9 * seconds
    assert (
        max(later - sooner for sooner, later in zip([0.0, *moments], [*moments, seconds], strict=True))
        >= 0.25 * seconds
    )


def test_sessions_are_ended_on_postgres_only() -> None:
    on_sqlite = Plan.of("sqlite:///queue.db", None, "abc", Path("out"), seconds=120.0)

    assert {happening.fault for happening in fault_schedule(on_sqlite)} == set(FAULTS) - {"terminate"}


def test_without_faults_nothing_happens() -> None:
    assert fault_schedule(replace(PLAN, faults=())) == []


def test_a_plan_has_a_schema_and_sessions_of_its_own() -> None:
    assert PLAN.schema == "sqlmq_verify_abc"
    assert "application_name=sqlmq_verify_abc" in PLAN.url
    assert "sslmode=require" in PLAN.url


def test_a_plan_can_be_told_without_its_secret() -> None:
    told = json.dumps(PLAN.describe())

    assert SECRET in PLAN.url
    assert SECRET not in told
    assert "user" in told
