"""Ctrl-C and SIGTERM, let in only where nothing is half done.

An exception in the middle of a transaction would leave open what came of it. So a signal is noted at once, and acts at
the next place that said how. A second one ends the process there and then, for those who can't wait.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn, Self

from sqlmq.consumer.worker import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


_SIGNALS = 64
"""So many are read at once, a byte each."""


class SignalInterrupt(KeyboardInterrupt):
    """A signal asked the command to end; it exits with 128 and the signal's number."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class Stop:
    """Takes SIGINT and SIGTERM for as long as its ``with`` block runs."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._action: Callable[[], None] | None = None
        self._before: signals.Handlers = {}
        self._wakeup_socket: socket.socket
        self._leaving = ExitStack()

    @property
    def is_requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    def check(self) -> None:
        """Raise SignalInterrupt if a signal has come."""
        if self.signal_number is not None:
            raise SignalInterrupt(self.signal_number)

    def wait(self, seconds: float | None = None, *, reading: int | None = None, writing: int | None = None) -> None:
        """Wait *seconds*, or until a descriptor can be read or written (but not on Windows); no argument: for a signal.

        Raises SignalInterrupt if a signal comes meanwhile, or has come before. One that comes while this thread lets go of the
        GIL, about to block, would not interrupt it as it does when it blocks already; so what it wrote is waited for.
        """
        if os.name == "nt" and (reading is not None or writing is not None):
            self.check()
            return
        wakeup = self._wakeup_socket.fileno()
        reads = [wakeup] if reading is None else [wakeup, reading]
        writes = [] if writing is None else [writing]
        is_woken = True
        while is_woken:
            self.check()
            is_woken = wakeup in select.select(reads, writes, [], seconds)[0]
            if is_woken:
                self._wakeup_socket.recv(_SIGNALS)

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
        """Raise SignalInterrupt when a signal comes inside this block, or has come before it."""
        with self.calling(self._raise):
            yield

    def __enter__(self) -> Self:
        with ExitStack() as leaving:
            self._wakeup_socket, tells = map(leaving.enter_context, socket.socketpair())
            tells.setblocking(False)
            if threading.current_thread() is threading.main_thread():
                leaving.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False))
            signals.install(self._arrive, self._before)
            leaving.callback(signals.restore, self._before)
            self._leaving = leaving.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leaving.close()

    def _arrive(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        for taken in self._before:
            signal.signal(taken, signal.SIG_DFL)
        if self._action is not None:
            self._action()

    def _raise(self) -> NoReturn:
        assert self.signal_number is not None  # noqa: S101 - only called when a signal has come
        raise SignalInterrupt(self.signal_number)
