"""Waiting to be woken, by a thread or in an event loop, without missing what came in between."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from sqlmq.hooks.clock import SYSTEM
from sqlmq.model import timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq.hooks.clock import Runtime
    from sqlmq.model.config import Options
    from sqlmq.model.timing import Deadline, Pause

FEW = 4
"""So many consumers are woken at once: each looks by itself sooner than one look for all would have told it."""


class Wakeups:
    """Counts wake-ups: whoever looks first, and then waits for the count to differ, misses none. Shared by threads."""

    def __init__(self, nudge: Callable[[], None], options: Options, runtime: Runtime = SYSTEM) -> None:
        self._nudge = nudge
        self._options = options
        self._runtime = runtime
        # Never held for longer than it takes to count.
        self._woken = runtime.condition()
        self._alarms: list[Callable[[], None]] = []
        self.count = 0
        """How often there was a wake-up."""
        self.waiters = 0
        """How many wait at this moment."""
        self.awaited_at = -math.inf
        """When somebody last waited, by the monotonic clock; of those who wait no more."""
        self.alone = 0
        """How many wait at this moment for whom nobody else can look."""
        self.patient = 0
        """How many wait at this moment who need not look as long as somebody else does."""
        self.looked_at = -math.inf
        """When somebody else last looked for them and found nothing, by the monotonic clock."""

    def wake(self) -> None:
        """Wake everybody who waits."""
        with self._woken:
            self.count += 1
            self._stir()

    def looked(self, began: float) -> None:
        """Somebody else has looked, from *began* on, and found nothing; -inf if nobody looks any more."""
        with self._woken:
            is_less = began < self.looked_at
            self.looked_at = began
            if is_less:
                self._stir()

    def pause(self, attempt: int, deadline: Deadline, *, may_rest: bool) -> Pause:
        """The wait that begins now, after look number *attempt*; it *may_rest* if others look for whoever waits."""
        least, most = self._options.poll_min_seconds, self._options.poll_max_seconds
        now = self._runtime.monotonic()
        return timing.pause(
            attempt, now, deadline, least=least, most=most, random=self._runtime.random.random(), may_rest=may_rest
        )

    def wait(self, pause: Pause, seen: int) -> bool:
        """Block the thread until there is a wake-up, which may have come since the count *seen*; return whether."""
        with self.awaited(pause), self._woken:
            while self.count == seen and (seconds := self.remaining(pause)) > 0:
                self._woken.wait(seconds)
            return self.count != seen

    def remaining(self, pause: Pause) -> float:
        """How many seconds are left of *pause*."""
        return pause.remaining(self._runtime.monotonic(), self.looked_at)

    @contextlib.contextmanager
    def awaited(self, pause: Pause | None = None, alarm: Callable[[], None] | None = None) -> Iterator[None]:
        """Count somebody who waits, for a *pause* or for somebody who does.

        *alarm* is called, by whatever thread it is, when he has to see how things are.
        """
        alarms = [] if alarm is None else [alarm]
        is_alone = pause is not None and not pause.may_rest
        is_patient = pause is not None and pause.is_patient
        with self._woken:
            self.waiters += 1
            self.alone += is_alone
            self.patient += is_patient
            self._alarms.extend(alarms)
        self._nudge()
        try:
            yield
        finally:
            with self._woken:
                self.awaited_at = self._runtime.monotonic()
                self.waiters -= 1
                self.alone -= is_alone
                self.patient -= is_patient
                for one in alarms:
                    self._alarms.remove(one)

    def _stir(self) -> None:
        self._woken.notify_all()
        for alarm in self._alarms:
            alarm()
