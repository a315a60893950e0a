"""How many transactions are under way, so that closing, and a fork, can wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlmq.hooks.clock import Clock


class DrainGate:
    """Counts those who are in blocks of it: ``with usage:``. May be shared by threads.

    *check* is called before somebody is counted, and may raise.
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
        """Wait up to *seconds* for those who are in it, and do *then* before anybody else comes in."""
        with self._changed:
            self._changed.wait_for(self.is_unused, seconds)
            then()

    def close_and_wait(self, seconds: float) -> None:
        """As ``end``; nobody comes in, or out, until ``release``."""
        self._changed.acquire()
        self._changed.wait_for(self.is_unused, seconds)

    def release(self) -> None:
        """Let others in again."""
        self._changed.release()

    def is_unused(self) -> bool:
        """Whether nobody is in it."""
        return not self._count
