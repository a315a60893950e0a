"""What has to happen after transactions that are not ours: waking consumers, and moving what was staged into the log.

One thread per MQ, apart from the one that sends heartbeats: it waits for the locks of partitions, which those must not.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

from sqlmq.errors import SqlmqError
from sqlmq.flows import stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from sqlalchemy import Connection
    from sqlalchemy.engine import RootTransaction

    from sqlmq.database import Database

    T = TypeVar("T")

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How often to look for what is due, of other processes or after a crash, while there are consumers."""
_COMMIT_SECONDS = 0.001
_COMMIT_MOST_SECONDS = 0.05
"""How often to ask whether a transaction that is committing is over, at first and in the end."""
_CLOSE_SECONDS = 5.0


class _Committing(NamedTuple):
    """A transaction by weak reference: one that was prepared and dropped has to give its connection back."""

    transaction: ref[RootTransaction]
    topic_ids: set[int]
    has_staged: bool

    @property
    def is_over(self) -> bool:
        """Whether it has ended. The flag is read from another thread; it changes once."""
        transaction = self.transaction()
        return transaction is None or not transaction.is_active


class Mover:
    """Follows transactions that carry messages. The thread starts when there is something to follow.

    *wake* is told of each topic that has new messages; if *wakes_others*, somebody may wait even without consumers here.
    """

    def __init__(self, database: Database, wake: Callable[[int], None], *, wakes_others: bool) -> None:
        self._database = database
        self._wake = wake
        self._wakes_others = wakes_others
        self._thread: threading.Thread | None
        self._committing: list[_Committing]
        self._start_over()

    def watch(self) -> None:
        """There are consumers: from now on, look for what is due."""
        self._leave_fork()
        with self._changed:
            self._is_watching = True
            self._look_at = 0.0
            self._run_thread()

    def follow(self, transaction: RootTransaction, topic_ids: set[int], has_staged: bool) -> None:
        """Once *transaction*, which is about to commit, is over, wake the consumers, and move what it staged."""
        self._leave_fork()
        with self._changed:
            if not self._is_closing and (has_staged or self._is_watching or self._wakes_others):
                self._committing.append(_Committing(ref(transaction), topic_ids, has_staged))
                self._run_thread()

    def close(self) -> None:
        """Move what transactions that are over have staged, then end the thread and wait for it."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_SECONDS)

    def _run_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sqlmq-mover", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        pause = _COMMIT_SECONDS
        has_staged = False
        while not self._is_closing or has_staged or any(one.is_over for one in self._committing):
            has_staged |= self._wake_over()
            if has_staged or time.monotonic() >= self._look_at:
                has_staged = self._move()
            with self._changed:
                if self._is_closing or has_staged:
                    continue
                # Somebody who begins to commit is asked after soon, however long another one takes.
                seconds = max(0.0, self._look_at - time.monotonic())
                was_told = self._changed.wait(min(seconds, pause if self._committing else threading.TIMEOUT_MAX))
                pause = _COMMIT_SECONDS if was_told else min(2 * pause, _COMMIT_MOST_SECONDS)

    def _wake_over(self) -> bool:
        """Wake those whom transactions that are over have something for; return whether one has staged messages."""
        with self._changed:
            over = [one for one in self._committing if one.is_over]
            self._committing = [one for one in self._committing if one not in over]
        for topic_id in {topic_id for one in over for topic_id in one.topic_ids}:
            self._wake(topic_id)
        return any(one.has_staged for one in over)

    def _move(self) -> bool:
        """Move what is due, partition by partition; return whether more was staged meanwhile."""
        has_staged = False
        with self._changed:
            self._look_at = time.monotonic() + _LOOK_SECONDS if self._is_watching else math.inf
        for partition_id in self._trying(lambda: self._database.read(self._due)) or ():
            # One partition whose lock somebody keeps must not hold up the others, nor those who are to be woken.
            self._trying(lambda partition_id=partition_id: self._move_all_of(partition_id))  # type: ignore[misc]
            has_staged |= self._wake_over()
        return has_staged

    def _due(self, conn: Connection) -> list[int]:
        return stage.due(conn, self._database.dialect)

    def _trying(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except SqlmqError as error:
            log.warning("Staged messages could not be moved into the log, and are tried again: %s", error)
        except Exception:
            # A thread that dies here would leave what is staged behind, silently.
            log.exception("Moving staged messages failed, and is tried again")
        with self._changed:
            self._look_at = min(self._look_at, time.monotonic() + _LOOK_SECONDS)
        return None

    def _move_all_of(self, partition_id: int) -> None:
        while True:
            # Not tried again here: that would take seconds, in which the others wait.
            moved = self._database.write(
                lambda conn: stage.move(conn, self._database.dialect, partition_id), tries_again=False
            )
            if moved.topic_id is not None and moved.messages:
                self._wake(moved.topic_id)
            if moved.topic_id is None and moved.messages:
                log.warning("%d staged message(s) were deleted with their topic.", moved.messages)
            if not moved.may_leave_more:
                return

    def _leave_fork(self) -> None:
        if self._pid != os.getpid():
            self._start_over()

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: the parent's thread and transactions stay with the parent."""
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._thread = None
        self._committing = []
        self._look_at = math.inf
        self._is_watching = False
        self._is_closing = False
