"""Faults: processes killed, paused and ended, sessions cut off, as the plan has them; each told when it begins and is over."""

from __future__ import annotations

import heapq
import itertools
import time
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from sqlmq.verify.databases import connected
from sqlmq.verify.plan import schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.verify.history import Recorder
    from sqlmq.verify.plan import Happening, Plan
    from sqlmq.verify.workload.processes import Lives

_SESSIONS = """
    SELECT pid FROM pg_stat_activity WHERE application_name = :tag AND pid <> pg_backend_pid() ORDER BY backend_start, pid
"""
_MOST_SESSIONS = 3


class Nemesis:
    """Does what is due, when it is asked to; never waits."""

    def __init__(self, plan: Plan, lives: Lives, recorder: Recorder, began: float) -> None:
        self._plan = plan
        self._lives = lives
        self._recorder = recorder
        self._ids = itertools.count(1)
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._replacing: dict[str, tuple[int, str]] = {}
        self.count = 0
        """How many faults there were."""
        for happening in schedule(plan):
            self._at(began + happening.at, lambda happening=happening: self._do(happening))  # type: ignore[misc]

    def act(self) -> None:
        """Do all that is due."""
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, action = heapq.heappop(self._due)
            action()

    def heal(self) -> None:
        """Let everything go on at once that is still to go on; begin nothing more."""
        self._due.clear()
        for role in self._lives.paused:
            self._lives.go_on(role)
        for role in list(self._replacing):
            self.replaced(role)

    def replaced(self, role: str) -> None:
        """Another life has begun in *role*."""
        if role in self._replacing:
            id_, fault = self._replacing.pop(role)
            self._recorder.note("nemesis", action="stop", fault=fault, id=id_)

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._order), action))

    def _do(self, happening: Happening) -> None:
        if happening.fault == "terminate":
            self._terminate(happening)
            return
        role = self._lives.victim(happening.victim, self._plan.victims)
        if role is None:
            return
        id_, fault = next(self._ids), happening.fault
        self.count += 1
        self._recorder.note("nemesis", action="start", fault=fault, id=id_, who=[self._lives.name(role)])
        if fault == "pause":
            self._lives.stop(role)
            self._at(time.monotonic() + happening.seconds, lambda: self._go_on(role, id_))
            return
        self._replacing[role] = (id_, fault)
        if fault == "kill":
            self._lives.kill(role, happening.seconds)
        else:
            self._recorder.note("end", who=self._lives.name(role))
            self._lives.end(role, happening.seconds)

    def _go_on(self, role: str, id_: int) -> None:
        self._lives.go_on(role)
        self._recorder.note("nemesis", action="stop", fault="pause", id=id_)

    def _terminate(self, happening: Happening) -> None:
        """Have the server end some sessions of the run, as an administrator does."""
        id_ = next(self._ids)
        self.count += 1
        self._recorder.note("nemesis", action="start", fault="terminate", id=id_)
        try:
            with connected(self._plan.url) as conn:
                pids = list(conn.execute(text(_SESSIONS), {"tag": self._plan.tag}).scalars())
                first = int(happening.victim * len(pids))
                for pid in pids[first : first + _MOST_SESSIONS]:
                    conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        except SQLAlchemyError:
            self.count -= 1
        self._recorder.note("nemesis", action="stop", fault="terminate", id=id_)
