"""What keeps the database small: one thread per MQ with consumers trims the topics that have limits, now and then.

Apart from those that send heartbeats and move messages: it may wait for the lock of a partition, which they must not.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from sqlmq.hooks.log_events import log_fields
from sqlmq.operations import retention
from sqlmq.operations.admin import topics
from sqlmq.reports.descriptions import RetentionResult

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import ParamSpec, TypeVar

    from sqlmq.database.database import Database, Operation
    from sqlmq.model.retention import Loss
    from sqlmq.store.retention import RetentionCandidate

    P = ParamSpec("P")
    T = TypeVar("T")

log = logging.getLogger("sqlmq.background")

ROUND_SECONDS = 60.0
"""From one round to the next, in each process; up to a quarter more or less, so that many do not trim in step."""
_MOST_DELETES = 200
"""How many transactions of deleting a partition gets in one round."""
_CLOSE_SECONDS = 5.0


class RetentionService:
    """Trims topics: in a thread of its own from ``watch`` on, and whenever ``round`` is called."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = database.clock
        self._thread: threading.Thread | None
        self._start_over()

    def watch(self) -> None:
        """There are consumers: from now on, trim what is due."""
        if self._pid != os.getpid():
            self._start_over()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sqlmq-retention", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread, after the transaction it is in."""
        if self._pid != os.getpid():
            return
        self._closing.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_SECONDS)

    def run_once(self, topic: str | None = None) -> list[RetentionResult]:
        """Trim what is due, of one topic or all; return what was done to which partition.

        What a group has lost is logged. Partitions that fail are left to the next round, and the errors raised together.
        """
        topic_id = None if topic is None else self._read(topics.find_topic, topic).id
        trimmed: list[RetentionResult] = []
        errors: list[Exception] = []
        expired: dict[int, set[int]] = {}
        for due in self._read(retention.due, topic_id):
            if self._closing.is_set():
                break
            try:
                if due.topic_id not in expired:
                    expired[due.topic_id] = self._expired(due)
                done = self._trim(due, expired[due.topic_id])
            except Exception as error:  # noqa: BLE001 - raised below: the others have to be trimmed
                errors.append(error)
            else:
                trimmed += [] if done is None else [done]
        if errors:
            message = "Trimming failed in parts; the next round goes on."
            raise ExceptionGroup(message, errors)
        return trimmed

    def _run(self) -> None:
        while not self._closing.wait(ROUND_SECONDS * self._clock.random.uniform(0.75, 1.25)):
            try:
                self.run_once()
            except Exception as error:  # noqa: BLE001 - a thread that dies here would let the database grow, silently
                reasons = error.exceptions if isinstance(error, ExceptionGroup) else [error]
                told = log_fields("trim failed", error=reasons[0])
                log.warning("Trimming failed and is tried again: %s", "; ".join(map(str, reasons)), extra=told)

    def _expired(self, due: RetentionCandidate) -> set[int]:
        return self._read(retention.expired, due.topic_id, due.retention)

    def _trim(self, due: RetentionCandidate, expired: set[int]) -> RetentionResult | None:
        planned = self._read(retention.plan, due, expired)
        advanced = None
        if planned is not None:
            advanced = self._write(retention.advance, due, expired, planned)
        for loss in advanced.losses if advanced else ():
            _say_lost(due, loss)
        deleted = sum(self._deletes(due)) if advanced or due.has_rest else 0
        self._forget_parked(due)
        start = self._read(retention.start, due) if deleted else None
        return None if start is None else RetentionResult(due.topic, due.number, start, deleted)

    def _deletes(self, due: RetentionCandidate) -> Iterator[int]:
        for _ in range(_MOST_DELETES):
            deleted = self._write(retention.delete, due.partition_id)
            if deleted is None or self._closing.is_set():
                return
            yield deleted

    def _forget_parked(self, due: RetentionCandidate) -> None:
        for group_id, group in self._read(retention.groups_losing_parked, due):
            while lost := self._write(retention.forget_parked, due, group_id, group):
                for first, end in lost:
                    log.error(
                        "Group %r has lost the parked messages %s/%d@%d to %d: they are in the log no more.",
                        group,
                        due.topic,
                        due.number,
                        first,
                        end - 1,
                        extra=_lost("parked lost", due, group, first, end),
                    )

    def _read(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.read_once(operation, *args, **kwargs)

    def _write(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.write_once(operation, *args, **kwargs)

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: the parent's thread stays with the parent."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closing = self._clock.event()
        self._thread = None


def _say_lost(due: RetentionCandidate, loss: Loss) -> None:
    level, reason = logging.WARNING, "it protects nothing, or not any more"
    if loss.is_protected:
        level, reason = (
            logging.ERROR,
            f"they are older than max_seconds, which is {due.retention.protect_max_seconds:g}",
        )
    log.log(
        level,
        "Group %r has lost the messages %s/%d@%d to %d unread: %s.",
        loss.group,
        due.topic,
        due.number,
        loss.start,
        loss.end - 1,
        reason,
        extra=_lost("unread evicted", due, loss.group, loss.start, loss.end),
    )


def _lost(event: str, due: RetentionCandidate, group: str, start: int, end: int) -> dict[str, object]:
    lost = end - start
    return log_fields(
        event, topic=due.topic, group=group, partition=due.number, offset=start, end_offset=end, messages=lost
    )
