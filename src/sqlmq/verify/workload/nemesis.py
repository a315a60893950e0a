"""Injects the faults of a plan: kills, pauses and ends processes, and terminates sessions. Records each start and end."""

from __future__ import annotations

import heapq
import itertools
import time
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from sqlmq.verify.databases import connected
from sqlmq.verify.plan import fault_schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.verify.history import Recorder
    from sqlmq.verify.plan import Plan, PlannedFault
    from sqlmq.verify.workload.processes import Processes

_SESSIONS = """
    SELECT pid FROM pg_stat_activity WHERE application_name = :tag AND pid <> pg_backend_pid() ORDER BY backend_start, pid
"""
_MAX_SESSIONS = 3


class Nemesis:
    """Injects what is due each time it is called; never waits."""

    def __init__(self, plan: Plan, processes: Processes, recorder: Recorder, began: float) -> None:
        self._plan = plan
        self._processes = processes
        self._recorder = recorder
        self._ids = itertools.count(1)
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._awaiting_replacement: dict[str, tuple[int, str]] = {}
        self.count = 0
        """How many faults were injected."""
        for planned in fault_schedule(plan):
            self._at(began + planned.at, lambda planned=planned: self._inject(planned))  # type: ignore[misc]

    def inject_due(self) -> None:
        """Inject each fault whose time has come, and resume each process whose pause is over."""
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, action = heapq.heappop(self._due)
            action()

    def heal(self) -> None:
        """End all faults now, and inject no more."""
        self._due.clear()
        for role in self._processes.paused:
            self._processes.resume(role)
        for role in list(self._awaiting_replacement):
            self.on_replacement(role)

    def on_replacement(self, role: str) -> None:
        """Record the end of a fault: a new process has taken over *role*."""
        if role in self._awaiting_replacement:
            id_, fault = self._awaiting_replacement.pop(role)
            self._recorder.note("nemesis", action="stop", fault=fault, id=id_)

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._order), action))

    def _inject(self, planned: PlannedFault) -> None:
        if planned.fault == "terminate":
            self._terminate_sessions(planned)
            return
        role = self._processes.victim(planned.victim, self._plan.victims)
        if role is None:
            return
        id_, fault = next(self._ids), planned.fault
        self.count += 1
        self._recorder.note("nemesis", action="start", fault=fault, id=id_, who=[self._processes.name(role)])
        if fault == "pause":
            self._processes.pause(role)
            self._at(time.monotonic() + planned.seconds, lambda: self._resume(role, id_))
            return
        self._awaiting_replacement[role] = (id_, fault)
        if fault == "kill":
            self._processes.kill(role, planned.seconds)
        else:
            self._recorder.note("end", who=self._processes.name(role))
            self._processes.terminate(role, planned.seconds)

    def _resume(self, role: str, id_: int) -> None:
        self._processes.resume(role)
        self._recorder.note("nemesis", action="stop", fault="pause", id=id_)

    def _terminate_sessions(self, planned: PlannedFault) -> None:
        """Terminate some sessions of the run on the server, as an administrator does."""
        id_ = next(self._ids)
        self.count += 1
        self._recorder.note("nemesis", action="start", fault="terminate", id=id_)
        try:
            with connected(self._plan.url) as conn:
                pids = list(conn.execute(text(_SESSIONS), {"tag": self._plan.tag}).scalars())
                first = int(planned.victim * len(pids))
                for pid in pids[first : first + _MAX_SESSIONS]:
                    conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        except SQLAlchemyError:
            self.count -= 1
        self._recorder.note("nemesis", action="stop", fault="terminate", id=id_)
