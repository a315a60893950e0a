"""Anything one may do with the queue, in any order, against a reference of lists and numbers.

One thread takes every step, and consumers commit only when told to (or when they part with a partition), so the
reference knows exactly which message comes next. What sessions do to each other is in `tests/schedules`, what processes
do in `tests/concurrency`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.handling import Handling
from tests.model.reading import Reading

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest

IN_CI = "CI" in os.environ
EXAMPLES = int(os.environ.get("SQLMQ_MODEL_EXAMPLES", "15"))
STEPS = int(os.environ.get("SQLMQ_MODEL_STEPS", "40"))


class Queue(Handling, Reading):
    """All rules."""


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES > 100 else 300)
@pytest.mark.parametrize("way", ["sync", "asyncio"])
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_the_queue_behaves_as_its_reference(database: DatabaseUnderTest, way: str) -> None:
    machine = type("QueueOnDatabase", (Queue,), {"database": database, "way": way})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=IN_CI,
            database=None,
            print_blob=True,
            phases=(Phase.generate, Phase.shrink) if not IN_CI else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
