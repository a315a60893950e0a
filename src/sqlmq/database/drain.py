"""Counts the uses of a database, so that closing, and a fork, can wait until they have ended.

A thread never waits for its own: a signal handler, or an event of the engine, may close and fork in the middle of a block.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlmq.hooks.clock import Clock


class DrainGate:
    """Counts the blocks under way: ``with gate:``. Thread-safe.

    *check* is called before a block begins, under the lock, and may raise.
    """

    # No generator: with one, each of the blocks on the way of a message takes three times as long.
    __slots__ = ("_changed", "_check", "_inside", "_is_awaited")

    def __init__(self, clock: Clock, check: Callable[[], None]) -> None:
        self._changed = clock.condition()
        self._check = check
        self._inside: list[int] = []
        """The threads inside a block. A thread in nested blocks is listed several times."""
        self._is_awaited = False
        """Whether a thread has waited for the end of blocks, or does so now."""

    def __enter__(self) -> None:
        with self._changed:
            self._check()
            self._inside.append(get_ident())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._inside.remove(get_ident())
            if self._is_awaited:
                self._changed.notify_all()

    def drain(self, seconds: float, then: Callable[[], None]) -> None:
        """Wait up to *seconds* until no other thread is in a block, and call *then* before another can begin."""
        with self._changed:
            self._is_awaited = True
            self._changed.wait_for(self.is_unused, seconds)
            then()

    def close_and_wait(self, seconds: float) -> bool:
        """Wait up to *seconds* until no other thread is in a block. None begins, or ends, until ``release``.

        Return False, and do nothing, if another thread does so and does not release.
        """
        if not self._changed.acquire(timeout=seconds):
            return False
        self._is_awaited = True
        self._changed.wait_for(self.is_unused, seconds)
        return True

    def release(self) -> None:
        """Allow blocks to begin again."""
        self._changed.release()

    @property
    def is_empty(self) -> bool:
        """Whether no thread is in a block."""
        return not self._inside

    def is_unused(self) -> bool:
        """Whether no other thread is in a block."""
        me = get_ident()
        return all(thread == me for thread in self._inside)
