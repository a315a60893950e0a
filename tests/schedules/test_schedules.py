"""Whatever order the statements of two or three sessions come in, with two interruptions at most, the promises hold."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tests.schedules import group_programs, log_programs
from tests.schedules.exploring import MOST_PREEMPTIONS, explore, schedule_named
from tests.schedules.scene import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import DatabaseUnderTest
    from tests.schedules.scene import Scene

ORDINARY = "47"
LIMIT = os.environ.get("SQLMQ_SCHEDULES", ORDINARY)
"""How many schedules of each program and database; or ``all`` of them."""
ONLY = os.environ.get("SQLMQ_SCHEDULE")
"""The name of the one schedule to run."""

Program: TypeAlias = "Callable[[Scene], None]"
PROGRAMS: list[Program] = [
    log_programs.produce_produce_consume,
    log_programs.produce_outbox_outbox,
    log_programs.outbox_outbox_in_opposite_orders,
    log_programs.move_move_cancel,
    log_programs.grow_produce_consume,
    log_programs.delete_produce_consume,
    log_programs.delete_outbox_move,
    log_programs.consume_trim_join,
    log_programs.create_create_produce,
    group_programs.consume_rebalance_produce,
    group_programs.join_join_leave,
    group_programs.zombie_takeover_produce,
    group_programs.transaction_transaction_produce,
    group_programs.commit_reset_consume,
    group_programs.seek_commit_produce,
    group_programs.decide_decide_handle,
]


def name_of_program(program: Program) -> str:
    return program.__name__.replace("_", "-")


@pytest.fixture
def stage(database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(database, monkeypatch)
    yield stage
    stage.close()


@pytest.mark.slow
@pytest.mark.timeout(300 if LIMIT == ORDINARY else 0)
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("program", PROGRAMS, ids=name_of_program)
def test_every_schedule_with_few_preemptions_keeps_the_promises(
    stage: Stage, program: Program, record_property: Callable[[str, object], None]
) -> None:
    if ONLY is not None:
        assert not stage.play(program, schedule_named(ONLY)).has_diverged
        return
    limit = None if LIMIT == "all" else int(LIMIT)

    conductors = list(explore(lambda schedule: stage.play(program, schedule), limit=limit))

    preemptions = Counter(conductor.preemptions for conductor in conductors)
    record_property("schedules", sorted(preemptions.items()))
    assert preemptions.total() == limit or preemptions[MOST_PREEMPTIONS]
    # Most are what they were meant to be.
    assert sum(conductor.has_diverged for conductor in conductors) <= preemptions.total() / 4


@pytest.mark.parametrize(
    ("program", "schedule", "database"),
    [
        # The mover that waits for the partition has it locked when the topic's messages are to be deleted.
        (log_programs.delete_outbox_move, "B4A9C4A9C3", "postgres"),
    ],
    indirect=["database"],
    ids=lambda value: name_of_program(value) if callable(value) else value,
)
def test_a_schedule_that_once_broke_a_promise_keeps_it(stage: Stage, program: Program, schedule: str) -> None:
    conductor = stage.play(program, schedule_named(schedule))

    assert not conductor.has_diverged
