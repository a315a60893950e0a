"""Where a group begins, or is moved to: what can be asked for, checked; and how a beginning is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from sqlmq.model.config import check_moment, check_offset, check_partition_number

Start: TypeAlias = Literal["earliest", "latest"] | datetime
"""Where a group begins: the oldest message there is, the next one to come, or the first one since a moment."""

SeekTo: TypeAlias = int | Start
"""An offset, or what a group can start at."""

ResetTo: TypeAlias = Start | timedelta | Mapping[int, int]
"""What a group can start at; a time back from now; or an offset for each partition, by its number."""


@dataclass(frozen=True, slots=True)
class Shift:
    """So many messages on, or back if it is less than 0, but not beyond the ends of the log."""

    messages: int


Target: TypeAlias = int | Start | timedelta | Mapping[int, int] | Shift
"""Where to, for any partition."""

_WRITTEN = "%Y%m%dT%H%M%S"
_MOST_SHIFT = 2**62


def check_start(start: object) -> Start:
    """Return *start* if a group can begin there; a moment in UTC."""
    if isinstance(start, datetime):
        return check_moment("start", start)
    if start not in ("earliest", "latest"):
        message = f"A group starts at 'earliest', 'latest' or an aware datetime, not at {start!r}."
        raise ValueError(message)
    return "earliest" if start == "earliest" else "latest"


def check_seek(to: object) -> SeekTo:
    """Return *to* if a consumer can seek it."""
    if isinstance(to, datetime):
        return check_moment("to", to)
    if isinstance(to, str):
        return check_start(to)
    if isinstance(to, bool) or not isinstance(to, int):
        message = f"to is an offset, 'earliest', 'latest' or an aware datetime, not {type(to).__name__}."
        raise TypeError(message)
    return check_offset(to)


def check_reset(to: object, shift_by: object) -> Target:
    """Return where to move a group that is told one of these two."""
    if (to is None) == (shift_by is None):
        message = "Say where to: to= or shift_by=, one of the two."
        raise ValueError(message)
    if shift_by is not None:
        return _checked_shift(shift_by)
    if isinstance(to, timedelta):
        if to < timedelta(0):
            message = f"A timedelta counts back from now: it must be 0 or more, not {to}."
            raise ValueError(message)
        return to
    if isinstance(to, Mapping):
        return _checked_offsets(to)
    if isinstance(to, str | datetime):
        return check_start(to)
    message = (
        "to is 'earliest', 'latest', an aware datetime, a timedelta back from now or a mapping of partitions to offsets, "
        f"not {type(to).__name__}. A number of messages is shift_by=."
    )
    raise TypeError(message)


def written(start: Start) -> str:
    """*start* in 20 characters at the most; of a moment the milliseconds, rounded down."""
    if isinstance(start, str):
        return start
    in_utc = start.astimezone(UTC)
    return f"{in_utc:{_WRITTEN}}.{in_utc.microsecond // 1000:03d}Z"


def read(text: str) -> Start:
    """What was ``written`` as *text*."""
    if text in ("earliest", "latest"):
        return "earliest" if text == "earliest" else "latest"
    return datetime.strptime(f"{text[:-1]}000", f"{_WRITTEN}.%f").replace(tzinfo=UTC)


def _checked_shift(shift_by: object) -> Shift:
    if isinstance(shift_by, bool) or not isinstance(shift_by, int):
        message = f"shift_by must be a number of messages, an int, not {type(shift_by).__name__}."
        raise TypeError(message)
    # Beyond both ends of any log, and still a number that can be added to an offset.
    return Shift(max(-_MOST_SHIFT, min(shift_by, _MOST_SHIFT)))


def _checked_offsets(to: Mapping[object, object]) -> Mapping[int, int]:
    if not to:
        message = "A mapping of partitions to offsets has to name a partition."
        raise ValueError(message)
    return {check_partition_number(number): check_offset(offset) for number, offset in to.items()}
