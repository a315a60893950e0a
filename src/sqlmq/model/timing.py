"""How long to wait: pure decisions, and the deadline of a wait."""

from __future__ import annotations

import math
from dataclasses import dataclass

_REST_LOOKS = 3
_WATCH_LEAST_SECONDS, _WATCH_MOST_SECONDS = 0.01, 0.05

CLOCK_STEP_SECONDS = 1.0
"""How far a moment may lie ahead of the database's clock without showing that it was set back: clocks are adjusted all day."""


def elapsed_seconds(age: float) -> float:
    """Return how long ago a moment was. Its *age* by the database's clock is negative if it lies ahead.

    A moment that lies ahead is from before the clock was set back. How long ago it was is unknown, so whatever waits for
    it has waited long enough.
    """
    if age >= 0:
        return age
    return 0.0 if age >= -CLOCK_STEP_SECONDS else math.inf


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of the monotonic clock at which a wait ends; ``math.inf`` for none."""

    at: float

    @classmethod
    def after(cls, timeout: float | None, now: float) -> Deadline:
        """Return the deadline *timeout* seconds after *now*; None never ends."""
        return cls(math.inf if timeout is None else now + timeout)

    def remaining(self, now: float) -> float:
        """Return the seconds left; 0 after the deadline."""
        return max(0.0, self.at - now)

    def passed(self, now: float) -> bool:
        """Whether the deadline is at *now* or before."""
        return now >= self.at


@dataclass(frozen=True, slots=True)
class PollWait:
    """A wait between two polls, which lasts longer while the shared poller polls. All moments are monotonic."""

    began: float
    until: float
    """When the consumer's own next poll is due."""
    deadline: float
    """When the wait ends at the latest."""
    may_delegate: bool
    """Whether the shared poller can poll for this consumer."""
    rest_seconds: float
    """How long a shared poll counts as the consumer's own, from its start; 0 if it does not."""

    @property
    def is_delegated(self) -> bool:
        """Whether shared polls prolong the wait."""
        return self.rest_seconds > 0

    def remaining(self, now: float, looked_at: float) -> float:
        """Return the seconds left at *now*, if the last shared poll began at *looked_at* and found nothing."""
        until = max(self.until, looked_at + self.rest_seconds) if looked_at >= self.began else self.until
        return max(0.0, min(until, self.deadline) - now)


def pause(
    attempt: int, now: float, deadline: Deadline, *, least: float, most: float, random: float, may_delegate: bool
) -> PollWait:
    """Return the wait that begins *now*, after poll number *attempt* (from 0).

    If it *may_delegate*, shared polls prolong it once the backoff has reached its maximum. The wait ends when three
    shared polls in a row are missing.
    """
    is_at_the_end = poll_pause(attempt, least=least, most=most, random=0.0) >= most
    return PollWait(
        began=now,
        until=now + poll_pause(attempt, least=least, most=most, random=random),
        deadline=deadline.at,
        may_delegate=may_delegate,
        rest_seconds=_REST_LOOKS * most if may_delegate and is_at_the_end else 0.0,
    )


def watch_interval(quiet_seconds: float) -> float:
    """Return the seconds between two reads of a change counter that has not changed for *quiet_seconds*.

    A hundredth of that, so that long waits cost little and end only slightly late.
    """
    return min(max(quiet_seconds / 100, _WATCH_LEAST_SECONDS), _WATCH_MOST_SECONDS)


def poll_pause(attempt: int, *, least: float, most: float, random: float) -> float:
    """Return the pause before poll number *attempt* (from 0): it doubles from *least* to *most*.

    *random*, in [0, 1), shortens it by up to a quarter, so that many idle consumers do not poll at the same time.
    """
    doubled = least * 2.0 ** min(attempt, 32)
    return min(doubled, most) * (1.0 - random / 4)


def heartbeat_interval(lease_seconds: float) -> float:
    """Return the seconds between two heartbeats. Two may fail before the lease is at risk."""
    return lease_seconds / 3


def lease_valid_until(heartbeat_began: float, lease_seconds: float) -> float:
    """Return until when, by its own monotonic clock, a member may act on its claims.

    Counted from before the heartbeat was sent, so it ends before the lease in the database does, however long the
    request took. A tenth is reserved for clocks of different speed and for the message that is being delivered.
    """
    return heartbeat_began + lease_seconds * 0.9
