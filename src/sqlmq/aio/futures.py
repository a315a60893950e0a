"""Futures of the core, for an event loop: all that are done together are told by one wake-up.

``asyncio.wrap_future`` wakes the loop for each of them, which costs more than all else that a message does there.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")


class Arrivals(Generic[T]):
    """Bound to no event loop: there is a row of what is done for each that asks."""

    def __init__(self) -> None:
        self._rows: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Row[T]] = weakref.WeakKeyDictionary()

    def of(self, future: Future[T]) -> asyncio.Future[T]:
        """What *future* will bring, for the loop that runs. Cancelling it cancels *future*, if that has not begun."""
        loop = asyncio.get_running_loop()
        row = self._rows.get(loop)
        if row is None:
            row = self._rows[loop] = _Row(loop)
        arrival: asyncio.Future[T] = loop.create_future()
        arrival.add_done_callback(partial(_withdraw, future))
        future.add_done_callback(partial(row.add, arrival))
        return arrival


class _Row(Generic[T]):
    """What is done and not told yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weakly, for it is the key under which this is kept.
        self._loop = weakref.ref(loop)
        self._done: deque[tuple[asyncio.Future[T], Future[T]]] = deque()
        self._is_announced = False

    def add(self, arrival: asyncio.Future[T], future: Future[T]) -> None:
        """Keep *future*, which is done, for the loop; by whatever thread."""
        self._done.append((arrival, future))
        loop = self._loop()
        if not self._is_announced and loop is not None:
            self._is_announced = True
            # A loop that is closed has nobody to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        # First: what is added after the last look below is announced anew.
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


def _withdraw(future: Future[T], arrival: asyncio.Future[T]) -> None:
    if arrival.cancelled():
        future.cancel()
