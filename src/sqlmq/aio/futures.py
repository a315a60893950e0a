"""Waiting in an event loop for what threads do: futures of the core, and wake-ups of a consumer.

All futures that are done together are announced to the loop by one callback. ``asyncio.wrap_future`` makes a callback for
each of them, which costs more than everything else that a message does in the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from sqlmq.background.wakeups import Wakeups
    from sqlmq.model.timing import Deadline

T = TypeVar("T")


class Arrivals(Generic[T]):
    """Futures of threads for any event loop: each loop gets a queue of those that are done."""

    def __init__(self) -> None:
        self._rows: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Row[T]] = weakref.WeakKeyDictionary()

    def of(self, future: Future[T]) -> asyncio.Future[T]:
        """Return a future of the running loop for *future*. Cancelling it cancels *future* unless that has begun."""
        loop = asyncio.get_running_loop()
        row = self._rows.get(loop)
        if row is None:
            row = self._rows[loop] = _Row(loop)
        arrival: asyncio.Future[T] = loop.create_future()
        arrival.add_done_callback(partial(_withdraw, future))
        # Not the method of the future's own class, which keeps the callbacks of applications back. This one takes no time.
        Future.add_done_callback(future, partial(row.add, arrival))
        return arrival


class _Row(Generic[T]):
    """Futures that are done and not yet announced to their loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weakly: the loop is the key of the dictionary that holds this object.
        self._loop = weakref.ref(loop)
        self._done: deque[tuple[asyncio.Future[T], Future[T]]] = deque()
        self._is_announced = False

    def add(self, arrival: asyncio.Future[T], future: Future[T]) -> None:
        """Queue *future*, which is done, for the loop. Any thread may call it."""
        self._done.append((arrival, future))
        loop = self._loop()
        if not self._is_announced and loop is not None:
            self._is_announced = True
            # A closed loop has no task that waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        # First: a future that is queued after the last check below must be announced again.
        self._is_announced = False
        while self._done:
            arrival, future = self._done.popleft()
            if arrival.done():
                continue
            if future.cancelled():
                arrival.cancel()
            elif (error := future.exception()) is not None:
                arrival.set_exception(error)
            else:
                arrival.set_result(future.result())


async def wait_for_wakeup(
    wakeups: Wakeups, attempt: int, deadline: Deadline, seen: int, *, may_delegate: bool = False
) -> bool:
    """Wait after *attempt*, which found nothing; return whether there was a wake-up since the count *seen*.

    The task waits here as a thread does in ``Wakeups.wait``.
    """
    pause = wakeups.pause(attempt, deadline, may_delegate=may_delegate)
    loop = asyncio.get_running_loop()
    is_over = asyncio.Event()

    def callback() -> None:
        # A closed loop has no task to wake.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(is_over.set)

    with wakeups.waiting(pause, callback):
        while wakeups.count == seen and (seconds := wakeups.remaining(pause)) > 0:
            is_over.clear()
            timer = loop.call_later(seconds, is_over.set)
            try:
                await is_over.wait()
            finally:
                timer.cancel()
    return wakeups.count != seen


def _withdraw(future: Future[T], arrival: asyncio.Future[T]) -> None:
    if arrival.cancelled():
        future.cancel()
