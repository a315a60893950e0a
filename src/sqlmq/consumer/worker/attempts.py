"""One attempt to handle messages: counted before it begins, its outcome recorded.

A worker has its partition to itself, so it asks the database without the consumer's lock. It takes the lock only to change
what the consumer knows of the partition. In each step, what is written and what the consumer then knows have to agree.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Unpack

from sqlmq.consumer.worker.executor import TRANSIENT
from sqlmq.consumer.worker.failures import FailureDecision, first_line, in_ascii, place
from sqlmq.consumer.worker.parked_keys import ParkedEntry
from sqlmq.errors import FencedError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.hooks.log_hold import LogHold
from sqlmq.model.retry import FailureAction, decide, is_exhausted, is_final, retry_delay_seconds
from sqlmq.operations import attempts as operations
from sqlmq.store.parked import ParkedRecord

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.config import RunConfig
    from sqlmq.consumer.worker.dispatcher import Attempt, Dispatcher
    from sqlmq.hooks.log_events import LogFields
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.store.offsets import Commit

log = logging.getLogger("sqlmq.consumer")


class RunCounters:
    """How many messages had which outcome. The consumer's lock guards all of them but *handled*, which has its own."""

    def __init__(self) -> None:
        self.handled = self.failures = self.parked = self.dead = self.skipped = 0
        self._lock = threading.RLock()  # a signal handler may look in the middle of these steps

    def count_handled(self, messages: int) -> None:
        """Count *messages* that were handled. Waits for nothing else, so an event loop may call it."""
        with self._lock:
            self.handled += messages

    def count_failure(self, decision: FailureDecision, *, was_parked: bool) -> None:
        """Count a failed attempt and what happens to its message."""
        self.failures += 1
        if decision.action is FailureAction.PARK and not was_parked:
            self.parked += 1
        elif decision.action is FailureAction.DEAD:
            self.dead += 1
        elif decision.action is FailureAction.SKIP:
            self.skipped += 1


class AttemptRecorder:
    """Takes the steps of attempts for all workers of one consumer."""

    def __init__(self, core: ConsumerCore, dispatcher: Dispatcher, config: RunConfig) -> None:
        self._database, self._clock = core.database, core.clock
        self._coordinator, self._buffer, self._lock = core.coordinator, core.buffer, core.lock
        self._dispatcher = dispatcher
        self._config = config
        self.counters = RunCounters()

    # Before the handler is called.

    def begin(self, worker: Receiver, attempt: Attempt) -> bool:
        """Count the attempt and park what has to wait. Return whether there is something to handle.

        If not, the attempt has ended: the partition is lost, or the message must not be attempted again.
        """
        entry = attempt.entry
        if attempt.is_parked and not attempt.messages:
            self._forget_missing(worker, attempt)
            return False
        if entry is not None and (entry.has_unknown_outcome or is_exhausted(self._config.retry, entry.attempts)):
            self._record_failure(worker, attempt, attempt.messages[0], entry.attempts, None)
            return False
        if not self._count_attempt(attempt):
            self.abandon(worker, attempt)
            return False
        with self._lock:
            for parked in attempt.to_park:
                attempt.delivery.skip_next()
                parked.is_recorded = True
                attempt.parked_keys.put(parked)
            self.counters.parked += len(attempt.to_park)
            if not attempt.messages:
                self._buffer.acknowledge(worker, include_interrupted=True)
        failpoint("attempt.after")
        return bool(attempt.messages)

    def requeue(self, worker: Receiver) -> None:
        """Requeue what *worker* has, which was not attempted. What is known of its partition stays true."""
        with self._lock:
            self._buffer.requeue(worker)

    # In the handler's transaction, if it has one.

    def settle(self, attempt: Attempt, conn: Connection) -> None:
        """Move the group on behind what the handler has just done, on *conn*. Raises FencedError."""
        attempt.is_settling = True
        after, recorded = self._position_after(attempt), self._recorded_offset(attempt)
        is_ours = operations.settle(
            conn, self._database.dialect, attempt.claimed_partition, after, recorded, own_driver=False
        )
        if not is_ours:
            group, assigned = attempt.claimed_partition.group, attempt.assigned
            raise FencedError(assigned.topic, group.name, (assigned.partition,))

    def committed(self, attempt: Attempt) -> None:
        """Note that the handler's transaction has committed."""
        attempt.is_settling = False
        with self._lock:
            self._coordinator.note_committed(attempt.assigned, self._position_after(attempt).offset)

    # At the end of an attempt.

    def mark_ended(self, attempt: Attempt) -> bool:
        """Return whether the caller is the first to end *attempt*. Only the first one decides its outcome.

        The others are a handler that returns late, and the thread that has taken the partition from it.
        """
        with self._lock:
            is_first = not attempt.has_ended
            attempt.has_ended = True
            return is_first

    def succeed(self, worker: Receiver, attempt: Attempt, *, is_settled: bool) -> None:
        """Acknowledge what the handler has done, and forget its record unless that *is_settled* in its transaction."""
        if not is_settled:
            failpoint("handler.after")
        if not attempt.current:
            # The partition was lost before the handler got anything.
            self.interrupt(worker, attempt)
            return
        if attempt.entry is not None and not is_settled:
            after = self._position_after(attempt)
            if not self._database.write_idempotent(
                operations.settle, attempt.claimed_partition, after, attempt.entry.offset
            ):
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
        """Decide and record what happens to the message at which the handler has raised *error*."""
        if len(attempt.current) > 1:
            self._retry_batch_singly(worker, attempt, error)
            return
        attempts = (0 if attempt.entry is None else attempt.entry.attempts) + 1
        self._record_failure(worker, attempt, attempt.current[0], attempts, error)

    def interrupt(self, worker: Receiver, attempt: Attempt) -> None:
        """Uncount the attempt. It is made again, here or at another consumer."""
        entry = attempt.entry
        try:
            if entry is not None:
                position = attempt.position(attempt.assigned.committable())
                self._database.write_idempotent(
                    operations.uncount_attempt, attempt.claimed_partition, position, entry.offset
                )
        finally:
            self.requeue(worker)

    def abandon(self, worker: Receiver, attempt: Attempt, *, is_uncertain: bool = False) -> None:
        """Requeue an attempt whose outcome is unknown here. The rows of its partition are read before the next attempt.

        If even the group's position *is_uncertain*, the partition is released, and its next owner reads that too.
        """
        with self._lock:
            self._buffer.requeue(worker)
            self._dispatcher.forget(attempt.assigned)
        if is_uncertain:
            self._release_partition(attempt)

    def end_stuck(self, worker: Receiver, attempt: Attempt, error: TimeoutError) -> None:
        """Fail an attempt whose handler does not return, and release its partition: other consumers go on with it."""
        try:
            self.fail(worker, attempt, error)
        except TRANSIENT as failure:
            log.warning(
                "A failed attempt could not be recorded. It counts all the same: %s",
                failure,
                extra=self.log_fields("failure unwritten", attempt, error=failure),
            )
            self.abandon(worker, attempt)
        self._release_partition(attempt)

    def log_fields(self, event: str, attempt: Attempt, **more: Unpack[LogFields]) -> dict[str, object]:
        """The fields of a log record of *event*, with the partition and offset of *attempt*."""
        first = next(iter(attempt.current or attempt.messages), None)
        where: LogFields = {
            "partition": attempt.assigned.partition,
            "offset": None if first is None else first.offset,
        }
        return self._coordinator.log_fields(event, **(where | more))

    def _count_attempt(self, attempt: Attempt) -> bool:
        """Write that the attempt begins, so that it counts if the process crashes. Return False if the partition is lost."""
        entry = attempt.entry
        is_alone = entry is not None or not attempt.messages
        # Without a record of its own, a message is counted by the end of what is in flight.
        in_flight_to = 0 if is_alone else _end(attempt.messages[-1])
        first = attempt.delivery.first + len(attempt.to_park)
        position = attempt.position(first, in_flight_to=in_flight_to)
        attempt.assigned.in_flight_to = position.in_flight_to
        if entry is None and not attempt.to_park:
            return self._coordinator.record_in_flight(attempt.assigned, position)

        parked = [(one.offset, one.key, one.attempts) for one in attempt.to_park]
        opened = None if entry is None else self._opened(attempt, entry)
        if not self._database.write_idempotent(operations.begin, attempt.claimed_partition, position, parked, opened):
            return False
        with self._lock:
            self._coordinator.note_committed(attempt.assigned, first)
            if entry is not None:
                entry.is_recorded = True
        return True

    @staticmethod
    def _opened(attempt: Attempt, entry: ParkedEntry) -> ParkedRecord:
        """The row of a message while it is attempted."""
        return ParkedRecord(
            attempt.assigned.partition_id,
            entry.offset,
            attempt.messages[0].key,
            "waiting" if attempt.is_parked else "held",
            entry.attempts + 1,
            attempt_open=True,
            is_known=entry.is_recorded,
        )

    def _retry_batch_singly(self, worker: Receiver, attempt: Attempt, error: BaseException) -> None:
        """Requeue a failed batch as after a crash of the process: each of its messages gets an attempt of its own."""
        with LogHold():
            log.warning(
                "The handler failed on %d messages from %s on; they are tried one by one: %s",
                len(attempt.current),
                place(attempt.current[0]),
                first_line(error),
                extra=self.log_fields("batch failed", attempt, error=error),
            )
        end = _end(attempt.current[-1])
        with self._lock:
            self.counters.failures += 1
            attempt.parked_keys.maybe_attempted_to = attempt.assigned.maybe_attempted_to = end
            self._buffer.requeue(worker)

    # A failed attempt: decide, store, log, apply.

    def _record_failure(
        self, worker: Receiver, attempt: Attempt, message: ReceivedMessage, attempts: int, error: BaseException | None
    ) -> None:
        decision = self._decide(attempt, message, attempts, error)
        if not self._store(attempt, decision):
            self.abandon(worker, attempt)
            return
        with LogHold():  # which keeps what a log handler raises from ending the run
            decision.log(
                self.log_fields(decision.event, attempt, error=error, offset=message.offset, attempts=decision.attempts)
            )
        self._apply(worker, attempt, decision)

    def _decide(
        self, attempt: Attempt, message: ReceivedMessage, attempts: int, error: BaseException | None
    ) -> FailureDecision:
        retry = self._config.retry
        is_last = is_exhausted(retry, attempts) if error is None else is_final(retry, error, attempts)
        action = decide(
            self._config.on_failure,
            has_key=message.key is not None,
            is_final=is_last,
            is_parked=attempt.is_parked,
            has_room=len(attempt.parked_keys) < self._config.max_parked,
        )
        delay = 0.0 if is_last else retry_delay_seconds(retry, attempts, self._clock.random.random())
        if attempt.is_parked:
            position = attempt.position(attempt.assigned.committable())
        else:
            position = attempt.position(message.offset if action.blocks_partition else _end(message))
        return FailureDecision(message, error, attempts, action, delay, position)

    def _store(self, attempt: Attempt, decision: FailureDecision) -> bool:
        """Write the decision; return False if the partition is lost, or an operator has decided about the message."""
        entry = attempt.entry
        record = decision.record(
            is_known=entry is not None and entry.is_recorded,
            has_unknown_outcome=entry is not None and entry.has_unknown_outcome,
        )
        write, partition = self._database.write_idempotent, attempt.claimed_partition
        try:
            return write(operations.record, partition, decision.position, record)
        except TRANSIENT:
            raise
        except Exception:
            if record.reason is None:
                raise
            # The text is the only part that the database may refuse: its encoding, or the connection's, may lack a
            # character. Text in ASCII fits into each. If something else was wrong, it fails again.
            plain = record._replace(reason=in_ascii(record.reason))
            return write(operations.record, partition, decision.position, plain)

    def _apply(self, worker: Receiver, attempt: Attempt, decision: FailureDecision) -> None:
        """Bring what the consumer knows of the partition into line with what was stored."""
        with self._lock:
            self._coordinator.note_committed(attempt.assigned, decision.position.offset)
            attempt.assigned.in_flight_to = decision.position.in_flight_to
            self.counters.count_failure(decision, was_parked=attempt.is_parked)
            self._update_parked_keys(attempt, decision)
            if decision.action.blocks_partition and not attempt.is_parked:
                self._buffer.requeue(worker)
                return
            if not attempt.is_parked and not attempt.current:
                # The message was given up without being handled: only what was taken of a delivery is acknowledged.
                attempt.delivery.take()
            self._buffer.acknowledge(worker, include_interrupted=True)

    def _update_parked_keys(self, attempt: Attempt, decision: FailureDecision) -> None:
        parked_keys, old = attempt.parked_keys, attempt.entry
        due_at = self._clock.monotonic() + decision.delay_seconds
        if attempt.is_parked and old is not None:
            if decision.action is FailureAction.PARK:
                old.attempts, old.due_at, old.has_unknown_outcome = decision.attempts, due_at, False
            else:
                parked_keys.pop(old)
            return
        entry = ParkedEntry(decision.offset, decision.message.key, decision.attempts, due_at, is_recorded=True)
        parked_keys.blocking = entry if decision.action.blocks_partition else None
        parked_keys.is_stopped = decision.action is FailureAction.STOP
        if decision.action is FailureAction.PARK:
            parked_keys.put(entry)

    def _forget_missing(self, worker: Receiver, attempt: Attempt) -> None:
        """Delete the row of a parked message that the log does not have any more."""
        assert attempt.entry is not None  # noqa: S101 - a parked message has a record
        offset = attempt.entry.offset
        log.error(
            "Parked message %s/%d@%d is not in the log any more; it is forgotten.",
            attempt.assigned.topic,
            attempt.assigned.partition,
            offset,
            extra=self.log_fields("parked message gone", attempt),
        )
        position = attempt.position(attempt.assigned.committable())
        self._database.write_idempotent(operations.settle, attempt.claimed_partition, position, offset)
        self.abandon(worker, attempt)

    def _release_partition(self, attempt: Attempt) -> None:
        try:
            with LogHold(), self._lock:
                self._coordinator.release_partition(attempt.assigned)
        except TRANSIENT as error:
            # It is dropped here, and the next check of the group releases claims that the member does not know.
            log.warning(
                "Partition %d could not be released yet: %s",
                attempt.assigned.partition,
                error,
                extra=self.log_fields("hand back failed", attempt, error=error),
            )

    def _position_after(self, attempt: Attempt) -> Commit:
        """The group's position when the handler is done with what it has now."""
        if attempt.is_parked:
            return attempt.position(attempt.assigned.committable())
        in_flight_to = 0 if attempt.entry is not None else _end(attempt.messages[-1])
        return attempt.position(_end(attempt.current[-1]), in_flight_to=in_flight_to)

    @staticmethod
    def _recorded_offset(attempt: Attempt) -> int | None:
        return None if attempt.entry is None else attempt.entry.offset


def _end(message: ReceivedMessage) -> int:
    """The offset behind *message*."""
    return message.offset + 1
