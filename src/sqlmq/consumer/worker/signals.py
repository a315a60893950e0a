"""SIGINT and SIGTERM, caught while something runs that can stop in good order."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handlers: TypeAlias = dict[int, Callable[[int, FrameType | None], object] | int | None]
    """Signal handlers by signal number, as ``signal.signal`` takes and returns them."""


def install(handler: Callable[[int, FrameType | None], object], previous: Handlers) -> None:
    """Install *handler* for SIGINT and SIGTERM and store the previous handlers in *previous*.

    Does nothing outside of the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # A program started with `nohup`, or in the background of a shell, has to go on ignoring Ctrl-C.
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)


def restore(previous: Handlers) -> None:
    """Install the *previous* handlers again."""
    for number, handler in previous.items():
        signal.signal(number, handler)
