"""Waiting for messages, in a thread or an event loop, without missing a wake-up that comes in between.

``registry`` calls ``wake``, for the notifier, the listener and the poller.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from sqlmq.hooks.clock import SYSTEM
from sqlmq.model import timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlmq.background.registry import MemberRegistry
    from sqlmq.hooks.clock import Clock
    from sqlmq.model.config import MQConfig
    from sqlmq.model.timing import Deadline, PollWait


class Wakeups:
    """Counts the wake-ups of one member. Thread-safe.

    A thread reads ``count``, polls, and then waits for another count: so it misses no wake-up. The *registry* is called
    whenever a wait begins, so that the threads which end waits run.
    """

    def __init__(self, registry: MemberRegistry, config: MQConfig, clock: Clock = SYSTEM) -> None:
        self._registry = registry
        self._config = config
        self._clock = clock
        # Never held for longer than it takes to count.
        self._changed = clock.condition()
        self._callbacks: list[Callable[[], None]] = []
        self.count = 0
        """How often there was a wake-up."""
        self.waiters = 0
        """How many threads and tasks wait at this moment."""
        self.waited_at = -math.inf
        """When the last wait ended, by the monotonic clock."""
        self.self_polling = 0
        """The number of waits that must poll by themselves, because the shared poller cannot poll for them."""
        self.delegated = 0
        """The number of waits that need no poll of their own while the shared poller works."""
        self.polled_at = -math.inf
        """When the last shared poll began that found nothing for this member, by the monotonic clock."""

    def wake(self) -> None:
        """End all waits."""
        with self._changed:
            self.count += 1
            callbacks = self._notify()
        for callback in callbacks:
            callback()

    def polled(self, began: float) -> None:
        """Note that a shared poll, which *began* then, found nothing; -inf if shared polls have ceased."""
        with self._changed:
            is_less = began < self.polled_at
            self.polled_at = began
            # Waits may be over sooner than they took for granted.
            callbacks = self._notify() if is_less else ()
        for callback in callbacks:
            callback()

    def pause(self, attempt: int, deadline: Deadline, *, may_delegate: bool) -> PollWait:
        """Return the wait that begins now, after poll number *attempt*; *may_delegate* if a shared poll can look for it."""
        return timing.pause(
            attempt,
            self._clock.monotonic(),
            deadline,
            least=self._config.poll_min_seconds,
            most=self._config.poll_max_seconds,
            random=self._clock.random.random(),
            may_delegate=may_delegate,
        )

    def wait(self, pause: PollWait, seen: int) -> bool:
        """Block the thread for *pause*, or until a wake-up since the count *seen*; return whether there was one."""
        with self.waiting(pause), self._changed:
            while self.count == seen and (seconds := self.remaining(pause)) > 0:
                self._changed.wait(seconds)
            return self.count != seen

    def remaining(self, pause: PollWait) -> float:
        """Return how many seconds are left of *pause*."""
        return pause.remaining(self._clock.monotonic(), self.polled_at)

    @contextlib.contextmanager
    def waiting(self, pause: PollWait | None = None, callback: Callable[[], None] | None = None) -> Iterator[None]:
        """Count a wait as long as the block lasts.

        *callback* is called, in the thread that ends waits, when the waiting task has to check ``count`` and
        ``remaining``.
        """
        callbacks = [] if callback is None else [callback]
        is_self_polling = pause is not None and not pause.may_delegate
        is_delegated = pause is not None and pause.is_delegated
        with self._changed:
            self.waiters += 1
            self.self_polling += is_self_polling
            self.delegated += is_delegated
            self._callbacks.extend(callbacks)
        try:
            self._registry.on_wait()
            yield
        finally:
            with self._changed:
                self.waited_at = self._clock.monotonic()
                self.waiters -= 1
                self.self_polling -= is_self_polling
                self.delegated -= is_delegated
                for added in callbacks:
                    self._callbacks.remove(added)

    def _notify(self) -> Sequence[Callable[[], None]]:
        """Wake the threads. Return what has to be called, without the lock, to wake the tasks."""
        self._changed.notify_all()
        return tuple(self._callbacks)
