"""A lock for databases with a single writer or a single connection: one thread at a time, some of them first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlmq.hooks.clock import SYSTEM

if TYPE_CHECKING:
    from sqlmq.hooks.clock import Clock


class WriterLock:
    """A reentrant lock. A thread with priority, as that of heartbeats, waits for one other thread at most."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._priority_changed = clock.condition()
        self._priority_waiters = 0

    def acquire(self, seconds: float, *, priority: bool = False) -> bool:
        """Wait up to *seconds* for the lock; return whether it was acquired.

        With *priority*, the thread passes all that wait already. A thread that holds the lock takes it again like this.
        """
        if priority:
            return self._acquire_first(seconds)
        ends_at = self._clock.monotonic() + seconds
        while self._lock.acquire(timeout=max(0.0, ends_at - self._clock.monotonic())):
            if not self._priority_waiters:
                return True
            # A thread with priority waits: let it pass, and try again when it has the lock.
            self._lock.release()
            with self._priority_changed:
                self._priority_changed.wait_for(self._may_try_again, max(0.0, ends_at - self._clock.monotonic()))
        return False

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _may_try_again(self) -> bool:
        return not self._priority_waiters

    def _acquire_first(self, seconds: float) -> bool:
        with self._priority_changed:
            self._priority_waiters += 1
        try:
            return self._lock.acquire(timeout=seconds)
        finally:
            with self._priority_changed:
                self._priority_waiters -= 1
                self._priority_changed.notify_all()
