"""One thread at a time, where a database has room for one writer or has a single connection."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlmq.hooks.clock import SYSTEM

if TYPE_CHECKING:
    from sqlmq.hooks.clock import Clock


class WriterLock:
    """A lock that its thread may take again, and that lets pass whoever cannot wait behind all the others."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._passed = clock.condition()
        self._going_first = 0

    def acquire(self, seconds: float, *, goes_first: bool = False) -> bool:
        """Wait up to *seconds* for the turn; return whether it came.

        Whoever *goes_first* waits for the one who has it, however many wait already. Inside a turn, take another one so.
        """
        if goes_first:
            return self._go_first(seconds)
        ends_at = self._clock.monotonic() + seconds
        while self._lock.acquire(timeout=max(0.0, ends_at - self._clock.monotonic())):
            if not self._going_first:
                return True
            self._lock.release()
            with self._passed:
                self._passed.wait_for(lambda: not self._going_first, max(0.0, ends_at - self._clock.monotonic()))
        return False

    def release(self) -> None:
        """Be done."""
        self._lock.release()

    def _go_first(self, seconds: float) -> bool:
        with self._passed:
            self._going_first += 1
        try:
            return self._lock.acquire(timeout=seconds)
        finally:
            with self._passed:
                self._going_first -= 1
                self._passed.notify_all()
