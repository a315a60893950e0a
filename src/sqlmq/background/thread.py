"""A thread of one MQ: started on demand, stopped when the MQ closes, left to the parent when the process forks."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from sqlmq.hooks.clock import Clock

log = logging.getLogger("sqlmq.background")

_RESTART_SECONDS = 1.0
_STOP_SECONDS = 5.0
"""How long to wait for a thread that is told to end: it may be in a statement, or in a log handler of the application."""


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
        """The last thread. It is not alive if it has ended, or if it could not be started."""
        self._has_failed = False
        """Whether the last attempt to start it failed."""

    @abstractmethod
    def run(self) -> None:
        """Do the work of the thread. Return soon after ``_stopping`` is set."""

    def start(self) -> None:
        """Start the thread if none is alive and the object was not stopped. Thread-safe.

        Raises RuntimeError if the process can start no thread now. The next call tries again.
        """
        self._start_over_if_forked()
        # Without the lock: a thread that was woken just now may have it.
        if self._thread is not None and self._thread.is_alive():
            return
        with self._changed:
            if not self._stopping.is_set() and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._keep_running, name=self.thread_name, daemon=True)
                self._thread.start()
                self._has_failed = False

    def _keep_running(self) -> None:
        """Run, and again after an error, as of a log handler: without this thread, members would silently lose their leases."""
        while True:
            try:
                self.run()
            except Exception:  # noqa: BLE001 - reported as Python reports the end of a thread
                with contextlib.suppress(Exception):  # the hook may be the application's
                    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
                if not self._stopping.wait(_RESTART_SECONDS):
                    continue
            return

    def try_to_start(self) -> None:
        """As ``start``, for a thread that can be late: if it can't be started now, only the log tells. Not with the lock."""
        try:
            self.start()
        except RuntimeError as error:
            has_failed, self._has_failed = self._has_failed, True
            if not has_failed:
                log.warning(
                    "The thread %s can't be started, and what it does is late: %s",
                    self.thread_name,
                    error,
                    extra=log_fields("thread missing", error=error),
                )

    def stop(self, timeout: float = _STOP_SECONDS) -> None:
        """End the thread, and wait up to *timeout* seconds for that. It does not start again."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            thread = self._thread
        self._interrupt()
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(timeout)

    def _interrupt(self) -> None:  # noqa: B027 - most threads wait for nothing else
        """End a wait of the thread for anything but ``_changed`` and ``_stopping``."""

    def _start_over_if_forked(self) -> None:
        if self._pid != os.getpid():
            self._start_over()
