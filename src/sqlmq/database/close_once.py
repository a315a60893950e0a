"""Closing once, with the same result for every caller."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlmq.hooks.log_hold import LogHold

if TYPE_CHECKING:
    from collections.abc import Callable


class CloseOnce:
    """Runs a ``close`` once. Every later call, from any thread, waits for the first and ends as it did."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._done = False
        self._error: Exception | None = None

    def run(self, close: Callable[[], None]) -> None:
        """Call *close* in the first call; raise what it raised in each."""
        with LogHold(), self._lock:
            if not self._done:
                self._done = True
                try:
                    close()
                except Exception as error:  # noqa: BLE001 - kept, and raised in every call
                    self._error = error
                except BaseException:
                    self._done = False  # an interrupt: the next call closes what is still open
                    raise
        if self._error is not None:
            raise self._error
