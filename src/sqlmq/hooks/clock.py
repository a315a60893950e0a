"""Where an MQ gets time, waiting and chance from: the system, unless it is given others, as a test does.

The clock is for what happens in this process: pauses, deadlines, how long a lease is trusted. Whether a lease is over,
and when a delayed message is due, is told by the database's own clock. Threads that have to end, and mutexes, are waited
for by the system's: that bounds how long something may hang, and a clock that stands still must not hide that.
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
    """The clock, the waits and the chance of an MQ, for ``MQ(..., clock=)``: by default those of the system.

    Each may be replaced by itself: ``Clock(random=Random(7))`` has everything drawn alike each time.
    """

    monotonic: Callable[[], float] = time.monotonic
    """The clock: seconds, which never go back."""
    sleep: Callable[[float], None] = time.sleep
    """Wait so many seconds."""
    condition: Callable[[], threading.Condition] = threading.Condition
    """Make what threads wait on, for some seconds of the clock, until they are notified."""
    event: Callable[[], threading.Event] = threading.Event
    """Make what threads wait for, for some seconds of the clock, until it is set."""
    random: Random = field(default_factory=Random)
    """What is drawn from. Not the common generator, which is the application's, who may have seeded it."""
    # Its own default would stand in the signature with its address.
    token: Callable[[], str] = field(default_factory=lambda: _token)
    """Make a word that nobody else makes, in any process."""


SYSTEM = Clock()
"""The system's clock and waits, and one generator for all."""

if hasattr(os, "register_at_fork"):
    # Or all children would draw what their parent would have drawn, and do in step what is not to be done in step.
    os.register_at_fork(after_in_child=SYSTEM.random.seed)


def check_clock(given: object) -> Clock:
    """Return what was *given*, the system's for None, or raise TypeError."""
    if given is None:
        return SYSTEM
    if not isinstance(given, Clock):
        message = f"clock= takes a sqlmq.testing.Clock, not {type(given).__name__}."
        raise TypeError(message)
    return given
