"""The processes of a run. Each plays a role; when its life is over, by whatever end, another life goes on in the role.

They are forked from a server that has imported everything and opened nothing, so that a new life costs some 30 ms.
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
"""What a life exits with that met an error which it should not meet."""

_PATIENCE_SECONDS = 20.0
_POLL_SECONDS, _COMMIT_SECONDS = 0.2, 0.1
_NAP_SECONDS = 0.1
_NOTICED_SHARE = 3
"""A lease is in danger when so big a part of it, one in so many, has gone by."""


@dataclass(frozen=True, slots=True)
class Role:
    """What one process after the other does."""

    name: str
    work: Callable[[Life], None]
    topic: str
    group: str | None = None
    variant: int = 0
    """Which of several ways of doing it."""
    drains: bool = False
    """Whether it ends when its group has read everything, rather than when it is told to."""


class Life:
    """What a process knows of itself: one life in a role."""

    def __init__(self, plan: Plan, role: Role, number: int, until: float) -> None:
        self.plan = plan
        self.role = role
        self.name = f"{role.name}.{number}"
        self.number = number
        self.chosen: random.Random = plan.chosen(role.name, number)
        self.recorder = Recorder(plan.directory / f"{self.name}.jsonl", self.name)
        self._until = until
        self._ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._ended.set())
        # Ctrl-C is for the process that started us.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._look_for_stalls, daemon=True).start()

    def open(self) -> MQ:
        """The queue of the run. All times are short, so that much happens in it."""
        return MQ(
            self.plan.url,
            schema=self.plan.schema,
            lease_seconds=self.plan.lease_seconds,
            poll_max_seconds=_POLL_SECONDS,
            commit_interval_seconds=_COMMIT_SECONDS,
        )

    def open_async(self) -> AsyncMQ:
        """The same for an event loop."""
        return AsyncMQ(
            self.plan.url,
            schema=self.plan.schema,
            lease_seconds=self.plan.lease_seconds,
            poll_max_seconds=_POLL_SECONDS,
            commit_interval_seconds=_COMMIT_SECONDS,
        )

    def may_await(self, *, in_transactions: bool = False) -> bool:
        """Whether it may use an event loop: one that drains watches itself, and SQLite lacks a driver of its own for it."""
        return not self.role.drains and (self.plan.is_postgres or not in_transactions)

    @property
    def goes_on(self) -> bool:
        """Whether it is to do something more."""
        return not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether it is to end."""
        return self._ended.is_set() or time.monotonic() >= self._until

    @property
    def seconds_left(self) -> float:
        """How long it has, at most."""
        return max(0.0, self._until - time.monotonic())

    def end(self) -> None:
        """Do nothing more."""
        self._ended.set()

    @contextlib.contextmanager
    def noticing_stalls(self, seconds: float) -> Iterator[None]:
        """Tell if the block, which should take no more than *seconds*, takes so long that a lease may be over."""
        began = time.monotonic_ns()
        try:
            yield
        finally:
            self.note_stall(began, seconds)

    def note_stall(self, began: int, seconds: float) -> None:
        """The same for what *began* at that moment, and is over."""
        took_seconds = (time.monotonic_ns() - began) / 1e9
        if took_seconds - seconds > self.plan.lease_seconds / _NOTICED_SHARE:
            self.recorder.note("stalled", seconds=took_seconds)

    def _look_for_stalls(self) -> None:
        """Tell whenever this process did not run: a busy machine does to members what a pause does."""
        while True:
            with self.noticing_stalls(_NAP_SECONDS):
                time.sleep(_NAP_SECONDS)

    def pause(self, seconds: float) -> None:
        """Do nothing for so long, unless it is over before."""
        if seconds > 0:
            self._ended.wait(min(seconds, self.seconds_left))


def live(plan: Plan, role: Role, number: int, until: float) -> None:
    """Live one life: what a process runs."""
    path = plan.directory / f"{role.name}.{number}.stderr"
    errors = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        if plan.process_hook is not None:
            pkgutil.resolve_name(plan.process_hook)(plan.chosen("hook", role.name, number))
        role.work(Life(plan, role, number, until))
    except BaseException:  # noqa: BLE001 - told, and judged by the exit code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)


@dataclass(eq=False)
class _Place:
    """A role, and the process that plays it at this moment."""

    role: Role
    lives: int = 0
    process: BaseProcess | None = None
    is_paused: bool = False
    is_ending: bool = False
    """Whether it was asked to end."""
    is_killed: bool = False
    next_at: float = field(default=0.0)
    """When another life begins, if there is none now."""


class Lives:
    """The processes of a run, looked after by one thread.

    *died* is called with the name of each that did not end in good order, *replaced* with each role in which another
    life has begun.
    """

    def __init__(
        self, plan: Plan, until: float, died: Callable[[str], None], replaced: Callable[[str], None] = lambda _: None
    ) -> None:
        self._plan = plan
        self._until = until
        self._died = died
        self._replaced = replaced
        self._context = _context()
        self._places: list[_Place] = []
        self.broken: list[str] = []
        """Lives that met an error which they should not meet."""
        self.count = 0
        """How many lives there were."""

    def add(self, roles: Iterable[Role]) -> None:
        """Have processes play *roles*."""
        for role in roles:
            place = _Place(role)
            self._places.append(place)
            self._begin(place)

    def look(self) -> None:
        """Note which lives are over, and begin others."""
        now = time.monotonic()
        for place in self._places:
            if place.process is not None and place.process.exitcode is not None:
                self._bury(place)
            if place.process is None and now >= place.next_at and now < self._until and not place.role.drains:
                self._begin(place)

    def victim(self, share: float, prefix: str = "") -> str | None:
        """A role that is played at this moment: the one at *share* of all whose names begin with *prefix*."""
        found = [place.role.name for place in self._able() if place.role.name.startswith(prefix)]
        return found[int(share * len(found))] if found else None

    @property
    def paused(self) -> list[str]:
        """The roles whose processes are stopped."""
        return [place.role.name for place in self._places if place.is_paused]

    def name(self, role: str) -> str:
        """The name of the life in *role*."""
        return _name(self._place(role))

    def kill(self, role: str, pause: float) -> None:
        """Kill the process in *role* as a crash does; the next comes after *pause* seconds."""
        place = self._place(role)
        place.is_killed = True
        place.next_at = time.monotonic() + pause
        self._signal(place, signal.SIGKILL)

    def end(self, role: str, pause: float) -> None:
        """Ask the process in *role* to end in good order; the next comes after *pause* seconds."""
        place = self._place(role)
        place.is_ending = True
        place.next_at = time.monotonic() + pause
        self._signal(place, signal.SIGTERM)

    def stop(self, role: str) -> None:
        """Stop the process in *role*, as a machine does that swaps or sleeps."""
        place = self._place(role)
        place.is_paused = True
        self._signal(place, signal.SIGSTOP)

    def go_on(self, role: str) -> None:
        """Let the process in *role* go on."""
        place = self._place(role)
        place.is_paused = False
        self._signal(place, signal.SIGCONT)

    def end_all(self, seconds: float = _PATIENCE_SECONDS) -> list[str]:
        """Let all end in good order, and kill those that have not within *seconds*: return their names."""
        self._until = 0.0
        for place in self._places:
            self._signal(place, signal.SIGCONT)
            if not place.is_ending:  # a second signal would end it at once
                place.is_ending = True
                self._signal(place, signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float) -> list[str]:
        """Wait until all have ended; kill those that have not within *seconds*, and return their names."""
        deadline = time.monotonic() + seconds
        late = []
        for place in self._places:
            if place.process is not None:
                place.process.join(max(0.0, deadline - time.monotonic()))
                if place.process.exitcode is None:
                    late.append(_name(place))
                    place.is_killed = True
                    self._signal(place, signal.SIGKILL)
                    place.process.join()
                self._bury(place)
        self._places.clear()
        return late

    def _begin(self, place: _Place) -> None:
        place.lives += 1
        self.count += 1
        place.is_ending = place.is_killed = place.is_paused = False
        place.process = self._context.Process(  # type: ignore[attr-defined]  # every context has one
            target=live, args=(self._plan, place.role, place.lives, self._until), daemon=True, name=_name(place)
        )
        place.process.start()
        if place.lives > 1:
            self._replaced(place.role.name)

    def _bury(self, place: _Place) -> None:
        assert place.process is not None  # noqa: S101 - what has ended had begun
        exit_code = place.process.exitcode
        # One that is asked to end before it has learnt to listen ends at once.
        is_expected = place.is_killed or (place.is_ending and exit_code == -signal.SIGTERM)
        if exit_code != 0 and not is_expected:
            self.broken.append(_name(place))
        if exit_code != 0:
            self._died(_name(place))
        place.process.close()
        place.process = None

    def _able(self) -> list[_Place]:
        return [
            place
            for place in self._places
            if place.process is not None and not (place.is_paused or place.is_ending or place.is_killed)
        ]

    def _place(self, role: str) -> _Place:
        return next(place for place in self._places if place.role.name == role)

    @staticmethod
    def _signal(place: _Place, number: int) -> None:
        if place.process is not None and place.process.pid is not None and place.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(place.process.pid, number)


def _name(place: _Place) -> str:
    return f"{place.role.name}.{place.lives}"


def _context() -> BaseContext:
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
