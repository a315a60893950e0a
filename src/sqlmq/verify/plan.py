"""What a run of ``sqlmq verify`` does: how much of what, for how long, with which faults.

A plan and its seed make the same operations and the same faults again; when exactly each happens is up to the machine.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from sqlalchemy import make_url

from sqlmq.verify.databases import is_postgres, tagged

Mode = Literal["lease", "transaction", "both"]
"""How groups read: by lease, in transactions that the positions are part of, or some this way and some that."""

Fault = Literal["kill", "pause", "end", "terminate"]
"""``kill``: kill -9, and another process in its place. ``pause``: stopped for longer than the lease, then on again.
``end``: SIGTERM, and another process in its place. ``terminate``: the server ends sessions of the run, on Postgres."""

MODES: tuple[Mode, ...] = get_args(Mode)
FAULTS: tuple[Fault, ...] = get_args(Fault)

ORDERS, TRIMMED, COPIES = "orders", "trimmed", "copies"
"""The topics: what all groups read; what retention trims meanwhile; what consumers publish in their transactions."""

KEEP_MESSAGES = 5
"""How many messages of each partition of ``trimmed`` are kept, once every group is done with them."""

_QUIET_SHARE = 0.25


class Reading(NamedTuple):
    """A group that reads a topic."""

    group: str
    topic: str
    way: Literal["poll", "run", "transaction", "run in transactions"]
    members: int

    @property
    def mode(self) -> str:
        """What the history calls its way."""
        return {"poll": "lease", "transaction": "transaction"}.get(self.way, "run")


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Everything a process of it has to know; may be pickled."""

    url: str
    schema: str | None
    run: str
    """Names the run in the ids of its messages."""
    directory: Path
    seed: int = 0
    seconds: float = 60.0
    least: int = 0
    """With fewer transactions told of, by senders and members, it lasts longer, up to ten times: on a busy machine."""
    mode: Mode = "both"
    producers: int = 3
    consumers: int = 2
    """Of each group."""
    groups: int = 1
    """So many for each way of reading."""
    partitions: int = 4
    rate: float = 300.0
    """Messages that all producers together send in a second, at most."""
    backlog: int = 1_000
    """With so many messages still to come to one of the groups, producers wait for it; or it would never be done."""
    payload: tuple[int, int] = (64, 2_000)
    """The least and the most bytes of a value."""
    batch: tuple[int, int] = (1, 20)
    """The fewest and the most messages of a batch or a transaction."""
    abort: float = 0.1
    """The share of transactions that are rolled back."""
    savepoint: float = 0.1
    """The share of transactions in which a savepoint is rolled back."""
    faults: tuple[Fault, ...] = FAULTS
    fault_seconds: float = 1.0
    """About how long it is from one fault to the next."""
    lease_seconds: float = 3.0
    victims: str = ""
    """How the names of the processes begin that are killed, paused and ended; all, if nothing is said."""
    handling_seconds: float = 0.3
    """How long a handler takes at most."""
    drain_seconds: float = 60.0
    """How long the groups may take, when all is over, to read what is left."""
    process_hook: str | None = None
    """``module:function`` to call at the start of each process, with its random choices: tests of the judge break one step of
    the library this way."""

    @classmethod
    def of(cls, url: str | None, schema: str | None, run: str, directory: Path, **options: Any) -> Self:  # noqa: ANN401 - the other fields
        """A plan for the database at *url*; without one, for a file in *directory*.

        On Postgres it is for a *schema* of the run's own, unless one is named, and sessions are called after the run.
        """
        if url is None:
            return cls(f"sqlite:///{directory.absolute() / 'verify.db'}", schema, run, directory, **options)
        own = schema or (_name(run) if is_postgres(url) else None)
        return cls(tagged(url, _name(run)), own, run, directory, **options)

    @property
    def is_postgres(self) -> bool:
        """Whether the database is Postgres."""
        return is_postgres(self.url)

    @property
    def tag(self) -> str:
        """What sessions of the run are called on Postgres."""
        return _name(self.run)

    def readings(self) -> list[Reading]:
        """Who reads what."""
        found = []
        for number in range(1, self.groups + 1):
            if self.mode != "transaction":
                found.append(Reading(f"lease-{number}", ORDERS, "poll", self.consumers))
                found.append(Reading(f"run-{number}", ORDERS, "run", self.consumers))
            if self.mode != "lease":
                found.append(Reading(f"transaction-{number}", ORDERS, "transaction", self.consumers))
                found.append(Reading(f"effects-{number}", ORDERS, "run in transactions", self.consumers))
        if self.mode != "lease":
            found.append(Reading("copies", COPIES, "transaction", 1))
        found.append(Reading("trimmed", TRIMMED, "transaction" if self.mode == "transaction" else "poll", 1))
        return found

    def chosen(self, *whose: object) -> random.Random:
        """The random choices of somebody: the same for the same seed."""
        return random.Random("/".join(map(str, (self.seed, *whose))))

    def described(self) -> dict[str, object]:
        """What may be told of it to anybody: all but the URL's secret."""
        shown = make_url(self.url).render_as_string(hide_password=True)
        return asdict(replace(self, url=shown)) | {"directory": str(self.directory)}


def _name(run: str) -> str:
    return f"sqlmq_verify_{run}"


@dataclass(frozen=True, slots=True)
class Happening:
    """A fault that is to come."""

    at: float
    """Seconds after the start."""
    fault: Fault
    victim: float
    """Which process, as a share of all there are, from 0 to 1."""
    seconds: float
    """How long it takes: the pause, or until another process takes the place."""


def schedule(plan: Plan) -> list[Happening]:
    """The faults of a run, in order. A quarter of the time there are none, and none in the last tenth."""
    faults = [fault for fault in plan.faults if fault != "terminate" or plan.is_postgres]
    chosen, happenings, at = plan.chosen("nemesis"), list[Happening](), 0.0
    if not faults:
        return happenings
    quiet_from = plan.seconds * chosen.uniform(0.2, 0.9 - _QUIET_SHARE)
    pending: list[Fault] = []
    while True:
        at += plan.fault_seconds * chosen.uniform(0.4, 1.6)
        if quiet_from <= at < quiet_from + plan.seconds * _QUIET_SHARE:
            at = quiet_from + plan.seconds * _QUIET_SHARE
        if at >= plan.seconds * 0.9:
            return happenings
        if not pending:
            # Kills twice as often as the others, and each fault soon, however short the run.
            pending = [*faults, *(fault for fault in faults if fault == "kill")]
            chosen.shuffle(pending)
        fault = pending.pop()
        if fault == "pause":
            seconds = plan.lease_seconds * chosen.uniform(1.1, 1.8)
        else:
            seconds = chosen.choice([0.0, chosen.uniform(0.0, 0.5)])
        happenings.append(Happening(at, fault, chosen.random(), seconds))
