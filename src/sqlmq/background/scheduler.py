"""Acts after transactions that are not ours, and later: wakes consumers, moves staged messages into the log when due.

It has a thread of its own, because it waits for the locks of partitions, and heartbeats must not.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

from sqlmq.background.thread import BackgroundThread
from sqlmq.errors import SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.operations import staging

if TYPE_CHECKING:
    from sqlalchemy.engine import RootTransaction

    from sqlmq.background.notifier import Notifier
    from sqlmq.database.database import Database
    from sqlmq.store.staged import DueMessages

log = logging.getLogger("sqlmq.background")

_POLL_SECONDS = 1.0
"""How often, at least, to look for what is due from other processes or after a crash, while there are consumers."""
_UNSURE_SECONDS = 30.0
"""How often without consumers, while a message waits to become due: clocks are set, and machines are suspended."""
_SPREAD_SECONDS = 0.02
"""The most that is added, at random, to the moment a message is due: of many processes one moves it, the others find
it moved."""
_COMMIT_SECONDS = 0.001
_COMMIT_MOST_SECONDS = 0.05
"""How often to check whether a transaction that is committing has ended, at first and after many checks."""
_CLOSE_SECONDS = 5.0


class _TrackedCommit(NamedTuple):
    """A transaction by weak reference: one that was prepared and dropped has to give its connection back."""

    transaction: ref[RootTransaction]
    topic_ids: set[int]
    due_at: float
    """When the messages it has staged are due, by the monotonic clock: inf if there are none."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended. The flag is read from another thread; it changes once."""
        transaction = self.transaction()
        return transaction is None or not transaction.is_active


class Scheduler(BackgroundThread):
    """Tracks transactions that carry messages, and moves what is due. Starts when there is something to do.

    While there are consumers, it looks for due messages every *poll_max_seconds*, or more often.
    """

    thread_name = "sqlmq-scheduler"

    def __init__(self, database: Database, notifier: Notifier, *, poll_max_seconds: float) -> None:
        super().__init__(database.clock)
        self._database = database
        self._notifier = notifier
        self._poll_seconds = min(_POLL_SECONDS, poll_max_seconds)

    def _start_over(self) -> None:
        super()._start_over()
        self._commits: list[_TrackedCommit] = []
        self._next_check_at: float = math.inf
        self._has_due: bool = False
        self._is_watching: bool = False
        """Whether there have been consumers, so that messages of other processes are looked for too."""
        self._give_up_at = math.inf

    def watch(self) -> None:
        """Look for what is due from now on: there are consumers. Raises RuntimeError if no thread can be started now."""
        self._start_over_if_forked()
        with self._changed:
            self._is_watching = True
            self._next_check_at = 0.0
            self._changed.notify_all()
        self.start()

    def track_commit(self, transaction: RootTransaction, topic_ids: set[int], due_at: float) -> None:
        """Wake the consumers once *transaction*, which is about to commit, has ended, and move what it has staged.

        The staged messages are due at *due_at*, by the monotonic clock; inf if there are none.
        """
        self._start_over_if_forked()
        with self._changed:
            # Without consumers here, only other processes could wait for the messages.
            has_audience = self._is_watching or self._notifier.reaches_other_processes
            if self._stopping.is_set() or not (due_at < math.inf or has_audience):
                return
            self._commits.append(_TrackedCommit(ref(transaction), topic_ids, due_at))
            self._changed.notify_all()
        self.try_to_start()

    def schedule(self, due_at: float) -> None:
        """Move messages that were staged just now when they are due: at *due_at*, by the monotonic clock."""
        self._start_over_if_forked()
        with self._changed:
            if self._stopping.is_set() or not self._note_due(due_at):
                return
            self._changed.notify_all()
        self.try_to_start()

    def close(self) -> None:
        """Move what ended transactions have staged, if it is due; then end the thread and wait for it."""
        self._give_up_at = self._clock.monotonic() + _CLOSE_SECONDS / 2
        self.stop(_CLOSE_SECONDS)

    def run(self) -> None:
        """Check tracked transactions and move due messages, until stopped and nothing is left to do."""
        pause = _COMMIT_SECONDS
        while not self._stopping.is_set() or self._has_due or any(commit.is_over for commit in self._commits):
            self._finish_commits()
            if self._has_due or self._clock.monotonic() >= self._next_check_at:
                self._move_due()
            with self._changed:
                if self._stopping.is_set() or self._has_due:
                    continue
                # A new commit resets the pause, so that it is checked soon, however long another one takes.
                seconds = min(max(0.0, self._next_check_at - self._clock.monotonic()), threading.TIMEOUT_MAX)
                was_notified = self._changed.wait(min(seconds, pause) if self._commits else seconds)
                pause = _COMMIT_SECONDS if was_notified else min(2 * pause, _COMMIT_MOST_SECONDS)

    def _finish_commits(self) -> None:
        """Announce the topics of transactions that have ended, and note when what they have staged is due."""
        with self._changed:
            ended = [commit for commit in self._commits if commit.is_over]
            self._commits = [commit for commit in self._commits if commit not in ended]
            for commit in ended:
                self._note_due(commit.due_at)
        for topic_id in {topic_id for commit in ended for topic_id in commit.topic_ids}:
            self._notifier.announce(topic_id)

    def _note_due(self, due_at: float) -> bool:
        """Note that messages are due at *due_at*; return whether the thread has to wake earlier for it. With the lock."""
        if due_at <= self._clock.monotonic():
            is_news, self._has_due = not self._has_due, True
            return is_news
        is_news = due_at < self._next_check_at
        self._next_check_at = min(self._next_check_at, due_at)
        return is_news

    def _move_due(self) -> None:
        """Move what is due, partition by partition."""
        with self._changed:
            self._has_due = False
            self._next_check_at = self._clock.monotonic() + self._poll_seconds if self._is_watching else math.inf
        visited: set[int] = set()
        while True:
            try:
                due = self._find_due(visited)
            except Exception as error:  # noqa: BLE001 - if this thread died, it would silently leave messages behind
                self._retry_later(error)
                return
            for partition_id in due.partition_ids:
                try:
                    self._move_partition(partition_id)
                except Exception as error:  # noqa: BLE001 - a partition that stays locked must not delay the others
                    self._retry_later(error)
                self._finish_commits()
            if due.is_complete or self._is_overdue:
                return
            # Other partitions may stand behind very many messages of these; which may be locked, and there still.
            visited.update(due.partition_ids)

    def _find_due(self, visited: set[int]) -> DueMessages:
        """Return what is due in other partitions than *visited*, and note when to check again."""
        due = self._database.read(staging.find_due, visited)
        now = self._clock.monotonic()
        # Soon, too, if something is due, because another transaction may have a row of it locked.
        check_at = now + _POLL_SECONDS if due.partition_ids else math.inf
        if due.next_seconds is not None:
            spread = self._clock.random.uniform(0, _SPREAD_SECONDS)
            check_at = min(check_at, now + due.next_seconds + spread, now + _UNSURE_SECONDS)
        with self._changed:
            self._next_check_at = min(self._next_check_at, check_at)
        return due

    def _move_partition(self, partition_id: int) -> None:
        while True:
            # Not retried here: that would take seconds, in which the other partitions wait.
            moved = self._database.write_once(staging.move, partition_id)
            if moved.topic_id is not None and moved.messages:
                self._notifier.announce(moved.topic_id)
            if moved.topic_id is None and moved.messages:
                log.warning(
                    "%d staged message(s) were deleted with their topic.",
                    moved.messages,
                    extra=log_fields("staged deleted", messages=moved.messages),
                )
            if not moved.may_leave_more or self._is_overdue:
                return

    @property
    def _is_overdue(self) -> bool:
        """Whether closing has taken long enough; what is due is left to other processes then."""
        return self._stopping.is_set() and self._clock.monotonic() >= self._give_up_at

    def _retry_later(self, error: Exception) -> None:
        if isinstance(error, SqlmqError):
            log.warning(
                "Staged messages could not be moved into the log, and are tried again: %s",
                error,
                extra=log_fields("scheduling failed", error=error),
            )
        else:
            log.error(
                "Moving staged messages failed, and is tried again",
                exc_info=error,
                extra=log_fields("scheduling failed"),
            )
        with self._changed:
            self._next_check_at = min(self._next_check_at, self._clock.monotonic() + _POLL_SECONDS)
