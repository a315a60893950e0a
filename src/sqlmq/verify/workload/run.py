"""A run: processes send and read for a while, under faults; then all is healed, and fresh members read what is left.

What they did, and what stands in the database in the end, is in the plan's directory afterwards, for the judge.
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
from sqlmq.verify.plan import COPIES, ORDERS, TRIMMED, schedule
from sqlmq.verify.workload import state_dump
from sqlmq.verify.workload.nemesis import Nemesis
from sqlmq.verify.workload.processes import Lives, Role
from sqlmq.verify.workload.roles.poll_members import consume
from sqlmq.verify.workload.roles.producers import produce
from sqlmq.verify.workload.roles.run_members import MAX_ATTEMPTS, run, run_in_transactions
from sqlmq.verify.workload.roles.transaction_members import transact
from sqlmq.verify.workload.roles.watcher import watch
from sqlmq.verify.workload.sandbox import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.verify.plan import Plan, Reading

_LOOK_SECONDS = 0.02
_MOST_TIMES = 10
_BEYOND_SECONDS = 30.0
"""How long a process may live on when nobody has told it to end: whoever started it may have been killed."""

_WAYS = {"poll": consume, "run": run, "transaction": transact, "run in transactions": run_in_transactions}


@dataclass(slots=True)
class Ran:
    """How a run went, before anybody has judged it."""

    lives: int = 0
    faults: int = 0
    broken: list[str] = field(default_factory=list)
    """Processes that ended by an error which an application should not meet; what they said is in ``<name>.stderr``."""
    late: list[str] = field(default_factory=list)
    """Processes that did not end when they were asked to."""


def perform(plan: Plan, *, keep: bool = False, say: Callable[[str], None] = lambda _: None) -> Ran:
    """Do what *plan* says; say now and then what happens."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    (plan.directory / "plan.json").write_text(json.dumps(plan.described(), indent=2) + "\n", encoding="utf-8")
    ran = Ran()
    with Place(plan).made(keep=keep), Recorder(plan.directory / "parent.jsonl", "parent") as recorder:
        _introduce(plan, recorder)
        _live(plan, recorder, ran, say)
        say("Everything is healed; fresh members read what is left.")
        _drain(plan, recorder, ran)
        state_dump.dump(plan)
    return ran


def _live(plan: Plan, recorder: Recorder, ran: Ran, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    nemesis: Nemesis | None = None

    def replaced(role: str) -> None:
        if nemesis is not None:
            nemesis.replaced(role)

    most_seconds = plan.seconds * (_MOST_TIMES if plan.least else 1) + _BEYOND_SECONDS
    lives = Lives(plan, began + most_seconds, lambda who: _crashed(recorder, who), replaced)
    try:
        lives.add(_roles(plan))
        began = time.monotonic()
        nemesis = Nemesis(plan, lives, recorder, began)
        say(f"{lives.count} processes send and read for {plan.seconds:g} seconds.")
        while time.monotonic() < began + plan.seconds or _lasts_longer(plan, began):
            nemesis.act()
            lives.look()
            time.sleep(_LOOK_SECONDS)
        nemesis.heal()
    finally:
        late = lives.end_all()
    ran.late += late
    ran.lives, ran.faults = lives.count, nemesis.count
    ran.broken += lives.broken


def _lasts_longer(plan: Plan, began: float) -> bool:
    """Whether too little has happened so far, and there is still time for it."""
    if not plan.least or time.monotonic() > began + _MOST_TIMES * plan.seconds:
        return False
    lines = (line for path in plan.directory.glob("*.jsonl") for line in path.read_bytes().splitlines())
    return sum(b'"type":"ok","f":"send"' in line or b'"f":"txn","of"' in line for line in lines) < plan.least


def _drain(plan: Plan, recorder: Recorder, ran: Ran) -> None:
    until = time.monotonic() + plan.drain_seconds
    lives = Lives(plan, until, lambda who: _crashed(recorder, who))
    try:
        lives.add(_drains(plan))
        late = lives.wait(plan.drain_seconds + _BEYOND_SECONDS)
    finally:
        lives.end_all()
    ran.late += late
    ran.broken += lives.broken


def _roles(plan: Plan) -> list[Role]:
    roles = [Role(f"producer-{number}", produce, ORDERS) for number in range(1, plan.producers + 1)]
    roles += [
        Role(f"{one.group}-{member}", _WAYS[one.way], one.topic, one.group, member - 1)
        for one in plan.readings()
        for member in range(1, one.members + 1)
    ]
    return [*roles, Role("watcher", watch, ORDERS)]


def _drains(plan: Plan) -> list[Role]:
    return [Role(f"{one.group}-drain", _WAYS[one.way], one.topic, one.group, drains=True) for one in plan.readings()]


def _crashed(recorder: Recorder, who: str) -> None:
    recorder.note("crash", who=who)


def _introduce(plan: Plan, recorder: Recorder) -> None:
    """Make the groups, and tell of the plan, the topics, the groups, and what all of it runs on."""
    topics = {
        ORDERS: {"partitions": plan.partitions, "retention": False},
        TRIMMED: {"partitions": 2, "retention": True, "protect": True},
        COPIES: {"partitions": 2, "retention": False},
    }
    recorder.note(
        "plan",
        run=plan.run,
        seed=plan.seed,
        faults=sorted({happening.fault for happening in schedule(plan)}),
        topics=topics,
        bounds=_bounds(plan),
        least={"acks": min(1_000, round(plan.rate * plan.seconds / 30)), "faults": 1 if plan.faults else 0},
        environment=_environment(plan),
        replay=_replay(plan),
    )
    with MQ(plan.url, schema=plan.schema) as mq:
        for one in plan.readings():
            mq.consumer(one.topic, one.group).close()
            recorder.note("group", **_told(one))


def _told(one: Reading) -> dict[str, object]:
    told: dict[str, object] = {"group": one.group, "topic": one.topic, "mode": one.mode, "ack": "auto"}
    return told | ({"max_attempts": MAX_ATTEMPTS} if one.mode == "run" else {})


def _bounds(plan: Plan) -> dict[str, float]:
    return {
        # A machine that is busy with many processes is slow to notice anything.
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
