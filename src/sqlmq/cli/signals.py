"""SIGINT (Ctrl-C) and SIGTERM, handled only at safe places.

After an exception in the middle of a transaction, its outcome would be unknown. So the signal handler only records the
signal, and the command acts on it at the next safe place. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn, Self

from sqlmq.consumer.worker.signals import SignalLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


_SIGNALS = 64
"""How many signals are read at once: each is one byte."""


class SignalInterrupt(KeyboardInterrupt):
    """A signal asked the command to end. The exit code is 128 plus the number of the signal."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class Stop:
    """Handles SIGINT and SIGTERM inside its ``with`` block."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._action: Callable[[], None] | None = None
        self._link = SignalLink(self._arrive)
        self._wakeup_socket: socket.socket
        self._leaving = ExitStack()

    @property
    def is_requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal_number is not None

    def check(self) -> None:
        """Raise SignalInterrupt if a signal has arrived."""
        if self.signal_number is not None:
            raise SignalInterrupt(self.signal_number)

    def wait(self, seconds: float | None = None, *, reading: int | None = None, writing: int | None = None) -> None:
        """Wait *seconds*, or until a descriptor can be read or written (not on Windows). Without arguments, wait for a signal.

        Raises SignalInterrupt if a signal arrives meanwhile, or has arrived before. A signal between the check and the
        start of ``select`` would not interrupt it. So ``select`` also waits for the byte that Python writes to the wakeup
        socket for each signal.
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
        """Call *action* when a signal arrives inside this block, or at once if one has arrived before."""
        self._action = action
        try:
            if self.is_requested:
                action()
            yield
        finally:
            self._action = None

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise SignalInterrupt when a signal arrives inside this block, or at once if one has arrived before."""
        with self.calling(self._raise):
            yield

    def __enter__(self) -> Self:
        with ExitStack() as leaving:
            self._wakeup_socket, tells = map(leaving.enter_context, socket.socketpair())
            tells.setblocking(False)
            if threading.current_thread() is threading.main_thread():
                leaving.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False))
            leaving.callback(self._link.remove)
            self._link.install()
            self._leaving = leaving.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leaving.close()

    def _arrive(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        self._link.leave_next_to_system()
        if self._action is not None:
            self._action()

    def _raise(self) -> NoReturn:
        assert self.signal_number is not None  # noqa: S101 - called only after a signal has arrived
        raise SignalInterrupt(self.signal_number)
