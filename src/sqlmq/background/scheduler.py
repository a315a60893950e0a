"""What has to happen after transactions that are not ours, and later: waking consumers, moving staged messages into the log.

One thread per MQ, apart from the one that sends heartbeats: it waits for the locks of partitions, which those must not.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

from sqlmq.errors import SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.operations import staging

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from sqlalchemy.engine import RootTransaction

    from sqlmq.database.database import Database
    from sqlmq.store.staged import DueMessages

    T = TypeVar("T")

log = logging.getLogger("sqlmq.background")

_LOOK_SECONDS = 1.0
"""How often to look for what is due, of other processes or after a crash, while there are consumers: so often at least."""
_UNSURE_SECONDS = 30.0
"""How often without consumers, while something waits to become due: clocks are set, and machines suspended."""
_SPREAD_SECONDS = 0.02
"""So much later, at random, to look when something becomes due: of many processes one moves, and the others find it done."""
_COMMIT_SECONDS = 0.001
_COMMIT_MOST_SECONDS = 0.05
"""How often to ask whether a transaction that is committing is over, at first and in the end."""
_CLOSE_SECONDS = 5.0


class _Committing(NamedTuple):
    """A transaction by weak reference: one that was prepared and dropped has to give its connection back."""

    transaction: ref[RootTransaction]
    topic_ids: set[int]
    due_at: float
    """When what it has staged is due, by the monotonic clock: inf if it has staged nothing."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended. The flag is read from another thread; it changes once."""
        transaction = self.transaction()
        return transaction is None or not transaction.is_active


class Scheduler:
    """Follows transactions that carry messages, moves what is due. The thread starts when there is something to do.

    *wake* is told of each topic that has new messages; if *wakes_others*, somebody may wait even without consumers here.
    While there are consumers, it looks each *poll_max_seconds*, or more often.
    """

    def __init__(
        self, database: Database, wake: Callable[[int], None], *, wakes_others: bool, poll_max_seconds: float
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._wake = wake
        self._wakes_others = wakes_others
        self._look_seconds = min(_LOOK_SECONDS, poll_max_seconds)
        self._thread: threading.Thread | None
        self._committing: list[_Committing]
        self._has_staged: bool
        self._start_over()

    def watch(self) -> None:
        """There are consumers: from now on, look for what is due."""
        self._leave_fork()
        with self._changed:
            self._is_watching = True
            self._look_at = 0.0
            self._run_thread()

    def track_commit(self, transaction: RootTransaction, topic_ids: set[int], due_at: float) -> None:
        """Once *transaction*, which is about to commit, is over, wake the consumers, and move what it staged.

        That is to be moved at *due_at*, by the monotonic clock; inf if it has staged nothing.
        """
        self._leave_fork()
        with self._changed:
            if not self._is_closing and (due_at < math.inf or self._is_watching or self._wakes_others):
                self._committing.append(_Committing(ref(transaction), topic_ids, due_at))
                self._run_thread()

    def schedule(self, due_at: float) -> None:
        """Move what was staged just now, when that is due: at *due_at*, by the monotonic clock."""
        self._leave_fork()
        with self._changed:
            if not self._is_closing and self._note_due(due_at):
                self._run_thread()

    def close(self) -> None:
        """Move what transactions that are over have staged, if it is due; then end the thread and wait for it."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._is_closing = True
            self._give_up_at = self._clock.monotonic() + _CLOSE_SECONDS / 2
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_SECONDS)

    def _run_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sqlmq-scheduler", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        pause = _COMMIT_SECONDS
        while not self._is_closing or self._has_staged or any(one.is_over for one in self._committing):
            self._wake_over()
            if self._has_staged or self._clock.monotonic() >= self._look_at:
                self._move()
            with self._changed:
                if self._is_closing or self._has_staged:
                    continue
                # Somebody who begins to commit is asked after soon, however long another one takes.
                seconds = min(max(0.0, self._look_at - self._clock.monotonic()), threading.TIMEOUT_MAX)
                was_told = self._changed.wait(min(seconds, pause) if self._committing else seconds)
                pause = _COMMIT_SECONDS if was_told else min(2 * pause, _COMMIT_MOST_SECONDS)

    def _wake_over(self) -> None:
        """Wake those whom transactions that are over have something for, and take note of what they have staged."""
        with self._changed:
            over = [one for one in self._committing if one.is_over]
            self._committing = [one for one in self._committing if one not in over]
            for one in over:
                self._note_due(one.due_at)
        for topic_id in {topic_id for one in over for topic_id in one.topic_ids}:
            self._wake(topic_id)

    def _note_due(self, due_at: float) -> bool:
        """Look when something is due at that moment; return whether the thread has to be told. With the lock."""
        if due_at <= self._clock.monotonic():
            is_news, self._has_staged = not self._has_staged, True
            return is_news
        is_news = due_at < self._look_at
        self._look_at = min(self._look_at, due_at)
        return is_news

    def _move(self) -> None:
        """Move what is due, partition by partition."""
        with self._changed:
            self._has_staged = False
            self._look_at = self._clock.monotonic() + self._look_seconds if self._is_watching else math.inf
        seen: set[int] = set()
        while (outlook := self._trying(lambda: self._look(seen))) is not None:
            for partition_id in outlook.partition_ids:
                # One partition whose lock somebody keeps must not hold up the others, nor those who are to be woken.
                self._trying(lambda partition_id=partition_id: self._move_all_of(partition_id))  # type: ignore[misc]
                self._wake_over()
            if outlook.is_complete or self._is_overdue:
                return
            # There may be others, behind very many messages of these; which may be locked, and there still.
            seen.update(outlook.partition_ids)

    def _look(self, seen: set[int]) -> DueMessages:
        """See what is due, but for the partitions *seen*, and look again when something else will be."""
        outlook = self._database.read(staging.look, seen)
        now = self._clock.monotonic()
        # Soon, too, if something is due, for somebody may have a row of it locked.
        soon = now + _LOOK_SECONDS if outlook.partition_ids else math.inf
        if outlook.next_seconds is not None:
            spread = self._clock.random.uniform(0, _SPREAD_SECONDS)
            soon = min(soon, now + outlook.next_seconds + spread, now + _UNSURE_SECONDS)
        with self._changed:
            self._look_at = min(self._look_at, soon)
        return outlook

    @property
    def _is_overdue(self) -> bool:
        """Whether whoever closes waits no longer; what is due is left to others then."""
        return self._is_closing and self._clock.monotonic() >= self._give_up_at

    def _trying(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except SqlmqError as error:
            log.warning(
                "Staged messages could not be moved into the log, and are tried again: %s",
                error,
                extra=log_fields("scheduling failed", error=error),
            )
        except Exception:
            # A thread that dies here would leave what is staged behind, silently.
            log.exception("Moving staged messages failed, and is tried again", extra=log_fields("scheduling failed"))
        with self._changed:
            self._look_at = min(self._look_at, self._clock.monotonic() + _LOOK_SECONDS)
        return None

    def _move_all_of(self, partition_id: int) -> None:
        while True:
            # Not tried again here: that would take seconds, in which the others wait.
            moved = self._database.write_once(staging.move, partition_id)
            if moved.topic_id is not None and moved.messages:
                self._wake(moved.topic_id)
            if moved.topic_id is None and moved.messages:
                log.warning(
                    "%d staged message(s) were deleted with their topic.",
                    moved.messages,
                    extra=log_fields("staged deleted", messages=moved.messages),
                )
            if not moved.may_leave_more or self._is_overdue:
                return

    def _leave_fork(self) -> None:
        if self._pid != os.getpid():
            self._start_over()

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: the parent's thread and transactions stay with the parent."""
        self._pid = os.getpid()
        self._changed = self._clock.condition()
        self._thread = None
        self._committing = []
        self._look_at = math.inf
        self._has_staged = False
        self._is_watching = False
        self._is_closing = False
        self._give_up_at = math.inf
