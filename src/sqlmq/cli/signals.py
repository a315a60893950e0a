"""Ctrl-C and SIGTERM, let in only where nothing is half done.

An exception in the middle of a transaction would leave open what came of it. So a signal is noted at once, and acts at
the next place that said how. A second one ends the process there and then, for those who can't wait.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Self

from sqlmq import stop_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end; it exits with 128 and the signal's number."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class Stop:
    """Takes SIGINT and SIGTERM for as long as its ``with`` block runs."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._action: Callable[[], None] | None = None
        self._before: stop_signals.Handlers = {}

    @property
    def is_requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    @contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """Call *action* when a signal comes inside this block, or has come before it."""
        self._action = action
        try:
            if self.is_requested:
                action()
            yield
        finally:
            self._action = None

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise Interrupted when a signal comes inside this block, or has come before it."""
        with self.calling(self._raise):
            yield

    def __enter__(self) -> Self:
        stop_signals.take(self._arrive, self._before)
        return self

    def __exit__(self, *_error: object) -> None:
        stop_signals.give_back(self._before)

    def _arrive(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        for taken in self._before:
            signal.signal(taken, signal.SIG_DFL)
        if self._action is not None:
            self._action()

    def _raise(self) -> NoReturn:
        assert self.signal_number is not None  # noqa: S101 - only called when a signal has come
        raise Interrupted(self.signal_number)
