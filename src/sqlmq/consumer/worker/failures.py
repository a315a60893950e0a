"""What was decided about a message whose attempt has failed, as a row and a log record. ``model.retry`` decides."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlmq.hooks.error_text import full_type_name, printable, text_of, traceback_of, type_name
from sqlmq.model.message import ReceivedMessage
from sqlmq.model.retry import FailureAction
from sqlmq.store.offsets import Commit
from sqlmq.store.parked import ParkedRecord, Reason

if TYPE_CHECKING:
    from sqlmq.model.config import ParkedState

log = logging.getLogger("sqlmq.consumer")

_NAME_CHARACTERS = 500
_ERROR_CHARACTERS = 2_000
_TRACEBACK_CHARACTERS = 20_000
_LOG_CHARACTERS = 200

_STATES: dict[FailureAction, ParkedState | None] = {
    FailureAction.PARK: "waiting",
    FailureAction.BLOCK: "held",
    FailureAction.DEAD: "dead",
    FailureAction.STOP: "stopped",
    FailureAction.SKIP: None,
}

_CONSEQUENCES = {
    FailureAction.DEAD: "it is a dead letter",
    FailureAction.SKIP: "it is skipped",
    FailureAction.STOP: "its partition stops: retry or discard it with `sqlmq parked`",
}

_PROCESS_ENDED = Reason("ProcessEnded", "The process ended, or lost the partition, while it handled the message.", None)


@dataclass(frozen=True, slots=True)
class FailureDecision:
    """What happens to a message whose attempt has failed."""

    message: ReceivedMessage
    error: BaseException | None
    """What the handler raised; None if the process ended, or all attempts were used up before."""
    attempts: int
    """How many attempts there were, with this one."""
    action: FailureAction
    delay_seconds: float
    """How long until the next attempt; 0 if there is none."""
    position: Commit
    """The group's position after it."""

    @property
    def offset(self) -> int:
        """The message's."""
        return self.message.offset

    def record(self, *, is_known: bool, has_unknown_outcome: bool) -> ParkedRecord:
        """Its row. *is_known* is whether there is one already, *has_unknown_outcome* whether the process ended."""
        if self.error is not None:
            reason: Reason | None = _reason(self.error)
        else:
            reason = _PROCESS_ENDED if has_unknown_outcome else None
        return ParkedRecord(
            self.position.partition_id,
            self.offset,
            self.message.key,
            _STATES[self.action],
            self.attempts,
            self.delay_seconds,
            reason,
            is_known=is_known,
        )

    @property
    def event(self) -> str:
        """The event of its log record."""
        return "attempt failed" if self.action.is_retry else "message given up"

    def log(self, fields: dict[str, object]) -> None:
        """Log it with *fields*: a warning if the message is attempted again, else an error with the traceback."""
        why = _PROCESS_ENDED.error if self.error is None else first_line(self.error)
        if self.action.is_retry:
            log.warning(
                "Attempt %d at %s failed and is made again in %.1f seconds: %s",
                self.attempts,
                place(self.message),
                self.delay_seconds,
                why,
                extra=fields,
            )
        else:
            log.error(
                "Attempt %d at %s failed, and %s: %s",
                self.attempts,
                place(self.message),
                _CONSEQUENCES[self.action],
                why,
                exc_info=None if self.error is None else printable(self.error),
                extra=fields,
            )


def place(message: ReceivedMessage) -> str:
    """Where *message* is, as in ``orders/0@1041``."""
    return f"{message.topic}/{message.partition}@{message.offset}"


def first_line(error: BaseException) -> str:
    """The type of *error* and the beginning of what it says."""
    line = (text_of(error).splitlines() or [""])[0]
    return f"{type_name(error)}: {line[:_LOG_CHARACTERS]}"


def in_ascii(reason: Reason) -> Reason:
    """*reason* with all other characters escaped, for a database whose encoding lacks one of them."""
    trace = None if reason.traceback is None else _ascii(reason.traceback)
    return Reason(_ascii(reason.error_type), _ascii(reason.error), trace)


def _reason(error: BaseException) -> Reason:
    return Reason(
        _storable(full_type_name(error))[:_NAME_CHARACTERS],
        _storable(text_of(error))[:_ERROR_CHARACTERS],
        _storable(traceback_of(error))[-_TRACEBACK_CHARACTERS:],
    )


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _storable(text: str) -> str:
    """*text* without NUL, which no text of a database can have."""
    return text.replace("\x00", "")
