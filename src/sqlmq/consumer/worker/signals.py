"""SIGINT and SIGTERM, taken for as long as something runs that can end in good order."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handlers: TypeAlias = dict[int, Callable[[int, FrameType | None], object] | int | None]


def install(arrive: Callable[[int, FrameType | None], object], before: Handlers) -> None:
    """Have *arrive* called at these signals; *before* gets the handlers there were, by the number of each one taken."""
    # Python takes signals in its main thread only.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # Whoever started us with `nohup` or in the background wants no Ctrl-C to come through.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, arrive)


def restore(before: Handlers) -> None:
    """Put the handlers back that were there *before*."""
    for number, handler in before.items():
        signal.signal(number, handler)
