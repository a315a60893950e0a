"""A thread of one MQ: started on demand, stopped when the MQ closes, left to the parent when the process forks."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sqlmq.hooks.clock import Clock


class BackgroundThread(ABC):
    """An object with a daemon thread, which runs ``run`` from the first ``start`` to ``stop``.

    A fork copies the object but not its thread. In the child, the first ``start`` resets the object, so that the child
    gets a thread of its own; ``stop`` does nothing there before that. Locks are made anew, because a thread that exists
    only in the parent may have held them at the moment of the fork.
    """

    thread_name: ClassVar[str]

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start_over()

    def _start_over(self) -> None:
        """Set the state that belongs to one process: at construction, and in a forked child."""
        self._pid = os.getpid()
        self._changed = self._clock.condition()
        """Guards the state that the thread shares with callers."""
        self._stopping = self._clock.event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def run(self) -> None:
        """Do the work of the thread. Return soon after ``_stopping`` is set."""

    def start(self) -> None:
        """Start the thread if none is alive and the object was not stopped. Thread-safe."""
        self._start_over_if_forked()
        with self._changed:
            if not self._stopping.is_set() and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self.run, name=self.thread_name, daemon=True)
                self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread, and wait up to *timeout* seconds for that. It does not start again."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            thread = self._thread
        self._interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _interrupt(self) -> None:  # noqa: B027 - most threads wait for nothing else
        """End a wait of the thread for anything but ``_changed`` and ``_stopping``."""

    def _start_over_if_forked(self) -> None:
        if self._pid != os.getpid():
            self._start_over()
