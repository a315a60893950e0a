"""The threads in which blocking work runs, and tasks that see it to its end.

A query that is cut off half-way is how connections get lost, so a task that is cancelled waits for the unit of work
that has begun, has what it returned undone, and only then ends. It waits by ``asyncio.wait``, again after each
cancellation: a shield of anyio's holds against cancelled scopes only, not against ``task.cancel()``, which is what
``asyncio.timeout`` uses.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_MOST_THREADS = 16
"""Fewer than there are connections in the pool of our own engine, so that none waits for a connection."""


class Threads:
    """Threads for the units of work of one MQ. Bound to no event loop; works in a forked child too."""

    def __init__(self) -> None:
        self._pid: int
        self._executor: ThreadPoolExecutor
        self._start_over()

    async def run(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Run *work* in a thread and return its result.

        Cancelled before *work* has begun, it does not begin. After that its end is awaited; then *undo* is called, in a
        thread too, with the result that nobody gets any more.
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
        self, work: Callable[[], T], *, name: str = "sqlmq-close", hurry: Callable[[], object] | None = None
    ) -> T:
        """Run *work*, which may take its time, in a thread of its own; once called, it runs, cancelled or not.

        *hurry* is called when the task is cancelled, to have *work* end soon.
        """
        context = contextvars.copy_context()
        future: Future[T] = Future()
        thread = threading.Thread(target=_run, args=(future, lambda: context.run(work)), name=name)
        thread.start()
        interruption = await _end(future, may_cancel=False, hurry=hurry)
        thread.join()
        if interruption is not None:
            raise interruption
        return future.result()

    def shut_down(self) -> None:
        """Wait for the work that has begun, then end the threads."""
        if self._pid == os.getpid():
            self._executor.shutdown()

    def _start(self, work: Callable[[], T]) -> Future[T]:
        if self._pid != os.getpid():
            self._start_over()
        try:
            return self._executor.submit(contextvars.copy_context().run, work)
        except RuntimeError:
            # All is closed, and what is closed refuses without asking the database.
            return _done(work)

    def _start_over(self) -> None:
        """In the beginning, and in a forked child, which inherits no thread."""
        self._pid = os.getpid()
        self._executor = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="sqlmq-aio")


async def to_the_end(work: Coroutine[object, object, T]) -> T:
    """Await *work* to its end, however often the task is cancelled meanwhile; then that cancellation is raised."""
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
    future: Future[T], *, may_cancel: bool, hurry: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Wait until *future* is done, however often the task is cancelled; return the first cancellation.

    That it is raised once is enough: a task counts its cancellations itself, and ``asyncio.timeout`` looks there.
    """
    ended = asyncio.wrap_future(future)
    # Whoever called looks at the future itself; an error that nobody gets is not to be logged as forgotten.
    ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    interruption: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError as error:
            interruption = interruption or error
            if hurry is not None:
                hurry()
            if may_cancel and future.cancel():
                break
    return interruption


def _run(future: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - raised to whoever waits
        future.set_exception(error)
    else:
        future.set_result(result)


def _done(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    _run(future, work)
    return future
