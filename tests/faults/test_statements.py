"""Each statement of each operation fails, the first, then the second, until one ends before its fault is reached."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from sqlmq import OutcomeUnknownError
from sqlmq.consumer.worker import pool
from sqlmq.database import watchdog
from sqlmq.dialects.postgresql import append
from tests.conftest import database_of_kind
from tests.faults.cases import Report, every_case, tried
from tests.faults.consuming import CONSUMING, DECIDING, RUNNING, TRANSACTIONS
from tests.faults.scenes import IN_SESSIONS, LOOKS, MANAGING, PRODUCING, Produce, ProduceMany, ProduceVeryMany
from tests.faults.tasks import AWAITED, CancelledCallError, CancellingLoop, InAsyncSession
from tests.faults.wire import INTERRUPTS, LOST_BY_POOLER, POSTGRES_FAULTS, SQLITE_FAULTS, WIRE, of_callers, wired
from tests.faults.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest
    from tests.faults.wire import Fault
    from tests.faults.world import Scene

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    with database_of_kind(request.param, request, tmp_path) as made:
        yield made


@pytest.fixture(params=["sync", "asyncio"])
def world(
    database: DatabaseUnderTest, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(append, "ARRAY_MESSAGES", 6)
    monkeypatch.setattr(watchdog, "_IDLE_SECONDS", 3600.0)  # no connection is tested, or steps would differ
    monkeypatch.setattr(pool, "_RECOVER_SECONDS", 0.01)
    monkeypatch.setattr(pool, "_WATCH_SECONDS", 0.01)
    logging.getLogger("sqlmq").setLevel(logging.CRITICAL)
    with wired():
        made = World(database, CancellingLoop() if request.param == "asyncio" else None)
        made.mq.consumer("feed", "watched")
        yield made
        made.close()
    logging.getLogger("sqlmq").setLevel(logging.NOTSET)


def try_all(
    world: World,
    scenes: tuple[type[Scene], ...],
    *,
    faults: tuple[Fault, ...] = (),
    counts: Callable[[threading.Thread], bool] = of_callers,
    numbers: Callable[[int], frozenset[int]] = lambda number: frozenset({number}),
    stride: int = 1,
) -> None:
    faults = faults or (POSTGRES_FAULTS if world.database.is_postgres else SQLITE_FAULTS)
    report = Report()
    for number, scene in enumerate(scenes):
        turned = faults[number % len(faults) :] + faults[: number % len(faults)]
        every_case(world, scene, turned, counts=counts, numbers=numbers, stride=stride, report=report)
    print(report)
    assert report.cases
    assert report.wrong == [], "\n" + "\n".join(report.wrong)


GROUPS = {
    "producing": PRODUCING,
    "in sessions": IN_SESSIONS,
    "looking": LOOKS,
    "managing": MANAGING,
    "consuming": CONSUMING,
    "transactions": TRANSACTIONS,
    "running": RUNNING,
    "deciding": DECIDING,
}
FOR_TASKS = {name: GROUPS[name] for name in GROUPS if name not in ("in sessions", "transactions")} | {
    "awaited": AWAITED
}
"""Without what has sessions that block; with what has those of asyncio."""
STRIDES = {"running": 31, "consuming": 3, "managing": 2}
"""How many steps to pass over where there are very many, if not all are wanted."""


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("world", ["sync"], indirect=True)
def test_a_statement_that_fails_leaves_nothing_half_done(world: World, group: str) -> None:
    try_all(world, GROUPS[group], stride=STRIDES.get(group, 1))


@pytest.mark.parametrize("group", FOR_TASKS)
@pytest.mark.parametrize("world", ["asyncio"], indirect=True)
def test_a_statement_that_fails_for_a_task_leaves_nothing_half_done(world: World, group: str) -> None:
    try_all(world, FOR_TASKS[group], stride=5 * STRIDES.get(group, 1) if group in GROUPS else 1)


@pytest.mark.parametrize("group", [group for group in FOR_TASKS if group != "running"])
@pytest.mark.parametrize("world", ["asyncio"], indirect=True)
def test_a_task_that_is_cancelled_at_an_await_leaves_nothing_half_done(world: World, group: str) -> None:
    report = Report()
    loop = world.loop
    assert isinstance(loop, CancellingLoop)

    # Where the application awaits its own session, it cancels that.
    for make in [make for make in FOR_TASKS[group] if make is not InAsyncSession]:
        for loop.when_done in (False, True):
            for number in itertools.count(1):
                loop.seen = 0
                wrong = tried(world, make, lambda scene, number=number: _cancelled(loop, scene, number), report)  # type: ignore[misc]
                if wrong is not None:
                    report.note(f"{make.__name__}, cancelled at {number}, {world.database.kind}: {wrong!r}")
                if loop.seen < number or len(report.wrong) > 20:
                    break

    print(report)
    assert report.wrong == [], "\n" + "\n".join(report.wrong)


def _cancelled(loop: CancellingLoop, scene: Scene, number: int) -> tuple[bool, bool]:
    loop.number = number
    try:
        scene.call()
    except CancelledCallError:
        return False, True
    finally:
        loop.number = 0
    return True, False


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("world", ["sync"], indirect=True)
def test_an_interrupt_in_a_statement_leaves_nothing_half_done(world: World, group: str) -> None:
    try_all(world, GROUPS[group], faults=INTERRUPTS, counts=_is_main, stride=3 * STRIDES.get(group, 1))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("world", ["sync"], indirect=True)
def test_a_second_fault_while_the_first_is_recovered_from_leaves_nothing_half_done(world: World, group: str) -> None:
    try_all(world, GROUPS[group], numbers=_and_next, stride=11 * STRIDES.get(group, 1))


def _and_next(number: int) -> frozenset[int]:
    return frozenset({number, number + 1})


def _is_main(thread: threading.Thread) -> bool:
    return thread is threading.main_thread()


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("world", ["sync"], indirect=True)
@pytest.mark.parametrize("make", [Produce, ProduceMany, ProduceVeryMany])
def test_a_commit_of_which_a_pooler_has_lost_the_answer_is_not_sent_again(world: World, make: type[Produce]) -> None:
    steps = _count_steps(world, make)
    scene = make(world)

    with WIRE.failing(steps, LOST_BY_POOLER, _is_main) as plan, pytest.raises(OutcomeUnknownError):
        scene.call()

    assert [step.what == "commit" or step.is_alone for step in plan.failed] == [True]


def _count_steps(world: World, make: type[Scene]) -> int:
    """How many steps *make*'s scene takes, of which the last one commits."""
    make(world).call()  # so that a connection is there
    with WIRE.failing(1_000, LOST_BY_POOLER, _is_main) as plan:
        make(world).call()
    return plan.seen
