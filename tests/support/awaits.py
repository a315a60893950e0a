"""The points at which a coroutine awaits, for tests that cancel it at one of them."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")


@types.coroutine
def watch_awaits(
    coroutine: Coroutine[Any, Any, T], notice: Callable[[asyncio.Future[Any] | None], None]
) -> Generator[Any, Any, T]:
    """Await *coroutine*, and call *notice* each time before it waits, with the future it waits for.

    Where it only lets other tasks run, there is no future.
    """
    step: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    while True:
        try:
            future = step(argument)
        except StopIteration as end:
            return cast("T", end.value)
        notice(future)
        try:
            argument = yield future
            step = coroutine.send
        except BaseException as error:  # noqa: BLE001 - thrown in
            step, argument = coroutine.throw, error
