"""Waiting to be woken, by a thread or in an event loop, without missing what came in between."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Wakeups:
    """Counts wake-ups: whoever looks first, and then waits for the count to differ, misses none. Shared by threads."""

    def __init__(self, nudge: Callable[[], None]) -> None:
        self._nudge = nudge
        # Never held for longer than it takes to count.
        self._woken = threading.Condition()
        self._alarms: list[Callable[[], None]] = []
        self.count = 0
        """How often there was a wake-up."""
        self.waiters = 0
        """How many wait at this moment."""
        self.awaited_at = -math.inf
        """When somebody last waited, by the monotonic clock; of those who wait no more."""

    def wake(self) -> None:
        """Wake everybody who waits."""
        with self._woken:
            self.count += 1
            self._woken.notify_all()
            for alarm in self._alarms:
                alarm()

    def wait(self, seconds: float, seen: int) -> bool:
        """Block the thread until there is a wake-up, which may have come since the count *seen*; return whether."""
        with self.awaited(), self._woken:
            return self._woken.wait_for(lambda: self.count != seen, seconds)

    @contextlib.contextmanager
    def awaited(self, alarm: Callable[[], None] | None = None) -> Iterator[None]:
        """Count somebody who waits; *alarm* is called at each wake-up, by whatever thread wakes."""
        alarms = [] if alarm is None else [alarm]
        with self._woken:
            self.waiters += 1
            self._alarms.extend(alarms)
        self._nudge()
        try:
            yield
        finally:
            with self._woken:
                self.awaited_at = time.monotonic()
                self.waiters -= 1
                for one in alarms:
                    self._alarms.remove(one)
