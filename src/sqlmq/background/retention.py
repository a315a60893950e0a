"""Keeps the database small: deletes what exceeds the retention of topics, about once a minute.

It has a thread of its own, because it may wait for the lock of a partition, and neither heartbeats nor the scheduler may.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlmq.background.thread import BackgroundThread
from sqlmq.hooks.log_events import log_fields
from sqlmq.operations import retention
from sqlmq.operations.admin import topics
from sqlmq.reports.descriptions import RetentionResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.database.database import Database
    from sqlmq.model.retention import Loss
    from sqlmq.store.retention import RetentionCandidate

log = logging.getLogger("sqlmq.background")

ROUND_SECONDS = 60.0
"""From one round to the next, in each process; up to a quarter more or less, so that processes do not work in step."""
_MOST_DELETES = 200
"""How many deleting transactions a partition gets in one round."""
_CLOSE_SECONDS = 5.0


class RetentionService(BackgroundThread):
    """Applies the retention of topics: in its thread, once there are consumers, and whenever ``run_once`` is called."""

    thread_name = "sqlmq-retention"

    def __init__(self, database: Database) -> None:
        super().__init__(database.clock)
        self._database = database

    def run(self) -> None:
        """Apply the retention of all topics every minute."""
        while not self._stopping.wait(ROUND_SECONDS * self._clock.random.uniform(0.75, 1.25)):
            try:
                self.run_once()
            except Exception as error:  # noqa: BLE001 - if this thread died, the database would silently grow
                reasons = error.exceptions if isinstance(error, ExceptionGroup) else [error]
                log.warning(
                    "Retention could not be applied and is tried again: %s",
                    "; ".join(map(str, reasons)),
                    extra=log_fields("trim failed", error=reasons[0]),
                )

    def close(self) -> None:
        """End the thread, after the transaction it is in."""
        self.stop(_CLOSE_SECONDS)

    def run_once(self, topic: str | None = None) -> list[RetentionResult]:
        """Apply the retention of one topic or all; return what was deleted from which partition.

        Unread messages that a group has lost are logged. A partition that fails is left to the next round; the errors
        are raised together.
        """
        # No transaction is retried: the next round comes soon enough.
        topic_id = None if topic is None else self._database.read_once(topics.find_topic, topic).id
        results: list[RetentionResult] = []
        errors: list[Exception] = []
        expired: dict[int, set[int]] = {}
        for due in self._database.read_once(retention.due, topic_id):
            if self._stopping.is_set():
                break
            try:
                if due.topic_id not in expired:
                    expired[due.topic_id] = self._database.read_once(retention.expired, due.topic_id, due.retention)
                result = self._trim(due, expired[due.topic_id])
            except Exception as error:  # noqa: BLE001 - raised below, after the other partitions
                errors.append(error)
            else:
                results += [] if result is None else [result]
        if errors:
            message = "Retention could not be applied to all partitions; the next round goes on."
            raise ExceptionGroup(message, errors)
        return results

    def _trim(self, due: RetentionCandidate, expired: set[int]) -> RetentionResult | None:
        """Advance the start of a partition, then delete what is before it; return what was deleted, if anything."""
        planned = self._database.read_once(retention.plan, due, expired)
        advanced = None
        if planned is not None:
            advanced = self._database.write_once(retention.advance, due, expired, planned)
        for loss in advanced.losses if advanced else ():
            _log_loss(due, loss)
        deleted = sum(self._delete(due)) if advanced or due.has_rest else 0
        self._forget_parked(due)
        start = self._database.read_once(retention.start, due) if deleted else None
        return None if start is None else RetentionResult(due.topic, due.number, start, deleted)

    def _delete(self, due: RetentionCandidate) -> Iterator[int]:
        for _ in range(_MOST_DELETES):
            deleted = self._database.write_once(retention.delete, due.partition_id)
            if deleted is None or self._stopping.is_set():
                return
            yield deleted

    def _forget_parked(self, due: RetentionCandidate) -> None:
        """Delete what groups have parked of messages that were deleted."""
        for group_id, group in self._database.read_once(retention.groups_losing_parked, due):
            while lost := self._database.write_once(retention.forget_parked, due, group_id, group):
                for first, end in lost:
                    log.error(
                        "Group %r has lost the parked messages %s/%d@%d to %d: they are no longer in the log.",
                        group,
                        due.topic,
                        due.number,
                        first,
                        end - 1,
                        extra=_loss_fields("parked lost", due, group, first, end),
                    )


def _log_loss(due: RetentionCandidate, loss: Loss) -> None:
    level, reason = logging.WARNING, "retention does not protect this group, or no longer"
    if loss.is_protected:
        level, reason = (
            logging.ERROR,
            f"they are older than protect_max_seconds, which is {due.retention.protect_max_seconds:g}",
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
        extra=_loss_fields("unread evicted", due, loss.group, loss.start, loss.end),
    )


def _loss_fields(event: str, due: RetentionCandidate, group: str, start: int, end: int) -> dict[str, object]:
    lost = end - start
    return log_fields(
        event, topic=due.topic, group=group, partition=due.number, offset=start, end_offset=end, messages=lost
    )
