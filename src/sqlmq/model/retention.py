"""How long a topic keeps its messages, and for whom it keeps them longer; where that puts the start of a partition.

Pure: what is in the log, and how far the groups are, is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.model import validation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_WEEK_SECONDS = 7 * 86_400.0
_MOST = 2**62


@dataclass(frozen=True, slots=True)
class Retention:
    """What a topic keeps. Without any limit, everything; with several, what exceeds one of them goes.

    Limits are for each partition. Raises ``TypeError`` or ``ValueError`` for what can't be.
    """

    max_age_seconds: float | None = None
    """Messages older than this go."""
    max_bytes: int | None = None
    """The oldest go while keys and values together are more than this."""
    max_messages: int | None = None
    """The oldest go while there are more than this."""
    protect_groups: bool = True
    """Keep, beyond the limits, what a group has not committed or has set aside."""
    protect_max_seconds: float | None = None
    """Keep what is protected for no longer than this; None for as long as it takes."""
    group_expiry_seconds: float = _WEEK_SECONDS
    """A group that for so long had no member and committed nothing protects nothing any more."""

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            validation.integer("max_bytes", self.max_bytes, most=_MOST)
        if self.max_messages is not None:
            validation.integer("max_messages", self.max_messages, most=_MOST)
        if self.max_age_seconds is not None:
            validation.seconds("max_age_seconds", self.max_age_seconds, may_be_zero=False)
        if self.protect_max_seconds is not None:
            validation.seconds("protect_max_seconds", self.protect_max_seconds, may_be_zero=False)
        validation.seconds("group_expiry_seconds", self.group_expiry_seconds, may_be_zero=False)
        validation.boolean("protect_groups", self.protect_groups)
        if self.protect_max_seconds is not None and not self.protect_groups:
            message = (
                "protect_max_seconds limits how long groups are protected. It has no meaning with protect_groups=False."
            )
            raise ValueError(message)
        if self.protect_max_seconds is not None and self.protect_max_seconds < (self.max_age_seconds or 0):
            message = (
                f"protect_max_seconds must be max_age_seconds ({self.max_age_seconds}) or more, "
                f"not {self.protect_max_seconds}."
            )
            raise ValueError(message)

    @property
    def is_limited(self) -> bool:
        """Whether anything ever goes."""
        return (self.max_age_seconds, self.max_bytes, self.max_messages) != (None, None, None)


def check_retention(retention: object) -> None:
    """Raise TypeError unless *retention* is one."""
    if not isinstance(retention, Retention):
        message = (
            f"retention must be a Retention, as Retention(max_age_seconds=7 * 86400), not {type(retention).__name__}."
        )
        raise TypeError(message)


class GroupStanding(NamedTuple):
    """Where a group is in one partition."""

    group_id: int
    name: str
    position: int
    """What it reads next."""
    is_stored: bool
    """Whether it has committed that; else it is where the log starts."""
    first_parked: int | None
    """The lowest offset it has set aside."""
    is_live: bool
    """Whether it has members."""

    @property
    def needs(self) -> int:
        """The lowest offset it may still read."""
        return self.position if self.first_parked is None else min(self.position, self.first_parked)


class Loss(NamedTuple):
    """Messages from *start* up to, not including, *end* that a group had not committed, or had set aside."""

    group_id: int
    group: str
    start: int
    end: int
    is_stored: bool
    is_protected: bool


def protected_from(
    retention: Retention, standings: Iterable[GroupStanding], expired: Collection[int], start: int, end: int
) -> int:
    """From which offset on a partition, of what it holds, has to be kept for groups, but for those *expired*.

    A group that has lost something already needs all that is left.
    """
    if not retention.protect_groups:
        return end
    return max(start, min((one.needs for one in standings if protects(one, expired)), default=end))


def protects(standing: GroupStanding, expired: Collection[int]) -> bool:
    """Whether a group protects what it has not read: not if it has *expired*, and nobody has come back since."""
    return standing.is_live or standing.group_id not in expired


def losses(
    retention: Retention, standings: Iterable[GroupStanding], expired: Collection[int], start: int, end: int
) -> list[Loss]:
    """What each group loses unread when the log, which began at *start*, begins at *end*."""
    return [
        Loss(
            one.group_id,
            one.name,
            max(one.position, start),
            end,
            one.is_stored,
            retention.protect_groups and protects(one, expired),
        )
        for one in standings
        if max(one.position, start) < end
    ]


def runs(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending *offsets* as runs, each from an offset up to, not including, another."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and found[-1][1] == offset:
            found[-1] = (found[-1][0], offset + 1)
        else:
            found.append((offset, offset + 1))
    return found
