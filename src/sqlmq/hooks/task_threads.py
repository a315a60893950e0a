"""Threads for tasks, which start on demand and end by themselves.

A ThreadPoolExecutor refuses tasks as soon as the main thread has ended, though other threads of the program go on, and its
idle threads live until then. These threads run whatever is submitted, also during the end of the process, which waits for
them: they are no daemons. An idle one ends after a moment, so nothing has to end it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_IDLE_SECONDS = 0.05
"""How long a thread waits for its next task. The end of the process waits as long; to start a thread takes 0.1 ms."""


class _Task(NamedTuple):
    future: Future[Any]
    work: Callable[[], Any]

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:  # noqa: BLE001 - raised where the future is read
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class TaskThreads:
    """Up to *most* threads, each with *name* and a number. Thread-safe, without a lock that a caller could hold.

    Without *most*, a task never waits for a thread.
    """

    def __init__(self, name: str, most: int | None = None) -> None:
        self._name = name
        self._most = most
        self._numbers = itertools.count()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._idle: deque[None] = deque()
        """One for each thread that waits for a task, and for which no task is under way."""
        self._threads: set[threading.Thread] = set()
        self._is_shut_down = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run *work* in a thread. Raises RuntimeError, and does not run it, if there is none and none can be started."""
        if self._is_shut_down:
            message = "The threads were shut down."
            raise RuntimeError(message)
        future: Future[T] = Future()
        # First the task, then the look for a thread. A thread that ends does it the other way round, so none is forgotten.
        self._tasks.put(_Task(future, work))
        try:
            self._idle.pop()
        except IndexError:
            if self._most is None or len(self._threads) < self._most:
                self._start(future)
        return future

    def shut_down(self, seconds: float, *, cancel: bool = False) -> None:
        """Refuse tasks, run those that wait, or *cancel* them, and wait up to *seconds* for the threads to end."""
        self._is_shut_down = True
        while cancel:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                break
            if task is not None:
                task.future.cancel()
        # A copy of a set is made in one step; a list of it is not, as the garbage collector may run a finalizer.
        threads = self._threads.copy() - {threading.current_thread()}
        for _ in range(len(self._threads)):
            self._tasks.put(None)
        self._idle.clear()  # a task must not be left to a thread that ends
        deadline = time.monotonic() + seconds
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, future: Future[Any]) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}_{next(self._numbers)}", daemon=False)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException as error:
            self._threads.discard(thread)
            if not isinstance(error, RuntimeError):
                raise  # KeyboardInterrupt: the thread may have started, or not
            # A thread that has another task now takes this one after it.
            is_busy = self._most is not None and bool(self._threads)
            if not is_busy and future.cancel():
                raise

    def _run(self) -> None:
        me = threading.current_thread()
        self._threads.add(me)
        while True:
            task = self._next_task()
            if task is None:
                self._threads.discard(me)
                if self._is_shut_down or self._tasks.empty():
                    return
                self._threads.add(me)
            else:
                task.run()
            del task  # or it would live, with its result, until the next one comes

    def _next_task(self) -> _Task | None:
        """Wait for a task; None if there was none for a while."""
        while True:
            try:
                return self._tasks.get_nowait()
            except Empty:
                pass
            self._idle.append(None)
            try:
                return self._tasks.get(timeout=_IDLE_SECONDS)
            except Empty:
                try:
                    self._idle.pop()
                except IndexError:
                    continue  # a task for this thread is on its way
            return None
