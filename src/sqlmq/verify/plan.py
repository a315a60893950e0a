"""The plan of a run: how many processes do what, for how long, under which faults.

A plan and its seed repeat the same operations and the same faults; the exact timing depends on the machine.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from sqlalchemy import make_url

from sqlmq.verify.databases import is_postgres, tagged

Mode = Literal["lease", "transaction", "both"]
"""How groups read: by lease, in transactions that include the positions, or some groups each way."""

Fault = Literal["kill", "pause", "end", "terminate"]
"""``kill``: kill -9, then a new process. ``pause``: SIGSTOP for longer than the lease, then SIGCONT.
``end``: SIGTERM, then a new process. ``terminate``: the server terminates sessions of the run, on Postgres only."""

MODES: tuple[Mode, ...] = get_args(Mode)
FAULTS: tuple[Fault, ...] = get_args(Fault)

ORDERS, TRIMMED, COPIES = "orders", "trimmed", "copies"
"""The topics: one that all groups read, one that retention trims, one to which consumers publish in transactions."""

KEEP_MESSAGES = 5
"""How many messages retention keeps in each partition of ``trimmed``."""

_QUIET_SHARE = 0.25


class GroupPlan(NamedTuple):
    """A group, the topic it reads, and how."""

    group: str
    topic: str
    way: Literal["poll", "run", "transaction", "run in transactions"]
    members: int

    @property
    def mode(self) -> str:
        """The name of *way* in the history."""
        return {"poll": "lease", "transaction": "transaction"}.get(self.way, "run")


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: everything its processes need. Can be pickled."""

    url: str
    schema: str | None
    run: str
    """The name of the run; a part of the ids of its messages."""
    directory: Path
    seed: int = 0
    seconds: float = 60.0
    least: int = 0
    """The fewest transactions to record. A run that has fewer, on a busy machine, lasts up to ten times longer."""
    mode: Mode = "both"
    producers: int = 3
    consumers: int = 2
    """How many members each group has."""
    groups: int = 1
    """How many groups there are for each way of reading."""
    partitions: int = 4
    rate: float = 300.0
    """The most messages that all producers together send in a second."""
    backlog: int = 1_000
    """The largest lag: producers wait for a group that is further behind, because it could not catch up in the end."""
    payload: tuple[int, int] = (64, 2_000)
    """The smallest and the largest size of a value in bytes."""
    batch: tuple[int, int] = (1, 20)
    """The smallest and the largest number of messages of a batch or a transaction."""
    abort: float = 0.1
    """The share of transactions that are rolled back."""
    savepoint: float = 0.1
    """The share of transactions in which a savepoint is rolled back."""
    faults: tuple[Fault, ...] = FAULTS
    fault_seconds: float = 1.0
    """The average time from one fault to the next."""
    lease_seconds: float = 3.0
    victims: str = ""
    """A prefix of process names: only these processes are killed, paused and ended. Empty means all."""
    handling_seconds: float = 0.3
    """The longest time that a handler takes."""
    drain_seconds: float = 60.0
    """The time that groups have in the end to read what is left."""
    process_hook: str | None = None
    """A ``module:function`` to call at the start of each process, with its ``random.Random``. Tests of the judge use it to
    break one step of the library."""

    @classmethod
    def of(cls, url: str | None, schema: str | None, run: str, directory: Path, **options: Any) -> Self:  # noqa: ANN401 - the other fields
        """Return a plan for the database at *url*; without *url*, for a SQLite file in *directory*.

        On Postgres the run gets a schema of its own unless *schema* is given, and its sessions carry its name.
        """
        if url is None:
            return cls(f"sqlite:///{directory.absolute() / 'verify.db'}", schema, run, directory, **options)
        own = schema or (_name(run) if is_postgres(url) else None)
        return cls(tagged(url, _name(run)), own, run, directory, **options)

    @property
    def is_postgres(self) -> bool:
        """Whether the run is on Postgres."""
        return is_postgres(self.url)

    @property
    def tag(self) -> str:
        """The ``application_name`` of the run's sessions on Postgres."""
        return _name(self.run)

    def group_plans(self) -> list[GroupPlan]:
        """Return the groups of the run."""
        found = []
        for number in range(1, self.groups + 1):
            if self.mode != "transaction":
                found.append(GroupPlan(f"lease-{number}", ORDERS, "poll", self.consumers))
                found.append(GroupPlan(f"run-{number}", ORDERS, "run", self.consumers))
            if self.mode != "lease":
                found.append(GroupPlan(f"transaction-{number}", ORDERS, "transaction", self.consumers))
                found.append(GroupPlan(f"effects-{number}", ORDERS, "run in transactions", self.consumers))
        if self.mode != "lease":
            found.append(GroupPlan("copies", COPIES, "transaction", 1))
        found.append(GroupPlan("trimmed", TRIMMED, "transaction" if self.mode == "transaction" else "poll", 1))
        return found

    def random_for(self, *names: object) -> random.Random:
        """Return a random generator for one part of the run: the same for the same seed."""
        return random.Random("/".join(map(str, (self.seed, *names))))

    def describe(self) -> dict[str, object]:
        """Return the plan for reports, without the password in the URL."""
        shown = make_url(self.url).render_as_string(hide_password=True)
        return asdict(replace(self, url=shown)) | {"directory": str(self.directory)}


def _name(run: str) -> str:
    return f"sqlmq_verify_{run}"


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault in the schedule of a run."""

    at: float
    """Seconds after the start of the run."""
    fault: Fault
    victim: float
    """Selects the process: its place among all available ones, from 0 to 1."""
    seconds: float
    """How long the pause lasts, or how long until a new process starts."""


def fault_schedule(plan: Plan) -> list[PlannedFault]:
    """Return the faults of a run in order. A quarter of the run has none, and neither has its last tenth."""
    faults = [fault for fault in plan.faults if fault != "terminate" or plan.is_postgres]
    random_, planned, at = plan.random_for("nemesis"), list[PlannedFault](), 0.0
    if not faults:
        return planned
    quiet_from = plan.seconds * random_.uniform(0.2, 0.9 - _QUIET_SHARE)
    pending: list[Fault] = []
    while True:
        at += plan.fault_seconds * random_.uniform(0.4, 1.6)
        if quiet_from <= at < quiet_from + plan.seconds * _QUIET_SHARE:
            at = quiet_from + plan.seconds * _QUIET_SHARE
        if at >= plan.seconds * 0.9:
            return planned
        if not pending:
            # Kills are twice as frequent, and even a short run has each fault early.
            pending = [*faults, *(fault for fault in faults if fault == "kill")]
            random_.shuffle(pending)
        fault = pending.pop()
        if fault == "pause":
            seconds = plan.lease_seconds * random_.uniform(1.1, 1.8)
        else:
            seconds = random_.choice([0.0, random_.uniform(0.0, 0.5)])
        planned.append(PlannedFault(at, fault, random_.random(), seconds))
