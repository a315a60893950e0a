"""What a handler returned. Unfinished work fails the attempt, whatever the handler looks like.

A decorator, a lambda or an object can hide that a handler is a coroutine function or a generator function. Calling it
then does nothing, and its message must not count as handled.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Generator
from concurrent.futures import Future
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sqlmq.consumer.buffer import Receiver

_DONE = frozenset({bool, int, float, str, bytes, dict, list, tuple, set})
"""The most frequent types of results, which need no other check."""


class Finisher(Protocol):
    """Finishes what a handler returned."""

    def finish(self, result: object) -> None:
        """Finish the work of *result*, which is not None. Raises TypeError if that is impossible."""

    def cancel(self, worker: Receiver) -> None:
        """Cancel what *worker* waits for, if that is possible."""


class ResultCheck:
    """Refuses results with unfinished work, because nothing here finishes it."""

    def __init__(
        self, advice: str = "use AsyncMQ, or `sqlmq run`, with a handler that is defined by `async def`"
    ) -> None:
        self._advice = advice

    def finish(self, result: object) -> None:
        """Raise TypeError for a *result* with unfinished work."""
        check_done(result, self._advice)

    def cancel(self, worker: Receiver) -> None:
        """Do nothing: a thread can't be ended from outside."""


def is_awaitable(result: object) -> bool:
    """Whether *result* has to be awaited."""
    kind = type(result)
    if kind is GeneratorType:
        return inspect.isawaitable(result)  # by `types.coroutine`
    return kind not in _DONE and issubclass(kind, Awaitable)


def check_done(result: object, advice: str) -> None:
    """Raise TypeError for a *result* with unfinished work, with *advice* if it has to be awaited."""
    kind = type(result)
    if kind in _DONE:
        return
    if is_awaitable(result):
        what = f"an awaitable ({kind.__qualname__})"
        if isinstance(result, CoroutineType):
            what = "a coroutine"
            # Otherwise Python warns later, and without the name of the handler, that it was never awaited.
            with contextlib.suppress(Exception):
                result.close()
        message = f"The handler returned {what}, which nothing awaits: {advice}."
    elif issubclass(kind, Generator):
        message = "The handler returned a generator, whose body has not run: a handler must not `yield`."
    elif issubclass(kind, AsyncGenerator):
        message = "The handler returned an asynchronous generator, whose body has not run: a handler must not `yield`."
    elif issubclass(kind, Future):
        message = "The handler returned a Future, whose work may be unfinished: wait for its result() in the handler."
    elif kind in (map, filter):
        message = f"The handler returned a {kind.__name__} object, which has called nothing yet: use a loop."
    else:
        return
    raise TypeError(message)
