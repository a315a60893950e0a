"""Waiting to be woken, by a thread or in an event loop, without missing what came in between."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from sqlmq.hooks.clock import SYSTEM
from sqlmq.model import timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq.hooks.clock import Clock
    from sqlmq.model.config import MQConfig
    from sqlmq.model.timing import Deadline, PollWait

FEW = 4
"""So many consumers are woken at once: each looks by itself sooner than one look for all would have told it."""


class Wakeups:
    """Counts wake-ups: whoever looks first, and then waits for the count to differ, misses none. Shared by threads."""

    def __init__(self, on_wait: Callable[[], None], options: MQConfig, clock: Clock = SYSTEM) -> None:
        self._on_wait = on_wait
        self._options = options
        self._clock = clock
        # Never held for longer than it takes to count.
        self._woken = clock.condition()
        self._callbacks: list[Callable[[], None]] = []
        self.count = 0
        """How often there was a wake-up."""
        self.waiters = 0
        """How many wait at this moment."""
        self.waited_at = -math.inf
        """When somebody last waited, by the monotonic clock; of those who wait no more."""
        self.self_polling = 0
        """How many wait at this moment for whom nobody else can look."""
        self.delegated = 0
        """How many wait at this moment who need not look as long as somebody else does."""
        self.polled_at = -math.inf
        """When somebody else last looked for them and found nothing, by the monotonic clock."""

    def wake(self) -> None:
        """Wake everybody who waits."""
        with self._woken:
            self.count += 1
            self._notify()

    def polled(self, began: float) -> None:
        """Somebody else has looked, from *began* on, and found nothing; -inf if nobody looks any more."""
        with self._woken:
            is_less = began < self.polled_at
            self.polled_at = began
            if is_less:
                self._notify()

    def pause(self, attempt: int, deadline: Deadline, *, may_delegate: bool) -> PollWait:
        """The wait that begins now, after look number *attempt*; it *may_rest* if others look for whoever waits."""
        least, most = self._options.poll_min_seconds, self._options.poll_max_seconds
        now = self._clock.monotonic()
        return timing.pause(
            attempt,
            now,
            deadline,
            least=least,
            most=most,
            random=self._clock.random.random(),
            may_delegate=may_delegate,
        )

    def wait(self, pause: PollWait, seen: int) -> bool:
        """Block the thread until there is a wake-up, which may have come since the count *seen*; return whether."""
        with self.waiting(pause), self._woken:
            while self.count == seen and (seconds := self.remaining(pause)) > 0:
                self._woken.wait(seconds)
            return self.count != seen

    def remaining(self, pause: PollWait) -> float:
        """How many seconds are left of *pause*."""
        return pause.remaining(self._clock.monotonic(), self.polled_at)

    @contextlib.contextmanager
    def waiting(self, pause: PollWait | None = None, callback: Callable[[], None] | None = None) -> Iterator[None]:
        """Count somebody who waits, for a *pause* or for somebody who does.

        *alarm* is called, by whatever thread it is, when he has to see how things are.
        """
        alarms = [] if callback is None else [callback]
        is_alone = pause is not None and not pause.may_delegate
        is_patient = pause is not None and pause.is_delegated
        with self._woken:
            self.waiters += 1
            self.self_polling += is_alone
            self.delegated += is_patient
            self._callbacks.extend(alarms)
        self._on_wait()
        try:
            yield
        finally:
            with self._woken:
                self.waited_at = self._clock.monotonic()
                self.waiters -= 1
                self.self_polling -= is_alone
                self.delegated -= is_patient
                for one in alarms:
                    self._callbacks.remove(one)

    def _notify(self) -> None:
        self._woken.notify_all()
        for callback in self._callbacks:
            callback()
