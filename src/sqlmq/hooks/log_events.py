"""What a record of the log tells programs: an event and its facts, never what a message holds."""

from __future__ import annotations

from typing import TypedDict, Unpack

PREFIX = "sqlmq_"
"""What the names of all attributes begin with that we add to a record."""


class LogFields(TypedDict, total=False):
    """What can be told of an event. What is None is not known."""

    topic: str
    group: str
    member: str
    partition: int
    offset: int | None
    """The first that it is about."""
    end_offset: int
    """The one behind the last."""
    messages: int
    attempts: int
    seconds: float
    error: BaseException | None
    process: int
    """A process id."""


def log_fields(event: str, **known: Unpack[LogFields]) -> dict[str, object]:
    """The attributes of a record, for ``extra=``: *event*, and what is *known* of it.

    Of an error only its type, because its message may quote what a message or a row holds.
    """
    error = known.pop("error", None)
    told: dict[str, object] = {"event": event, **known}
    if error is not None:
        told["error"] = type(error).__qualname__
    return {PREFIX + name: fact for name, fact in told.items() if fact is not None}
