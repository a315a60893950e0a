"""Retention: how long a topic keeps messages, for which groups it keeps them longer, and where a partition starts then.

Pure: the contents of the log and the positions of groups are arguments.
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
    """The retention of a topic. Without limits, it keeps everything. Messages that exceed any of the limits are deleted.

    Limits apply to each partition. Raises ``TypeError`` or ``ValueError``.
    """

    max_age_seconds: float | None = None
    """Messages older than this are deleted."""
    max_bytes: int | None = None
    """The oldest messages are deleted while keys and values together exceed this."""
    max_messages: int | None = None
    """The oldest messages are deleted while there are more than this."""
    protect_groups: bool = True
    """Keep, beyond the limits, what a group has not committed or has parked."""
    protect_max_seconds: float | None = None
    """Delete protected messages that are older than this; None protects them without end."""
    group_expiry_seconds: float = _WEEK_SECONDS
    """A group without a member and without a commit for this long protects nothing any more."""

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
        """Whether there is any limit."""
        return (self.max_age_seconds, self.max_bytes, self.max_messages) != (None, None, None)


def check_retention(retention: object) -> None:
    """Raise TypeError unless *retention* is a Retention."""
    if not isinstance(retention, Retention):
        message = (
            f"retention must be a Retention, as Retention(max_age_seconds=7 * 86400), not {type(retention).__name__}."
        )
        raise TypeError(message)


class GroupStanding(NamedTuple):
    """The position of a group in one partition."""

    group_id: int
    name: str
    position: int
    """The offset that it reads next."""
    is_stored: bool
    """Whether it has committed that position; otherwise it is where the log starts."""
    first_parked: int | None
    """The lowest offset that it has parked."""
    is_live: bool
    """Whether it has members."""

    @property
    def needs(self) -> int:
        """The lowest offset that it may still read."""
        return self.position if self.first_parked is None else min(self.position, self.first_parked)


class Loss(NamedTuple):
    """Messages from *start* to *end*, without *end*, that a group had not committed, or had parked."""

    group_id: int
    group: str
    start: int
    end: int
    is_stored: bool
    is_protected: bool


def protected_from(
    retention: Retention, standings: Iterable[GroupStanding], expired: Collection[int], start: int, end: int
) -> int:
    """Return the first offset from *start* to *end* that a group protects, except those *expired*.

    A group that has already lost messages needs everything that is left.
    """
    if not retention.protect_groups:
        return end
    return max(start, min((one.needs for one in standings if protects(one, expired)), default=end))


def protects(standing: GroupStanding, expired: Collection[int]) -> bool:
    """Whether a group protects what it has not read: not if it is *expired* and has no member again."""
    return standing.is_live or standing.group_id not in expired


def losses(
    retention: Retention, standings: Iterable[GroupStanding], expired: Collection[int], start: int, end: int
) -> list[Loss]:
    """Return what each group loses unread when the start of the log moves from *start* to *end*."""
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
    """Return ascending *offsets* as ranges, each from its first offset to the offset after its last."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and found[-1][1] == offset:
            found[-1] = (found[-1][0], offset + 1)
        else:
            found.append((offset, offset + 1))
    return found
