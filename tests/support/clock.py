"""A clock that stands still until a test advances it."""

from __future__ import annotations

import threading
from random import Random
from typing import TYPE_CHECKING, TypeVar

from sqlmq.testing import Clock
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class ManualClock:
    """A clock that only ``advance`` moves, and the waits on it. May be shared by threads."""

    def __init__(self, *, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._now = 1_000.0
        self._waits: list[tuple[_Condition, float]] = []
        self.clock = Clock(
            monotonic=self.monotonic,
            sleep=self._sleep,
            condition=lambda: _Condition(self),
            event=lambda: _Event(self),
            random=Random(seed),
        )
        """The argument of an MQ."""

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward, and wake the threads whose wait has ended by that."""
        with self._lock:
            self._now += seconds
            over = [condition for condition, until in self._waits if until <= self._now]
        for condition in over:
            with condition:
                condition.notify_all()

    def waits(self) -> list[float]:
        """Return how many seconds each waiting thread still waits, the shortest wait first."""
        with self._lock:
            return sorted(until - self._now for _, until in self._waits)

    def _sleep(self, seconds: float) -> None:
        _Event(self).wait(seconds)

    def _begin(self, condition: _Condition, seconds: float) -> tuple[_Condition, float]:
        # Under the lock of `advance`, so that no advance is missed between reading the clock and waiting.
        with self._lock:
            wait = (condition, self._now + seconds)
            self._waits.append(wait)
            return wait

    def _end(self, wait: tuple[_Condition, float]) -> bool:
        with self._lock:
            self._waits.remove(wait)
            return self._now < wait[1]


class _Condition(threading.Condition):
    """Waits until the manual clock has moved by the timeout; fails if that does not happen for a long time."""

    def __init__(self, clock: ManualClock, lock: threading.Lock | None = None) -> None:
        super().__init__(lock)
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None or timeout >= threading.TIMEOUT_MAX:
            return super().wait()
        wait = self._clock._begin(self, timeout)
        is_notified = timeout <= 0 or super().wait(PATIENCE_SECONDS)
        is_in_time = self._clock._end(wait)
        assert is_notified, f"the clock was not advanced by the {timeout} seconds that a thread waits"
        return is_in_time

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        until = None if timeout is None else self._clock.monotonic() + timeout
        while not (found := predicate()):
            left = None if until is None else until - self._clock.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return found


class _Event(threading.Event):
    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._cond = _Condition(clock, threading.Lock())
