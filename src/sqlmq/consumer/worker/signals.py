"""SIGINT and SIGTERM for one listener, beside other owners of these signals.

A process has one handler for each signal, and a web server, a task runner or the application may own it: before us, or
from some moment on while we listen. So a handler of ours passes each signal on to the handler that it has replaced. It is
removed only where it still stands. Where another handler was put over it, it stays behind and only passes on.

Nothing heavy is imported here: the command has this module before all others.
"""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

    Listener: TypeAlias = Callable[[int, FrameType | None], object]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_process(number: int, _frame: FrameType | None = None) -> None:
    """End the process as the default action of signal *number* does, also where the kernel does not: in process 1."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)


def default_action() -> Listener | signal.Handlers:
    """Return the handler that ends the process. Process 1, of a container, ignores signals that no handler of its own takes.

    https://man7.org/linux/man-pages/man7/pid_namespaces.7.html
    """
    return end_process if os.getpid() == 1 else signal.SIG_DFL


def hear_as_process_1() -> None:
    """From now on, let SIGTERM end the process where the kernel would not let it: in process 1, outside of listeners."""
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end_process)


class SignalLink:
    """Calls *listener* for SIGINT and SIGTERM, from ``install`` to ``remove``, then the handlers that were there before.

    *task* is the task that the listener ends. The handler of ``asyncio.run``, which cancels its main task at Ctrl-C, is not
    called if that is this task.
    """

    def __init__(self, listener: Listener, task: asyncio.Task[object] | None = None) -> None:
        self._listener: Listener | None = listener
        self._task = task
        self._pid = os.getpid()
        self._before: dict[int, Listener | int] = {}
        self._standing: dict[int, Listener | int] = {}
        """The handler that this object has put there."""

    def install(self) -> None:
        """Take both signals.

        Does nothing outside of the main thread, where Python allows no signal handlers. A signal that is ignored stays
        ignored: a program that was started with ``nohup``, or in the background of a shell, has to go on ignoring Ctrl-C. A
        signal whose handler was not set by Python is left to its owner: it could not be called, nor put back.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not None and before is not signal.SIG_IGN:
                self._before[number] = before
                self._put(number, self)

    def remove(self) -> None:
        """Put the handlers from before back, where no other owner has set one meanwhile. Only pass signals on from now on."""
        self._listener = self._task = None
        for number, standing in self._standing.items():
            if signal.getsignal(number) is standing:
                signal.signal(number, self.nearest_before(number))

    def leave_next_to_system(self) -> None:
        """Make the next signal end the process at once, also while Python runs no handlers. Not where others stand above."""
        for number, standing in self._standing.items():
            if signal.getsignal(number) is standing:
                self._put(number, default_action())

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, as its handler."""
        self.arrive(number, frame, is_heard=False)

    @property
    def has_ended(self) -> bool:
        """Whether it was removed, and only passes signals on: also in a forked child, where the listener ends nothing."""
        return self._listener is None or self._pid != os.getpid()

    def nearest_before(self, number: int) -> Listener | int:
        """Return the handler from before, past those of ours that have ended meanwhile."""
        before = self._before[number]
        if isinstance(before, SignalLink) and before.has_ended:
            return before.nearest_before(number)
        return before

    def arrive(self, number: int, frame: FrameType | None, *, is_heard: bool) -> None:
        """Handle a signal that another listener has heard before, or none has."""
        listener = None if self.has_ended else self._listener
        try:
            if listener is not None:
                listener(number, frame)
        finally:
            self._pass_on(number, frame, is_heard=is_heard or listener is not None)

    def _put(self, number: int, handler: Listener | int) -> None:
        self._standing[number] = handler
        signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None, *, is_heard: bool) -> None:
        """Call the handler from before. The default action, which would end the process, only if no listener *is_heard*."""
        before = self._before[number]
        if isinstance(before, SignalLink):
            before.arrive(number, frame, is_heard=is_heard)
        elif not callable(before):
            if not is_heard:
                end_process(number)
        elif not is_heard or not (before in (end_process, signal.default_int_handler) or self._cancels_task(before)):
            before(number, frame)

    def _cancels_task(self, handler: Listener) -> bool:
        """Whether *handler* is that of ``asyncio.run``, and would cancel the task that the listener ends."""
        return isinstance(handler, partial) and handler.keywords.get("main_task", self) is self._task
