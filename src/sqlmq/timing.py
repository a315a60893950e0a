"""How long to wait: pure decisions, and the deadline of a wait."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of the monotonic clock at which a wait ends; ``math.inf`` for none."""

    at: float

    @classmethod
    def after(cls, timeout: float | None, now: float) -> Deadline:
        """The deadline *timeout* seconds after *now*; None is for ever."""
        return cls(math.inf if timeout is None else now + timeout)

    def remaining(self, now: float) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.at - now)

    def passed(self, now: float) -> bool:
        """Whether it is *now* or earlier."""
        return now >= self.at


def backoff(attempt: int, *, least: float, most: float, random: float) -> float:
    """Seconds to wait before look number *attempt* (from 0): doubled each time from *least* up to *most*.

    *random*, in [0, 1), takes up to a quarter off, so that many idle consumers do not look in step.
    """
    doubled = least * 2.0 ** min(attempt, 32)
    return min(doubled, most) * (1.0 - random / 4)


def heartbeat_interval(lease_seconds: float) -> float:
    """Seconds from one heartbeat to the next: two may fail before the lease is at risk."""
    return lease_seconds / 3


def trusted_until(heartbeat_began: float, lease_seconds: float) -> float:
    """Until when, by the own monotonic clock, a member may act on its claims.

    Counted from before the heartbeat was sent, so that it ends before the lease does, whatever the journey took; a tenth
    is kept back for clocks that run at different speeds and for the message just handed out.
    """
    return heartbeat_began + lease_seconds * 0.9
