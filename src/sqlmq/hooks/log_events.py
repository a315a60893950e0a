"""The structured fields of log records: an event and its facts, but never the content of a message."""

from __future__ import annotations

from typing import TypedDict, Unpack

from sqlmq.hooks.error_text import type_name

PREFIX = "sqlmq_"
"""The prefix of all attributes that we add to a record."""


class LogFields(TypedDict, total=False):
    """The facts of an event. None means unknown."""

    topic: str
    group: str
    member: str
    partition: int
    offset: int | None
    """The first offset that it is about."""
    end_offset: int
    """The offset after the last one."""
    messages: int
    attempts: int
    seconds: float
    error: BaseException | None
    process: int
    """A process id."""


def log_fields(event: str, **facts: Unpack[LogFields]) -> dict[str, object]:
    """Return the attributes of a record, for ``extra=``: *event* and its *facts*.

    Of an error, only its type: its message may quote parts of a message or a row.
    """
    error = facts.pop("error", None)
    fields: dict[str, object] = {"event": event, **facts}
    if error is not None:
        fields["error"] = type_name(error)
    return {PREFIX + name: fact for name, fact in fields.items() if fact is not None}
