"""One case: a scene, a fault at its n-th step, and everything that must be true after that."""

from __future__ import annotations

import itertools
import os
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmq import DatabaseBusyError, DatabaseUnavailableError, OutcomeUnknownError, SqlmqError
from sqlmq.errors import DatabaseDamagedError, DatabaseError, DatabaseFullError, ReadOnlyDatabaseError
from tests.faults.wire import WIRE, of_callers
from tests.faults.world import Deadline

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.faults.wire import Fault, Plan
    from tests.faults.world import Scene, World

ALL = os.environ.get("SQLMQ_FAULTS") == "all"
"""Whether each step fails in each way; else each fails in one, and these take turns."""

EXPECTED: dict[str, type[DatabaseError]] = {
    "cut before": DatabaseUnavailableError,
    "cut after": DatabaseUnavailableError,
    "terminated": DatabaseUnavailableError,
    "08P01": DatabaseUnavailableError,
    "53300": DatabaseUnavailableError,
    "XX001": DatabaseDamagedError,
    "ioerr": DatabaseUnavailableError,
    "corrupt": DatabaseDamagedError,
    "cantopen": DatabaseUnavailableError,
    "40001": DatabaseBusyError,
    "40P01": DatabaseBusyError,
    "55P03": DatabaseBusyError,
    "57014": DatabaseBusyError,
    "busy": DatabaseBusyError,
    "snapshot": DatabaseBusyError,
    "locked": DatabaseBusyError,
    "full": DatabaseFullError,
    "53100": DatabaseFullError,
    "25006": ReadOnlyDatabaseError,
    "readonly": ReadOnlyDatabaseError,
}

UNKNOWN = ("cut before", "cut after", "08P01")
"""After which nobody knows whether a COMMIT took effect."""


@dataclass(slots=True)
class Report:
    """What was tried, and what was wrong."""

    cases: int = 0
    failed: int = 0
    """Cases in which the operation raised."""
    unknown: int = 0
    wrong: list[str] = field(default_factory=list)

    def note(self, wrong: str) -> None:
        print(wrong)
        self.wrong.append(wrong)

    def __str__(self) -> str:
        return f"{self.cases} cases, {self.failed} raised, {self.unknown} of them of unknown outcome"


def every_case(
    world: World,
    make: type[Scene],
    faults: Sequence[Fault],
    *,
    counts: Callable[[threading.Thread], bool] = of_callers,
    numbers: Callable[[int], frozenset[int]] = lambda number: frozenset({number}),
    stride: int = 1,
    report: Report,
) -> None:
    """Have each step of a scene fail, one scene each, until one ends before the fault is reached.

    With a *stride* only some of them, if not all are wanted.
    """
    for chosen in _choices(faults):
        for number in itertools.count(1, 1 if ALL else stride):
            fault = chosen(number)
            case = f"{make.__name__}, {world.way}, {world.database.kind}: {fault.name} at {number}"
            plan = _one(world, make, fault, numbers(number), counts, case, report)
            if plan is None or not plan.is_reached or len(report.wrong) > 20:
                break


def _choices(faults: Sequence[Fault]) -> Iterable[Callable[[int], Fault]]:
    if ALL:
        return [lambda _, fault=fault: fault for fault in faults]  # type: ignore[misc]
    return [lambda number: faults[(number - 1) % len(faults)]]


def _one(
    world: World,
    make: type[Scene],
    fault: Fault,
    numbers: frozenset[int],
    counts: Callable[[threading.Thread], bool],
    case: str,
    report: Report,
) -> Plan | None:
    plan: Plan | None = None

    def call(scene: Scene) -> tuple[bool, bool]:
        nonlocal plan
        error: BaseException | None = None
        with WIRE.failing(numbers, fault, counts) as plan:
            try:
                scene.call()
            except BaseException as raised:  # noqa: BLE001 - judged below
                error = raised
        return error is None, error is not None and judge(scene, error, plan, fault)

    wrong = tried(world, make, call, report)
    if wrong is not None:
        at = "" if plan is None else "; ".join(map(str, plan.failed))
        report.note(f"{case} ({at}): {_told(wrong)}")
    return plan


def tried(
    world: World, make: type[Scene], call: Callable[[Scene], tuple[bool, bool]], report: Report
) -> Exception | None:
    """Make a scene, *call* it in a way that fails, which tells whether it returned, and whether its outcome is unknown.

    Then see to it that nothing is held, that what was done is what may be, and that the same object works.
    """
    report.cases += 1
    try:
        scene = make(world)
        deadline = Deadline()
        has_returned, is_unknown = call(scene)
        deadline.check()
        report.failed += not has_returned
        report.unknown += is_unknown
        world.check_nothing_is_held()
        scene.check(int(has_returned), int(is_unknown))
        scene.call()
        sure = 1 if scene.is_once else 1 + has_returned
        scene.check(sure, int(is_unknown and not scene.is_once))
        scene.close()
        world.check_nothing_is_held()
        world.state.check()
    except Exception as wrong:  # noqa: BLE001 - noted, with the others
        return wrong
    return None


def judge(scene: Scene, error: BaseException, plan: Plan, fault: Fault) -> bool:
    """Assert that *error* is what the fault has to become; return whether it says that the outcome is unknown."""
    assert plan.failed, f"raised without a fault: {_told(error)}"
    is_unknown = False
    for one in _flat(error):
        if isinstance(one, scene.may_raise):
            is_unknown |= any(step.what == "commit" for step in plan.failed) and fault.name in UNKNOWN
        elif fault.is_interrupt:
            assert isinstance(one, KeyboardInterrupt), f"not the interrupt: {_told(one)}"
            is_unknown = True
        elif isinstance(one, OutcomeUnknownError):
            assert fault.name in UNKNOWN, f"the outcome is known: {_told(one)}"
            assert any(step.what == "commit" or step.is_alone for step in plan.failed), "no COMMIT was sent"
            is_unknown = True
        else:
            assert isinstance(one, SqlmqError), f"not one of ours: {_told(one)}"
            assert type(one) is EXPECTED[fault.name], f"not {EXPECTED[fault.name].__name__}: {_told(one)}"
    return is_unknown


def _flat(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _flat(one)
    else:
        yield error


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{where}"
