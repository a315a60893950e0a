"""Counts the uses of a database, so that closing, and a fork, can wait until they have ended."""

from __future__ import annotations

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
    __slots__ = ("_changed", "_check", "_count")

    def __init__(self, clock: Clock, check: Callable[[], None]) -> None:
        self._changed = clock.condition()
        self._check = check
        self._count = 0

    def __enter__(self) -> None:
        with self._changed:
            self._check()
            self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._count -= 1
            if not self._count:
                self._changed.notify_all()

    def drain(self, seconds: float, then: Callable[[], None]) -> None:
        """Wait up to *seconds* until no block is under way, and call *then* before another can begin."""
        with self._changed:
            self._changed.wait_for(self.is_unused, seconds)
            then()

    def close_and_wait(self, seconds: float) -> None:
        """Wait up to *seconds* until no block is under way. None begins, or ends, until ``release``."""
        self._changed.acquire()
        self._changed.wait_for(self.is_unused, seconds)

    def release(self) -> None:
        """Allow blocks to begin again."""
        self._changed.release()

    def is_unused(self) -> bool:
        """Whether no block is under way."""
        return not self._count
