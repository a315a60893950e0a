"""Lets one of several sessions go on at a time, from one statement to the next, in the order it is told.

A session is a thread that runs code of the library. Its connections (`drivers`) ask here before each statement and wait
until it is their turn. One that waits inside the database is noticed, and another one goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

PATIENCE_SECONDS = 30.0
_QUICK_SECONDS = 0.002
"""How long a statement may take before somebody asks what it waits for."""

State = Literal["running", "ready", "blocked", "ended"]

_here = threading.local()


def current() -> Session | None:
    """The session whose thread this is; None for all other threads, which nobody conducts."""
    found: Session | None = getattr(_here, "session", None)
    return found


class Blocked(Protocol):
    """Who waits inside the database for whom."""

    def __call__(self, pids: Collection[int]) -> set[int]:
        """Those of the server's processes *pids* that wait for a lock of another process."""


class AbandonedError(BaseException):
    """The schedule was given up: the session has to end."""


class StuckError(AssertionError):
    """All sessions that have not ended wait for each other."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A moment at which it was decided who goes on."""

    ready: tuple[int, ...]
    """Who could have gone on."""
    before: int | None
    """Who went on before."""
    taken: int
    statement: str
    """What that one did then."""

    def preempts(self, number: int) -> bool:
        """Whether *number*, if it is taken here, interrupts one that could have gone on."""
        return self.before in self.ready and number != self.before


class Session:
    """A thread that stops before each of its statements until it is told to go on."""

    def __init__(self, number: int, body: Callable[[], object], changed: threading.Condition) -> None:
        self.number = number
        self.state: State = "running"
        self.statement = "begins"
        self.error: BaseException | None = None
        self.pid = 0
        """Of the server's process that runs its statement; 0 where there is none."""
        self.has_ended_transaction = False
        self._body = body
        self._changed = changed
        self._turn = threading.Semaphore(0)
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"session-{number}", daemon=True)
        self._thread.start()

    def pause(self, statement: str) -> None:
        """Wait, before *statement*, for the turn. Called by its own thread."""
        if not self._is_abandoned:
            self._stop("ready", statement)

    def refuse(self) -> None:
        """Wait, because another one has the database for itself, until that is over, and for the turn."""
        self._stop("blocked", self.statement)

    def go_on(self) -> None:
        """Give it the turn."""
        self.state = "running"
        self._turn.release()

    def abandon(self) -> None:
        """Have it end; what it still does to the database it does at once."""
        self._is_abandoned = True
        self._turn.release()

    def join(self) -> None:
        """Wait until its thread has ended."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), f"session {self.number} does not end, at {self.statement}"

    def _stop(self, state: State, statement: str) -> None:
        with self._changed:
            self.state, self.statement = state, statement
            self._changed.notify_all()
        self._turn.acquire()
        if self._is_abandoned:
            raise AbandonedError

    def _run(self) -> None:
        _here.session = self
        try:
            self.pause(self.statement)
            self._body()
        except AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - looked at by whoever conducts
            self.error = error
        with self._changed:
            self.state = "ended"
            self._changed.notify_all()


@dataclass
class Conductor:
    """Runs sessions side by side, as a schedule says; where it says nothing, each for as long as it can."""

    blocked: Blocked
    after_transaction: Callable[[], object]
    """Called whenever one has ended, while nobody runs."""
    decisions: list[Decision] = field(default_factory=list)
    has_diverged: bool = False

    def run(self, bodies: Sequence[Callable[[], object]], schedule: Sequence[int]) -> list[BaseException | None]:
        """Run *bodies* to their ends, and return what each has raised.

        Raises StuckError if they wait for each other. Where several wait for one lock, it is the database that chooses
        who is next: if that is another one than *schedule* expects, it is left, and ``has_diverged``.
        """
        self._changed = threading.Condition()
        self._sessions = [Session(number, body, self._changed) for number, body in enumerate(bodies)]
        try:
            self._conduct(list(schedule))
        except BaseException:
            for session in self._sessions:
                session.abandon()
            raise
        finally:
            for session in self._sessions:
                session.join()
        return [session.error for session in self._sessions]

    @property
    def preemptions(self) -> int:
        """How often one was interrupted that could have gone on."""
        return sum(decision.preempts(decision.taken) for decision in self.decisions)

    def _conduct(self, schedule: list[int]) -> None:
        before: int | None = None
        self._settle()
        while ready := tuple(session.number for session in self._sessions if session.state == "ready"):
            taken = before if before in ready else ready[0]
            if schedule and schedule[0] not in ready:
                self.has_diverged = True
                schedule.clear()
            elif schedule:
                taken = schedule.pop(0)
            assert taken is not None
            self.decisions.append(Decision(ready, before, taken, self._sessions[taken].statement))
            before = taken
            self._sessions[taken].go_on()
            if self._settle():
                self.after_transaction()
        stuck = [f"{one.number} at {one.statement}" for one in self._sessions if one.state != "ended"]
        if stuck:
            message = f"the sessions wait for each other: {'; '.join(stuck)}"
            raise StuckError(message)

    def _settle(self) -> bool:
        """Wait until each session has ended, is ready, or waits for one that has stopped; return if transactions ended."""
        with self._changed:
            in_database = [one for one in self._sessions if one.state == "blocked" and one.pid]
            for session in in_database:
                session.state = "running"  # the lock may be free by now
            deadline = time.monotonic() + PATIENCE_SECONDS
            asks_at_once = bool(in_database)
            while running := [one for one in self._sessions if one.state == "running"]:
                if not asks_at_once and self._changed.wait(_QUICK_SECONDS):
                    continue
                asks_at_once = False
                waiting = self.blocked([one.pid for one in running if one.pid])
                if all(one.pid in waiting for one in running):
                    for session in running:
                        session.state = "blocked"
                assert time.monotonic() < deadline, f"neither ends nor waits: {[one.statement for one in running]}"
            has_ended = any(one.has_ended_transaction for one in self._sessions)
            for session in self._sessions:
                session.has_ended_transaction = False
                if has_ended and session.state == "blocked" and not session.pid:
                    session.state = "ready"
            return has_ended
