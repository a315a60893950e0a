"""Whatever order the statements of two or three sessions come in, with two interruptions at most, the promises hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.schedules import group_programs, log_programs
from tests.schedules.exploring import explore, name_of, schedule_named
from tests.schedules.scene import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import DatabaseUnderTest
    from tests.schedules.conductor import Decision
    from tests.schedules.scene import Scene

LIMIT = os.environ.get("SQLMQ_SCHEDULES", "70")
"""How many schedules of each program and database; ``all`` of them."""
ONLY = os.environ.get("SQLMQ_SCHEDULE")
"""The name of the one schedule to run."""

PROGRAMS: list[Callable[[Scene], None]] = [
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


@pytest.fixture
def stage(database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(database, monkeypatch)
    yield stage
    stage.close()


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__.replace("_", "-"))
def test_every_schedule_with_few_preemptions_keeps_the_promises(
    stage: Stage, program: Callable[[Scene], None], record_property: Callable[[str, object], None]
) -> None:
    def run(schedule: Sequence[int]) -> list[Decision]:
        try:
            return stage.play(program, schedule)
        except BaseException as error:
            error.add_note(f"Run it again with SQLMQ_SCHEDULE={name_of(schedule)} and -k {program.__name__}.")
            raise

    if ONLY is not None:
        run(schedule_named(ONLY))
        return
    limit = None if LIMIT == "all" else int(LIMIT)

    costs = list(explore(run, limit=limit))

    record_property("schedules", len(costs))
    print(program.__name__, [costs.count(cost) for cost in range(3)])
    assert len(costs) == limit or limit is None or len(costs) > 5
