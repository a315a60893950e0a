"""One attempt at handling messages: counted before it begins, and written down when it has failed.

The worker has the partition to itself, so the database is asked without the consumer's lock; that is taken only to tell
the consumer's own books what has happened.
"""

from __future__ import annotations

import logging
import threading
import traceback
from typing import TYPE_CHECKING, Unpack

from sqlmq.consumer.worker.parked_keys import ParkedEntry
from sqlmq.errors import DatabaseBusyError, DatabaseUnavailableError, FencedError, OutcomeUnknownError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.retry import FailureAction, decide, delay_seconds, is_exhausted, is_final
from sqlmq.operations import attempts as operations_attempts
from sqlmq.store.parked import ParkedRecord, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import ParamSpec

    from sqlalchemy import Connection

    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.dispatcher import Attempt, Dispatcher, Terms
    from sqlmq.database.database import Operation
    from sqlmq.hooks.log_events import LogFields
    from sqlmq.model.message import Message
    from sqlmq.store.offsets import Commit
    from sqlmq.store.parked import State

    P = ParamSpec("P")

log = logging.getLogger("sqlmq.consumer")

_ERROR_CHARACTERS = 2_000
_TRACEBACK_CHARACTERS = 20_000
_LOG_CHARACTERS = 200

_STATES: dict[FailureAction, State | None] = {
    FailureAction.PARK: "waiting",
    FailureAction.BLOCK: "held",
    FailureAction.DEAD: "dead",
    FailureAction.STOP: "stopped",
    FailureAction.SKIP: None,
}

TRANSIENT = (DatabaseUnavailableError, DatabaseBusyError, OutcomeUnknownError)
"""What may be over when it is tried again."""

ENDED = Reason("ProcessEnded", "The process ended, or lost the partition, while it handled the message.", None)


class RunCounters:
    """How many messages met which end. Counted under the consumer's lock, but for those that were handled."""

    def __init__(self) -> None:
        self.handled = self.failures = self.parked = self.dead = self.skipped = 0
        self._lock = threading.Lock()

    def count_handled(self, messages: int) -> None:
        """Count *messages* that were handled; in an event loop too, for it waits for nothing else."""
        with self._lock:
            self.handled += messages


class AttemptRecorder:
    """The steps of an attempt, for the workers of one consumer."""

    def __init__(self, core: ConsumerCore, dispatcher: Dispatcher, terms: Terms) -> None:
        self._database, self._clock = core.database, core.clock
        self._coordinator, self._buffer, self._lock = core.coordinator, core.buffer, core.lock
        self._dispatcher = dispatcher
        self._terms = terms
        self.counters = RunCounters()

    def begin(self, worker: Receiver, attempt: Attempt) -> bool:
        """Count the attempt, and set aside what has to wait; return whether there is something to handle.

        If not, the attempt is over: the partition was lost, or there is no other attempt at the message.
        """
        waiting = attempt.entry
        if attempt.is_parked and not attempt.messages:
            self._lose_parked(worker, attempt)
            return False
        if waiting is not None and (waiting.has_unknown_outcome or is_exhausted(self._terms.retry, waiting.attempts)):
            self._record_failure(worker, attempt, attempt.messages[0], waiting.attempts, None)
            return False
        if not self._count_attempt(attempt):
            self.abandon(worker, attempt)
            return False
        with self._lock:
            for behind in attempt.to_park:
                attempt.delivery.skip_next()
                behind.is_recorded = True
                attempt.parked_keys.put(behind)
            self.counters.parked += len(attempt.to_park)
            if not attempt.messages:
                self._buffer.acknowledge(worker, include_interrupted=True)
        failpoint("attempt.after")
        return bool(attempt.messages)

    def batches(self, attempt: Attempt, may_go_on: Callable[[], bool]) -> Iterator[list[Message]]:
        """What to give to the handler, one after the other: each is done when the next is asked for."""
        if len(attempt.messages) > 1 and self._terms.batch_size is not None:
            if attempt.delivery.take_together(len(attempt.messages)):
                attempt.current = attempt.messages
                yield attempt.current
            return
        for number, parked in enumerate(attempt.messages):
            if number and not may_go_on():
                return
            message = parked if attempt.is_parked else attempt.delivery.take()
            if message is None:  # recalled: the partition is lost
                return
            attempt.current = [message]
            yield attempt.current

    def settle(self, attempt: Attempt, conn: Connection) -> None:
        """Move the group on behind what the handler has just done, in its own transaction. Raises FencedError."""
        attempt.is_settling = True
        after, recorded = self._position_after(attempt), self._recorded(attempt)
        if not operations_attempts.settle(
            conn, self._database.dialect, attempt.claimed_partition, after, recorded, own_driver=False
        ):
            raise self._fenced(attempt)

    def committed(self, attempt: Attempt) -> None:
        """That transaction has committed."""
        attempt.is_settling = False
        with self._lock:
            self._coordinator.note_committed(attempt.assigned, self._position_after(attempt).offset)

    def claim(self, attempt: Attempt) -> bool:
        """Whether it is for the caller to say how *attempt* ended: to whoever asks first."""
        with self._lock:
            is_first = not attempt.has_ended
            attempt.has_ended = True
            return is_first

    def succeed(self, worker: Receiver, attempt: Attempt, *, is_settled: bool) -> None:
        """The handler is done with everything it was given."""
        if not is_settled:
            failpoint("handler.after")
        if not attempt.current:
            self.interrupt(worker, attempt)
            return
        if attempt.entry is not None and not is_settled:
            after, recorded = self._position_after(attempt), self._recorded(attempt)
            if not self._write(operations_attempts.settle, attempt.claimed_partition, after, recorded):
                self.abandon(worker, attempt)
                return
            with self._lock:
                self._coordinator.note_committed(attempt.assigned, after.offset)
        with self._lock:
            if attempt.is_parked and attempt.entry is not None:
                attempt.parked_keys.pop(attempt.entry)
            else:
                attempt.parked_keys.blocking = None
            self._buffer.acknowledge(worker, include_interrupted=True)

    def fail(self, worker: Receiver, attempt: Attempt, error: BaseException) -> None:
        """The handler has failed with *error*: decide what becomes of the message, and write that down."""
        if len(attempt.current) > 1:
            self._retry_batch_singly(worker, attempt, error)
            return
        attempts = (0 if attempt.entry is None else attempt.entry.attempts) + 1
        self._record_failure(worker, attempt, attempt.current[0], attempts, error)

    def interrupt(self, worker: Receiver, attempt: Attempt) -> None:
        """The attempt does not count: it is to be made again, here or elsewhere."""
        waiting = attempt.entry
        try:
            if waiting is not None:
                position = attempt.position(attempt.assigned.committable())
                self._write(operations_attempts.uncount_attempt, attempt.claimed_partition, position, waiting.offset)
        finally:
            self.requeue(worker)

    def requeue(self, worker: Receiver) -> None:
        """What *worker* has was not tried; what is known of its partition stays true."""
        with self._lock:
            self._buffer.requeue(worker)

    def abandon(self, worker: Receiver, attempt: Attempt, *, is_uncertain: bool = False) -> None:
        """Nobody here knows how the attempt ended; what is known of the partition may be wrong.

        If even its position *is_uncertain*, the partition is handed back, and its next owner will ask.
        """
        with self._lock:
            self._buffer.requeue(worker)
            self._dispatcher.forget(attempt.assigned)
        if is_uncertain:
            self._release_partition(attempt)

    def end_stuck(self, worker: Receiver, attempt: Attempt, error: TimeoutError) -> None:
        """Take the partition from a handler that does not end: the attempt has failed, and others go on."""
        try:
            self.fail(worker, attempt, error)
        except TRANSIENT as failure:
            log.warning(
                "A failure could not be written down; the attempt counts all the same: %s",
                failure,
                extra=self.log_fields("failure unwritten", attempt, error=failure),
            )
            self.abandon(worker, attempt)
        self._release_partition(attempt)

    def _release_partition(self, attempt: Attempt) -> None:
        try:
            with self._lock:
                self._coordinator.release_partition(attempt.assigned)
        except TRANSIENT as error:
            # It is not ours any more as far as we know, and the next look at the group will put that right.
            log.warning(
                "Partition %d could not be handed back yet: %s",
                attempt.assigned.partition,
                error,
                extra=self.log_fields("hand back failed", attempt, error=error),
            )

    def log_fields(self, event: str, attempt: Attempt, **more: Unpack[LogFields]) -> dict[str, object]:
        """What a record of the log tells of *event*, with where it was."""
        first = next(iter(attempt.current or attempt.messages), None)
        where: LogFields = {
            "partition": attempt.assigned.partition,
            "offset": None if first is None else first.offset,
        }
        return self._coordinator.log_fields(event, **(where | more))

    def _count_attempt(self, attempt: Attempt) -> bool:
        assigned, messages, waiting = attempt.assigned, attempt.messages, attempt.entry
        trying = None
        in_hand_to = 0
        if waiting is not None:
            state: State = "waiting" if attempt.is_parked else "held"
            trying = ParkedRecord(
                assigned.partition_id,
                waiting.offset,
                messages[0].key,
                state,
                waiting.attempts + 1,
                attempt_open=True,
                is_known=waiting.is_recorded,
            )
        elif messages:
            in_hand_to = (messages[-1].offset or 0) + 1
        first = attempt.delivery.first + len(attempt.to_park)
        position = attempt.position(first, in_hand_to=in_hand_to)
        assigned.in_flight_to = position.in_hand_to
        if trying is None and not attempt.to_park:
            return self._coordinator.record_in_flight(assigned, position)
        aside = [(one.offset, one.key, one.attempts) for one in attempt.to_park]
        if not self._write(operations_attempts.begin, attempt.claimed_partition, position, aside, trying):
            return False
        with self._lock:
            self._coordinator.note_committed(assigned, first)
            if waiting is not None:
                waiting.is_recorded = True
        return True

    def _retry_batch_singly(self, worker: Receiver, attempt: Attempt, error: BaseException) -> None:
        """A batch has failed: its messages are tried one by one, as if the process had ended with it."""
        log.warning(
            "The handler failed on %d messages from %s on; they are tried one by one: %s",
            len(attempt.current),
            _place(attempt.current[0]),
            _short(error),
            extra=self.log_fields("batch failed", attempt, error=error),
        )
        with self._lock:
            self.counters.failures += 1
            attempt.parked_keys.maybe_attempted_to = attempt.assigned.maybe_attempted_to = (
                attempt.current[-1].offset or 0
            ) + 1
            self._buffer.requeue(worker)

    def _record_failure(
        self, worker: Receiver, attempt: Attempt, message: Message, attempts: int, error: BaseException | None
    ) -> None:
        retry, aside = self._terms.retry, attempt.parked_keys
        is_last = is_exhausted(retry, attempts) if error is None else is_final(retry, error, attempts)
        chosen = decide(
            self._terms.policy,
            has_key=message.key is not None,
            is_final=is_last,
            is_parked=attempt.is_parked,
            has_room=len(aside) < self._terms.max_parked,
        )
        delay = 0.0 if is_last else delay_seconds(retry, attempts, self._clock.random.random())
        offset = message.offset or 0
        is_passed = chosen in (FailureAction.PARK, FailureAction.DEAD, FailureAction.SKIP)
        committable = attempt.assigned.committable()
        position = attempt.position(committable if attempt.is_parked else offset + is_passed)
        if not self._record(attempt, message, chosen, attempts, delay, position, _reason(attempt, error)):
            self.abandon(worker, attempt)
            return
        event = "attempt failed" if chosen in (FailureAction.PARK, FailureAction.BLOCK) else "message given up"
        told = self.log_fields(event, attempt, error=error, offset=message.offset, attempts=attempts)
        _log_failure(message, chosen, attempts, delay, error, told)
        waiting = ParkedEntry(offset, message.key, attempts, self._clock.monotonic() + delay, is_recorded=True)
        with self._lock:
            self._coordinator.note_committed(attempt.assigned, position.offset)
            attempt.assigned.in_flight_to = position.in_hand_to
            self._count_end(chosen, attempt)
            self._put(attempt, chosen, waiting)
            if is_passed or attempt.is_parked:
                if not attempt.is_parked and not attempt.current:
                    attempt.delivery.take()
                self._buffer.acknowledge(worker, include_interrupted=True)
            else:
                self._buffer.requeue(worker)

    def _put(self, attempt: Attempt, chosen: FailureAction, waiting: ParkedEntry) -> None:
        aside = attempt.parked_keys
        if attempt.is_parked and attempt.entry is not None:
            if chosen is FailureAction.PARK:
                attempt.entry.attempts, attempt.entry.due_at = waiting.attempts, waiting.due_at
                attempt.entry.has_unknown_outcome = False
            else:
                aside.pop(attempt.entry)
            return
        aside.blocking = waiting if chosen in (FailureAction.BLOCK, FailureAction.STOP) else None
        aside.is_stopped = chosen is FailureAction.STOP
        if chosen is FailureAction.PARK:
            aside.put(waiting)

    def _count_end(self, chosen: FailureAction, attempt: Attempt) -> None:
        self.counters.failures += 1
        self.counters.parked += chosen is FailureAction.PARK and not attempt.is_parked
        self.counters.dead += chosen is FailureAction.DEAD
        self.counters.skipped += chosen is FailureAction.SKIP

    def _record(
        self,
        attempt: Attempt,
        message: Message,
        chosen: FailureAction,
        attempts: int,
        delay: float,
        position: Commit,
        reason: Reason | None,
    ) -> bool:
        claimed_partition = attempt.claimed_partition
        record = ParkedRecord(
            claimed_partition.claim.partition_id,
            message.offset or 0,
            message.key,
            _STATES[chosen],
            attempts,
            delay,
            reason,
            is_known=attempt.entry is not None and attempt.entry.is_recorded,
        )
        return self._write(operations_attempts.record, claimed_partition, position, record)

    def _lose_parked(self, worker: Receiver, attempt: Attempt) -> None:
        assert attempt.entry is not None  # noqa: S101 - what is parked has a record
        offset = attempt.entry.offset
        log.error(
            "Message %s/%d@%d was set aside and is not in the log any more; it is forgotten.",
            attempt.assigned.topic,
            attempt.assigned.partition,
            offset,
            extra=self.log_fields("parked message gone", attempt),
        )
        position = attempt.position(attempt.assigned.committable())
        self._write(operations_attempts.settle, attempt.claimed_partition, position, offset)
        self.abandon(worker, attempt)

    def _position_after(self, attempt: Attempt) -> Commit:
        """The group's position when the handler is done with what it has right now."""
        if attempt.is_parked:
            return attempt.position(attempt.assigned.committable())
        in_hand_to = 0 if attempt.entry is not None else (attempt.messages[-1].offset or 0) + 1
        return attempt.position((attempt.current[-1].offset or 0) + 1, in_hand_to=in_hand_to)

    def _recorded(self, attempt: Attempt) -> int | None:
        return None if attempt.entry is None else attempt.entry.offset

    def _write(self, operation: Operation[P, bool], *args: P.args, **kwargs: P.kwargs) -> bool:
        return self._database.write_idempotent(operation, *args, **kwargs)

    def _fenced(self, attempt: Attempt) -> FencedError:
        return FencedError(attempt.assigned.topic, attempt.claimed_partition.group.name, (attempt.assigned.partition,))


def _reason(attempt: Attempt, error: BaseException | None) -> Reason | None:
    if error is None:
        return ENDED if attempt.entry is not None and attempt.entry.has_unknown_outcome else None
    text = "".join(traceback.format_exception(error))
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return Reason(_storable(name), _storable(str(error))[:_ERROR_CHARACTERS], _storable(text)[-_TRACEBACK_CHARACTERS:])


def _storable(text: str) -> str:
    """*text* without what a database can't keep: NUL, and the halves of characters, as file names can have."""
    return text.replace("\x00", "").encode(errors="backslashreplace").decode()


def _log_failure(
    message: Message,
    chosen: FailureAction,
    attempts: int,
    delay: float,
    error: BaseException | None,
    told: dict[str, object],
) -> None:
    where, why = _place(message), ENDED.error if error is None else _short(error)
    if chosen in (FailureAction.PARK, FailureAction.BLOCK):
        log.warning(
            "Attempt %d at %s failed and is made again in %.1f seconds: %s",
            attempts,
            where,
            delay,
            why,
            extra=told,
        )
        return
    what = {
        FailureAction.DEAD: "it is a dead letter",
        FailureAction.SKIP: "it is skipped",
        FailureAction.STOP: "its partition stops: retry or discard it with `sqlmq parked`",
    }[chosen]
    log.error("Attempt %d at %s failed, and %s: %s", attempts, where, what, why, exc_info=error, extra=told)


def _place(message: Message) -> str:
    return f"{message.topic}/{message.partition}@{message.offset}"


def _short(error: BaseException) -> str:
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__qualname__}: {first_line[:_LOG_CHARACTERS]}"
