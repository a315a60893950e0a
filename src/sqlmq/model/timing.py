"""How long to wait: pure decisions, and the deadline of a wait."""

from __future__ import annotations

import math
from dataclasses import dataclass

_REST_LOOKS = 3
_WATCH_LEAST_SECONDS, _WATCH_MOST_SECONDS = 0.01, 0.05


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


@dataclass(frozen=True, slots=True)
class PollWait:
    """A wait between two looks, which goes on while somebody else looks. All moments are of the monotonic clock."""

    began: float
    until: float
    """When it is time for the next look."""
    deadline: float
    """When it ends at the latest."""
    may_delegate: bool
    """Whether somebody else can look."""
    rest_seconds: float
    """For how long a look of somebody else is as good as one's own, from when it began; 0 if it is not."""

    @property
    def is_delegated(self) -> bool:
        """Whether it goes on while somebody else looks."""
        return self.rest_seconds > 0

    def remaining(self, now: float, looked_at: float) -> float:
        """Seconds left at *now*, when somebody else's last look began at *looked_at*, and found nothing."""
        until = max(self.until, looked_at + self.rest_seconds) if looked_at >= self.began else self.until
        return max(0.0, min(until, self.deadline) - now)


def pause(
    attempt: int, now: float, deadline: Deadline, *, least: float, most: float, random: float, may_delegate: bool
) -> PollWait:
    """The wait that begins *now*, after look number *attempt* (from 0).

    If it *may_rest*, it goes on while somebody else looks, once the backoff has come to its end: three looks may be
    missing before it is over.
    """
    is_at_the_end = backoff(attempt, least=least, most=most, random=0.0) >= most
    return PollWait(
        began=now,
        until=now + backoff(attempt, least=least, most=most, random=random),
        deadline=deadline.at,
        may_delegate=may_delegate,
        rest_seconds=_REST_LOOKS * most if may_delegate and is_at_the_end else 0.0,
    )


def watch_interval(quiet_seconds: float) -> float:
    """Seconds between two looks at a change counter, when none has told of a message for *quiet_seconds*.

    A hundredth of that, so that those who have waited long cost little, and are late by next to nothing.
    """
    return min(max(quiet_seconds / 100, _WATCH_LEAST_SECONDS), _WATCH_MOST_SECONDS)


def backoff(attempt: int, *, least: float, most: float, random: float) -> float:
    """Seconds to wait before look number *attempt* (from 0): doubled each time from *least* up to *most*.

    *random*, in [0, 1), takes up to a quarter off, so that many idle consumers do not look in step.
    """
    doubled = least * 2.0 ** min(attempt, 32)
    return min(doubled, most) * (1.0 - random / 4)


def heartbeat_interval(lease_seconds: float) -> float:
    """Seconds from one heartbeat to the next: two may fail before the lease is at risk."""
    return lease_seconds / 3


def lease_valid_until(heartbeat_began: float, lease_seconds: float) -> float:
    """Until when, by the own monotonic clock, a member may act on its claims.

    Counted from before the heartbeat was sent, so that it ends before the lease does, whatever the journey took; a tenth
    is kept back for clocks that run at different speeds and for the message just handed out.
    """
    return heartbeat_began + lease_seconds * 0.9
