"""Cancelling a call at each point at which it awaits."""

from __future__ import annotations

import asyncio
import itertools
import types
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator

T = TypeVar("T")

How = Literal["waiting", "done", "again and again"]
"""Cancelled while it waits; when what it waited for has just happened; or at every point from there on."""

HOWS: tuple[How, ...] = ("waiting", "done", "again and again")


@types.coroutine
def _interrupted(coroutine: Coroutine[Any, Any, T], at: int, how: How) -> Generator[Any, Any, tuple[T, bool]]:
    """Await *coroutine*, cancel the task at its await number *at*; return its result and whether that was reached."""
    task = asyncio.current_task()
    assert task is not None
    step: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    for number in itertools.count():
        try:
            future = step(argument)
        except StopIteration as end:
            return end.value, number > at
        if number == at or (number > at and how == "again and again"):
            if how == "done" and future is None:  # lets others run
                task.get_loop().call_soon(task.cancel)
            elif how == "done":
                future.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()
        try:
            argument = yield future
            step = coroutine.send
        except BaseException as error:  # noqa: BLE001 - thrown in
            step, argument = coroutine.throw, error
    raise AssertionError


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
