"""Where a group starts, and where it can be moved: the choices, checked, and how a start is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias, cast

from sqlmq.model import validation
from sqlmq.model.validation import check_offset, check_partition_number

Start: TypeAlias = Literal["earliest", "latest"] | datetime
"""Where a group starts: at the oldest message, at the next new one, or at the first one since a moment."""

SeekTo: TypeAlias = int | Start
"""Where a consumer can seek: an offset, or a start."""

ResetTo: TypeAlias = Start | timedelta | Mapping[int, int]
"""Where a group can be moved: a start; a time back from now; or an offset for each partition, by its number."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A number of messages forward, or backward if it is negative, within the ends of the log."""

    messages: int


Target: TypeAlias = int | Start | timedelta | Mapping[int, int] | Shift
"""Everything a partition's position can be moved to."""

_STORED = "%Y%m%dT%H%M%S"
_MOST_SHIFT = 2**62


def check_start(start: object) -> Start:
    """Return *start* if a group can start there; a moment in UTC."""
    if isinstance(start, datetime):
        return validation.moment("start", start)
    if start not in ("earliest", "latest"):
        message = f"start must be 'earliest', 'latest' or an aware datetime, not {start!r}."
        raise ValueError(message)
    return cast("Start", start)


def check_seek(to: object) -> SeekTo:
    """Return *to* if a consumer can seek there."""
    if isinstance(to, datetime):
        return validation.moment("to", to)
    if isinstance(to, str):
        return check_start(to)
    if isinstance(to, bool) or not isinstance(to, int):
        message = f"to must be an offset, 'earliest', 'latest' or an aware datetime, not {type(to).__name__}."
        raise TypeError(message)
    return check_offset(to)


def check_reset(to: object, shift_by: object) -> Target:
    """Return where to move a group, from these two arguments, of which exactly one is given."""
    if (to is None) == (shift_by is None):
        message = "Give to= or shift_by=, exactly one of them."
        raise ValueError(message)
    if shift_by is not None:
        messages = validation.integer("shift_by", shift_by, least=None)
        # Beyond both ends of every log, and small enough to be added to an offset.
        return Shift(max(-_MOST_SHIFT, min(messages, _MOST_SHIFT)))
    if isinstance(to, timedelta):
        if to < timedelta(0):
            message = f"to must be 0 or more, a time back from now, not {to}."
            raise ValueError(message)
        return to
    if isinstance(to, Mapping):
        return _check_offsets(to)
    if isinstance(to, str | datetime):
        return check_start(to)
    message = (
        "to must be 'earliest', 'latest', an aware datetime, a timedelta back from now, or a mapping of partitions to "
        f"offsets, not {type(to).__name__}. For a number of messages, give shift_by=."
    )
    raise TypeError(message)


def start_to_text(start: Start) -> str:
    """Return *start* as it is stored, in 20 characters at most. A moment is rounded down to milliseconds."""
    if isinstance(start, str):
        return start
    in_utc = start.astimezone(UTC)
    return f"{in_utc:{_STORED}}.{in_utc.microsecond // 1000:03d}Z"


def start_from_text(text: str) -> Start:
    """Return the start that ``start_to_text`` stored as *text*."""
    if text in ("earliest", "latest"):
        return cast("Start", text)
    return datetime.strptime(f"{text[:-1]}000", f"{_STORED}.%f").replace(tzinfo=UTC)


def _check_offsets(to: Mapping[object, object]) -> Mapping[int, int]:
    if not to:
        message = "to must name at least one partition; the mapping is empty."
        raise ValueError(message)
    return {check_partition_number(number): check_offset(offset) for number, offset in to.items()}
