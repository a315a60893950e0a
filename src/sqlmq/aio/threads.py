"""Threads in which blocking work runs, and how a cancelled task waits for their end.

A query that is cut off half-way loses its connection. So a cancelled task waits for the unit of work that has begun, undoes
its result, and only then ends. It waits by ``asyncio.wait``, again after each cancellation: a shield of anyio only helps
against cancelled scopes, not against ``task.cancel()``, which ``asyncio.timeout`` uses.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlmq.hooks.task_threads import TaskThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_MOST_THREADS = 16
"""Fewer than the connections in our own engine's pool, so that no thread waits for a connection."""
_CLOSE_SECONDS = 10.0
"""How long to wait for work that has begun. Everything is closed by then, so it gets errors."""


class Threads:
    """The threads of one MQ for units of work. For any event loop, and in a forked child too."""

    def __init__(self) -> None:
        self._pid: int
        self._threads: TaskThreads
        self._start_over()

    async def run(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Run *work* in a thread and return its result.

        If the task is cancelled before *work* has begun, *work* does not run. After that, its end is awaited, and then *undo*
        is called with the result, in a thread too.
        """
        future = self._start(work)
        interruption = await _end(future, may_cancel=True)
        if interruption is None:
            return future.result()
        error = None if future.cancelled() else future.exception()
        if undo is not None and not future.cancelled() and error is None:
            undoing = self._start(lambda: undo(future.result()))
            await _end(undoing, may_cancel=False)
            error = undoing.exception()
        raise interruption from error

    async def run_apart(
        self, work: Callable[[], T], *, name: str = "sqlmq-close", shorten: Callable[[], object] | None = None
    ) -> T:
        """Run *work*, which may take long, in a thread of its own. A cancellation does not end it.

        *shorten* is called when the task is cancelled, so that *work* ends soon.
        """
        context = contextvars.copy_context()
        future: Future[T] = Future()
        thread = threading.Thread(target=_run, args=(future, lambda: context.run(work)), name=name)
        thread.start()
        interruption = await _end(future, may_cancel=False, shorten=shorten)
        thread.join()
        if interruption is not None:
            raise interruption
        return future.result()

    def shut_down(self) -> None:
        """Wait for the work that has begun, then end the threads."""
        if self._pid == os.getpid():
            self._threads.shut_down(_CLOSE_SECONDS)

    def _start(self, work: Callable[[], T]) -> Future[T]:
        if self._pid != os.getpid():
            self._start_over()
        try:
            return self._threads.submit(partial(contextvars.copy_context().run, work))
        except RuntimeError:
            # The threads are shut down, so everything is closed and refuses calls without the database; or none can be
            # started, and to block the loop for a while is better than to do nothing.
            return _done(work)

    def _start_over(self) -> None:
        """Set the state that belongs to one process: at construction, and in a forked child, which has no threads."""
        self._pid = os.getpid()
        self._threads = TaskThreads("sqlmq-aio", _MOST_THREADS)


async def to_the_end(work: Coroutine[object, object, T]) -> T:
    """Await *work* to its end, however often the task is cancelled; then raise the first cancellation."""
    ended = asyncio.ensure_future(work)
    interruption: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError as error:
            interruption = interruption or error
    if interruption is not None:
        raise interruption from ended.exception()
    return ended.result()


async def _end(
    future: Future[T], *, may_cancel: bool, shorten: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Wait until *future* is done, however often the task is cancelled; return the first cancellation.

    One is enough to raise: a task counts its cancellations itself, and ``asyncio.timeout`` reads that count.
    """
    ended = asyncio.wrap_future(future)
    # The caller reads the thread's future. Without this, asyncio would log an error of *ended* as never retrieved.
    ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    interruption: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError as error:
            interruption = interruption or error
            if shorten is not None:
                shorten()
            if may_cancel and future.cancel():
                break
    return interruption


def _run(future: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - raised to the caller that waits
        future.set_exception(error)
    else:
        future.set_result(result)


def _done(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    _run(future, work)
    return future
