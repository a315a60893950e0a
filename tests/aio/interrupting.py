"""Cancelling a call at each point at which it awaits."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tests.support.awaits import watch_awaits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

T = TypeVar("T")

How = Literal["waiting", "done", "again and again"]
"""Cancelled while it waits; when what it waited for has just happened; or at every point from there on."""

HOWS: tuple[How, ...] = ("waiting", "done", "again and again")


async def _interrupted(coroutine: Coroutine[Any, Any, T], at: int, how: How) -> tuple[T, bool]:
    """Await *coroutine*, cancel the task at its await number *at*; return its result and whether that was reached."""
    task = asyncio.current_task()
    assert task is not None
    awaits = 0

    def cancel(future: asyncio.Future[Any] | None) -> None:
        nonlocal awaits
        awaits += 1
        if awaits <= at or (awaits > at + 1 and how != "again and again"):
            return
        if how == "done" and future is None:  # lets others run
            task.get_loop().call_soon(task.cancel)
        elif how == "done" and future is not None:
            future.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()

    result = await watch_awaits(coroutine, cancel)
    return result, awaits > at


async def cancelled_everywhere(call: Callable[[], Coroutine[Any, Any, T]]) -> AsyncIterator[T | None]:
    """Make *call* again and again, each in a task of its own, cancelled at each point and in each way in turn.

    Gives the result, or None of a call that was cancelled; the caller looks around in between.
    """
    for how in HOWS:
        for at in itertools.count():

            async def interrupted(at: int = at, how: How = how) -> tuple[T, bool]:
                return await _interrupted(call(), at, how)

            task = asyncio.create_task(interrupted())
            await asyncio.wait([task])
            if task.cancelled():
                yield None
                continue
            result, is_reached = task.result()
            yield result
            if not is_reached:
                break
