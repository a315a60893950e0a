"""A lock for databases with a single writer or a single connection: one thread at a time, some of them first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlmq.hooks.clock import SYSTEM
from sqlmq.hooks.log_hold import hold_records_under

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sqlmq.hooks.clock import Clock


class WriterLock:
    """A reentrant lock. A thread with priority, as that of heartbeats, waits for one other thread at most.

    Log records are held under it, but not in threads that are *exempt*.
    """

    def __init__(self, clock: Clock = SYSTEM, exempt: Collection[int] = ()) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        hold_records_under(self._lock, exempt)
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

    @property
    def release(self) -> Callable[[], None]:
        """Releases the lock. Raises RuntimeError if this thread does not hold it.

        Not a method, because a signal handler may run, and raise, when Python begins a function: between the ``finally`` that
        calls it and the release.
        """
        return self._lock.release

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the lock."""
        # What threading.Condition asks. A note of our own could be wrong after an interrupt.
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]  # noqa: SLF001 - see above

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
