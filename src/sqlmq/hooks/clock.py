"""The clock, the waits and the random numbers of an MQ: those of the system, or those of a test.

The clock is for what happens in this process: pauses, deadlines, how long a lease is trusted. The database's own clock
decides whether a lease is over and when a delayed message is due. Waits for threads that end, and for mutexes, use the
system's clock: they limit how long a fault may block, and a test's clock that stands still must not hide one.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random


def _token() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock, the waits and the random numbers of an MQ, for ``MQ(..., clock=)``; by default the system's.

    Each can be replaced alone: with ``Clock(random=Random(7))``, every run draws the same numbers.
    """

    monotonic: Callable[[], float] = time.monotonic
    """Return the time in seconds, which never goes back."""
    sleep: Callable[[float], None] = time.sleep
    """Sleep for a number of seconds."""
    condition: Callable[[], threading.Condition] = threading.Condition
    """Create a condition whose timeouts are seconds of this clock."""
    event: Callable[[], threading.Event] = threading.Event
    """Create an event whose timeouts are seconds of this clock."""
    random: Random = field(default_factory=Random)
    """The random numbers. Not the module's generator, which the application may have seeded."""
    # A plain default would appear in the generated documentation with its address.
    token: Callable[[], str] = field(default_factory=lambda: _token)
    """Create a text that is unique among all processes."""


SYSTEM = Clock()
"""The system's clock and waits, and one random generator for all MQs."""

if hasattr(os, "register_at_fork"):
    # Without it, all children would draw the same numbers as their parent, and their jittered pauses would coincide.
    os.register_at_fork(after_in_child=SYSTEM.random.seed)


def check_clock(given: object) -> Clock:
    """Return *given*, or the system's clock for None. Raises TypeError."""
    if given is None:
        return SYSTEM
    if not isinstance(given, Clock):
        message = f"clock must be a sqlmq.testing.Clock, not {type(given).__name__}."
        raise TypeError(message)
    return given
