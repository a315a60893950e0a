"""The processes of a run. Each process plays a role; when it ends, for whatever reason, another one takes over its role.

Processes are forked from a server that has imported everything and opened nothing, so a new one starts in about 30 ms.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from sqlmq.aio.mq import AsyncMQ
from sqlmq.mq import MQ
from sqlmq.verify.history import Recorder

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator
    from multiprocessing.context import BaseContext

    from sqlmq.verify.plan import Plan

BROKEN = 70
"""The exit code of a process that met an error which no application should meet."""

_STOP_SECONDS = 20.0
_POLL_SECONDS, _COMMIT_SECONDS = 0.2, 0.1
_STALL_CHECK_SECONDS = 0.1
_STALL_SHARE = 3
"""A stall is recorded if it takes more than a lease divided by this."""


@dataclass(frozen=True, slots=True)
class Role:
    """The work of a process, and of those that take over from it."""

    name: str
    work: Callable[[RoleProcess], None]
    topic: str
    group: str | None = None
    variant: int = 0
    """Selects one of several ways to do the work."""
    drains: bool = False
    """Whether the process ends when its group has read everything, rather than on a signal."""


class RoleProcess:
    """The state of one process of a run, inside that process."""

    def __init__(self, plan: Plan, role: Role, number: int, until: float) -> None:
        self.plan = plan
        self.role = role
        self.name = f"{role.name}.{number}"
        self.number = number
        self.random: random.Random = plan.random_for(role.name, number)
        self.recorder = Recorder(plan.directory / f"{self.name}.jsonl", self.name)
        self._until = until
        self._end_requested = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._end_requested.set())
        # Ctrl-C is handled by the parent, which then ends its processes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._watch_for_stalls, daemon=True).start()

    def open_mq(self) -> MQ:
        """Open the queue of the run. All intervals are short, so that much happens in a short run."""
        return MQ(
            self.plan.url,
            schema=self.plan.schema,
            lease_seconds=self.plan.lease_seconds,
            poll_max_seconds=_POLL_SECONDS,
            commit_interval_seconds=_COMMIT_SECONDS,
        )

    def open_async_mq(self) -> AsyncMQ:
        """Open the queue of the run for an event loop."""
        return AsyncMQ(
            self.plan.url,
            schema=self.plan.schema,
            lease_seconds=self.plan.lease_seconds,
            poll_max_seconds=_POLL_SECONDS,
            commit_interval_seconds=_COMMIT_SECONDS,
        )

    def may_use_asyncio(self, *, in_transactions: bool = False) -> bool:
        """Whether the role can run in an event loop.

        A process that drains watches itself in a thread. Transactions in an event loop need libraries that a run does
        without: greenlet, and on SQLite a driver for asyncio.
        """
        if self.role.drains:
            return False
        return not in_transactions or (self.plan.is_postgres and find_spec("greenlet") is not None)

    @property
    def is_active(self) -> bool:
        """Whether the process should go on with its work."""
        return not self.is_ending

    @property
    def is_ending(self) -> bool:
        """Whether the process should end: it was asked to, or its time is over."""
        return self._end_requested.is_set() or time.monotonic() >= self._until

    @property
    def seconds_left(self) -> float:
        """The time until the process must end."""
        return max(0.0, self._until - time.monotonic())

    def request_end(self) -> None:
        """Make the process end after its current step."""
        self._end_requested.set()

    @contextlib.contextmanager
    def noting_stalls(self, seconds: float) -> Iterator[None]:
        """Record a stall if the block takes so much longer than *seconds* that a lease may have expired."""
        began = time.monotonic_ns()
        try:
            yield
        finally:
            self.note_stall(began, seconds)

    def note_stall(self, began: int, seconds: float) -> None:
        """Record a stall if a step that started at *began* and has just ended took much longer than *seconds*."""
        took_seconds = (time.monotonic_ns() - began) / 1e9
        if took_seconds - seconds > self.plan.lease_seconds / _STALL_SHARE:
            self.recorder.note("stalled", seconds=took_seconds)

    def _watch_for_stalls(self) -> None:
        """Record when this process did not run: a busy machine has the same effect on a member as a pause."""
        while True:
            with self.noting_stalls(_STALL_CHECK_SECONDS):
                time.sleep(_STALL_CHECK_SECONDS)

    def wait(self, seconds: float) -> None:
        """Wait *seconds*, or until the process should end."""
        if seconds > 0:
            self._end_requested.wait(min(seconds, self.seconds_left))


def run_role(plan: Plan, role: Role, number: int, until: float) -> None:
    """Play *role* in this process until it ends. Exits with BROKEN on an error that no application should meet."""
    path = plan.directory / f"{role.name}.{number}.stderr"
    errors = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        if plan.process_hook is not None:
            pkgutil.resolve_name(plan.process_hook)(plan.random_for("hook", role.name, number))
        role.work(RoleProcess(plan, role, number, until))
    except BaseException:  # noqa: BLE001 - printed, and reported by the exit code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)


@dataclass(eq=False)
class _RoleSlot:
    """A role, and the process that plays it now."""

    role: Role
    starts: int = 0
    process: BaseProcess | None = None
    is_paused: bool = False
    is_ending: bool = False
    """Whether the process was asked to end."""
    is_killed: bool = False
    next_start_at: float = field(default=0.0)
    """When to start the next process, if none runs."""


class Processes:
    """The processes of a run, supervised by one thread.

    *on_death* is called with the name of each process that did not end normally, *on_replacement* with each role that a
    new process has taken over.
    """

    def __init__(
        self,
        plan: Plan,
        until: float,
        on_death: Callable[[str], None],
        on_replacement: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._until = until
        self._on_death = on_death
        self._on_replacement = on_replacement
        self._context = _forkserver()
        self._slots: list[_RoleSlot] = []
        self.broken: list[str] = []
        """Processes that met an error which no application should meet."""
        self.count = 0
        """How many processes were started."""

    def add(self, roles: Iterable[Role]) -> None:
        """Start a process for each of *roles*."""
        for role in roles:
            slot = _RoleSlot(role)
            self._slots.append(slot)
            self._start(slot)

    def replace_ended(self) -> None:
        """Reap the processes that have ended, and start others in their roles."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is not None and slot.process.exitcode is not None:
                self._reap(slot)
            if slot.process is None and now >= slot.next_start_at and now < self._until and not slot.role.drains:
                self._start(slot)

    def victim(self, share: float, prefix: str = "") -> str | None:
        """Return a role with a running process: the one at *share* of all whose names begin with *prefix*."""
        found = [slot.role.name for slot in self._available() if slot.role.name.startswith(prefix)]
        return found[int(share * len(found))] if found else None

    @property
    def paused(self) -> list[str]:
        """The roles whose processes are paused."""
        return [slot.role.name for slot in self._slots if slot.is_paused]

    def name(self, role: str) -> str:
        """The name of the newest process in *role*."""
        return _name(self._slot(role))

    def kill(self, role: str, pause: float) -> None:
        """Kill the process in *role* as a crash does; start the next one after *pause* seconds."""
        slot = self._slot(role)
        slot.is_killed = True
        slot.next_start_at = time.monotonic() + pause
        self._signal(slot, signal.SIGKILL)

    def terminate(self, role: str, pause: float) -> None:
        """Ask the process in *role* to end normally; start the next one after *pause* seconds."""
        slot = self._slot(role)
        slot.is_ending = True
        slot.next_start_at = time.monotonic() + pause
        self._signal(slot, signal.SIGTERM)

    def pause(self, role: str) -> None:
        """Pause the process in *role*, as a machine does that swaps or sleeps."""
        slot = self._slot(role)
        slot.is_paused = True
        self._signal(slot, signal.SIGSTOP)

    def resume(self, role: str) -> None:
        """Resume the paused process in *role*."""
        slot = self._slot(role)
        slot.is_paused = False
        self._signal(slot, signal.SIGCONT)

    def end_all(self, seconds: float = _STOP_SECONDS) -> list[str]:
        """Ask all processes to end. Kill those that have not after *seconds*, and return their names."""
        self._until = 0.0
        for slot in self._slots:
            self._signal(slot, signal.SIGCONT)
            if not slot.is_ending:  # a second SIGTERM would end it at once
                slot.is_ending = True
                self._signal(slot, signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float) -> list[str]:
        """Wait until all processes have ended. Kill those that have not after *seconds*, and return their names."""
        deadline = time.monotonic() + seconds
        late = []
        for slot in self._slots:
            if slot.process is not None:
                slot.process.join(max(0.0, deadline - time.monotonic()))
                if slot.process.exitcode is None:
                    late.append(_name(slot))
                    slot.is_killed = True
                    self._signal(slot, signal.SIGKILL)
                    slot.process.join()
                self._reap(slot)
        self._slots.clear()
        return late

    def _start(self, slot: _RoleSlot) -> None:
        slot.starts += 1
        self.count += 1
        slot.is_ending = slot.is_killed = slot.is_paused = False
        slot.process = self._context.Process(  # type: ignore[attr-defined]  # every context has one
            target=run_role, args=(self._plan, slot.role, slot.starts, self._until), daemon=True, name=_name(slot)
        )
        slot.process.start()
        if slot.starts > 1:
            self._on_replacement(slot.role.name)

    def _reap(self, slot: _RoleSlot) -> None:
        assert slot.process is not None  # noqa: S101 - what has ended was started
        exit_code = slot.process.exitcode
        # A process that gets SIGTERM before it has installed its handler ends at once.
        is_expected = slot.is_killed or (slot.is_ending and exit_code == -signal.SIGTERM)
        if exit_code != 0 and not is_expected:
            self.broken.append(_name(slot))
        if exit_code != 0:
            self._on_death(_name(slot))
        slot.process.close()
        slot.process = None

    def _available(self) -> list[_RoleSlot]:
        """The roles whose process can be the victim of a fault."""
        return [
            slot
            for slot in self._slots
            if slot.process is not None and not (slot.is_paused or slot.is_ending or slot.is_killed)
        ]

    def _slot(self, role: str) -> _RoleSlot:
        return next(slot for slot in self._slots if slot.role.name == role)

    @staticmethod
    def _signal(slot: _RoleSlot, number: int) -> None:
        if slot.process is not None and slot.process.pid is not None and slot.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.process.pid, number)


def _name(slot: _RoleSlot) -> str:
    return f"{slot.role.name}.{slot.starts}"


def _forkserver() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "__main__",
            "sqlmq.verify.workload.run",
            "sqlmq.dialects.postgresql.dialect",
            "sqlmq.dialects.sqlite.dialect",
        ]
    )
    return context
