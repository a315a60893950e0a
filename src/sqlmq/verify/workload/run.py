"""The phases of a run: processes produce and consume under faults; then all faults end and new members read the rest.

The plan's directory then holds the histories of all processes and the final state of the database, for the judge.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from sqlmq.mq import MQ
from sqlmq.verify import databases
from sqlmq.verify.history import Recorder
from sqlmq.verify.plan import COPIES, ORDERS, TRIMMED, fault_schedule
from sqlmq.verify.workload import state_dump
from sqlmq.verify.workload.nemesis import Nemesis
from sqlmq.verify.workload.processes import Processes, Role
from sqlmq.verify.workload.roles.poll_members import consume
from sqlmq.verify.workload.roles.producers import produce
from sqlmq.verify.workload.roles.run_members import MAX_ATTEMPTS, run, run_in_transactions
from sqlmq.verify.workload.roles.transaction_members import transact
from sqlmq.verify.workload.roles.watcher import watch
from sqlmq.verify.workload.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.verify.plan import GroupPlan, Plan

_SUPERVISE_SECONDS = 0.02
_MAX_EXTENSION = 10
"""A run that recorded too little lasts up to this many times its planned duration."""
_ORPHAN_SECONDS = 30.0
"""How long a process runs on if nothing ends it, because the parent was killed."""

_WORK = {"poll": consume, "run": run, "transaction": transact, "run in transactions": run_in_transactions}


@dataclass(slots=True)
class RunOutcome:
    """How a run went, before it is judged."""

    processes: int = 0
    faults: int = 0
    broken: list[str] = field(default_factory=list)
    """Processes that met an error which no application should meet. The error is in ``<name>.stderr``."""
    late: list[str] = field(default_factory=list)
    """Processes that did not end when they were asked to."""


def perform(plan: Plan, *, keep: bool = False, say: Callable[[str], None] = lambda _: None) -> RunOutcome:
    """Execute *plan*. Calls *say* with a line for people at each phase; *keep* leaves the tables in the database."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    (plan.directory / "plan.json").write_text(json.dumps(plan.describe(), indent=2) + "\n", encoding="utf-8")
    outcome = RunOutcome()
    with Sandbox(plan).created(keep=keep), Recorder(plan.directory / "parent.jsonl", "parent") as recorder:
        _record_plan(plan, recorder)
        _run_under_faults(plan, recorder, outcome, say)
        say("All faults have ended; new members read what is left.")
        _drain(plan, recorder, outcome)
        state_dump.dump(plan)
    return outcome


def _run_under_faults(plan: Plan, recorder: Recorder, outcome: RunOutcome, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    nemesis: Nemesis | None = None

    def on_replacement(role: str) -> None:
        if nemesis is not None:
            nemesis.on_replacement(role)

    max_seconds = plan.seconds * (_MAX_EXTENSION if plan.least else 1) + _ORPHAN_SECONDS
    processes = Processes(plan, began + max_seconds, lambda who: _record_death(recorder, who), on_replacement)
    try:
        processes.add(_roles(plan))
        began = time.monotonic()
        nemesis = Nemesis(plan, processes, recorder, began)
        say(f"{processes.count} processes produce and consume for {plan.seconds:g} seconds.")
        while time.monotonic() < began + plan.seconds or _needs_more_time(plan, began):
            nemesis.inject_due()
            processes.replace_ended()
            time.sleep(_SUPERVISE_SECONDS)
        nemesis.heal()
    finally:
        late = processes.end_all()
    outcome.late += late
    outcome.processes, outcome.faults = processes.count, nemesis.count
    outcome.broken += processes.broken


def _needs_more_time(plan: Plan, began: float) -> bool:
    """Whether too few transactions were recorded so far, and the run may still go on."""
    if not plan.least or time.monotonic() > began + _MAX_EXTENSION * plan.seconds:
        return False
    lines = (line for path in plan.directory.glob("*.jsonl") for line in path.read_bytes().splitlines())
    return sum(b'"type":"ok","f":"send"' in line or b'"f":"txn","of"' in line for line in lines) < plan.least


def _drain(plan: Plan, recorder: Recorder, outcome: RunOutcome) -> None:
    until = time.monotonic() + plan.drain_seconds
    processes = Processes(plan, until, lambda who: _record_death(recorder, who))
    try:
        processes.add(_draining_roles(plan))
        late = processes.wait(plan.drain_seconds + _ORPHAN_SECONDS)
    finally:
        processes.end_all()
    outcome.late += late
    outcome.broken += processes.broken


def _roles(plan: Plan) -> list[Role]:
    roles = [Role(f"producer-{number}", produce, ORDERS) for number in range(1, plan.producers + 1)]
    roles += [
        Role(f"{one.group}-{member}", _WORK[one.way], one.topic, one.group, member - 1)
        for one in plan.group_plans()
        for member in range(1, one.members + 1)
    ]
    return [*roles, Role("watcher", watch, ORDERS)]


def _draining_roles(plan: Plan) -> list[Role]:
    return [Role(f"{one.group}-drain", _WORK[one.way], one.topic, one.group, drains=True) for one in plan.group_plans()]


def _record_death(recorder: Recorder, who: str) -> None:
    recorder.note("crash", who=who)


def _record_plan(plan: Plan, recorder: Recorder) -> None:
    """Create the groups, and record the plan, the topics, the groups and the environment."""
    topics = {
        ORDERS: {"partitions": plan.partitions, "retention": False},
        TRIMMED: {"partitions": 2, "retention": True, "protect": True},
        COPIES: {"partitions": 2, "retention": False},
    }
    recorder.note(
        "plan",
        run=plan.run,
        seed=plan.seed,
        faults=sorted({planned.fault for planned in fault_schedule(plan)}),
        topics=topics,
        bounds=_bounds(plan),
        least={"acks": min(1_000, round(plan.rate * plan.seconds / 30)), "faults": 1 if plan.faults else 0},
        environment=_environment(plan),
        replay=_replay(plan),
    )
    with MQ(plan.url, schema=plan.schema) as mq:
        for one in plan.group_plans():
            mq.consumer(one.topic, one.group).close()
            recorder.note("group", **_group_fields(one))


def _group_fields(one: GroupPlan) -> dict[str, object]:
    fields: dict[str, object] = {"group": one.group, "topic": one.topic, "mode": one.mode, "ack": "auto"}
    return fields | ({"max_attempts": MAX_ATTEMPTS} if one.mode == "run" else {})


def _bounds(plan: Plan) -> dict[str, float]:
    return {
        # A machine that runs many processes at once notices everything late.
        "takeover": 3 * plan.lease_seconds + 15.0,
        "recovery": 20.0,
        "drain": plan.drain_seconds,
        "starvation": plan.lease_seconds * 4 + 20.0,
        "call": 30.0,
    }


def _environment(plan: Plan) -> dict[str, str]:
    found = {"sqlmq": version("sqlmq"), "python": platform.python_version(), "sqlalchemy": version("sqlalchemy")}
    return found | databases.environment(plan.url)


def _replay(plan: Plan) -> str:
    words = ["sqlmq verify run", f"--seed {plan.seed}", f"--duration {plan.seconds:g}", f"--mode {plan.mode}"]
    words += [f"--{name} {getattr(plan, name)}" for name in ("producers", "consumers", "groups", "partitions")]
    words += [f"--{name} {getattr(plan, name):g}" for name in ("rate", "abort", "savepoint")]
    words += [f"--{name} {'..'.join(map(str, getattr(plan, name)))}" for name in ("payload", "batch")]
    return " ".join([*words, f"--faults {','.join(plan.faults) or 'none'} --every {plan.fault_seconds:g}"])
