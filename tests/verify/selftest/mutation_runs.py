"""Short runs of the library, unchanged and with one mutation each, which the judge must distinguish."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

from sqlmq.verify import history
from sqlmq.verify.plan import Plan
from sqlmq.verify.workload import run
from tests.verify.selftest.cases import Case
from tests.verify.selftest.mutations import MUTATIONS

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq.verify.history import Event, Final
    from tests.verify.selftest.mutations import Mutation

UNBROKEN = "unbroken"
"""The name of the run without a mutation."""


def cases(url: str | None) -> list[Case]:
    """Return a case without a mutation and one for each mutation, at *url* or in SQLite files."""
    return [
        Case(UNBROKEN, "Nothing: the unchanged library, under faults.", frozenset(), partial(_run, url, None)),
        *(
            Case(one.name, one.breaks, frozenset(one.expected.split()), partial(_run, url, one))
            for one in MUTATIONS.values()
        ),
    ]


def _run(url: str | None, mutation: Mutation | None, directory: Path, seed: int) -> tuple[list[Event], Final | None]:
    plan = Plan.of(
        url,
        None,
        secrets.token_hex(4),
        directory,
        seed=seed,
        seconds=4.0,
        least=100,
        producers=2,
        consumers=1,
        partitions=3,
        faults=("kill", "pause"),
        fault_seconds=0.5,
        handling_seconds=0.1,
    )
    run.perform(plan if mutation is None else mutation.planned(plan))
    return history.read_directory(directory)
