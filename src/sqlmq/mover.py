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

from sqlmq.errors import SqlmqError
from sqlmq.flows import stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import RootTransaction

    from sqlmq.database import Database

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How often to look for what is due, of other processes or after a crash, while there are consumers."""
_COMMIT_SECONDS = 0.001
_COMMIT_MOST_SECONDS = 0.05
"""How often to ask whether a transaction that is committing is over, at first and in the end."""
_CLOSE_SECONDS = 5.0


class _Committing(NamedTuple):
    transaction: RootTransaction
    topic_ids: set[int]
    has_staged: bool


class Mover:
    """Follows transactions that carry messages. The thread starts when there is something to follow."""

    def __init__(self, database: Database, wake: Callable[[int], None]) -> None:
        self._database = database
        self._wake = wake
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
            if not self._is_closing and (has_staged or self._is_watching):
                self._committing.append(_Committing(transaction, topic_ids, has_staged))
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
        while True:
            over = self._take_over()
            for topic_id in {topic_id for one in over for topic_id in one.topic_ids}:
                self._wake(topic_id)
            now = time.monotonic()
            if now >= self._look_at or any(one.has_staged for one in over):
                is_done = self._move()
                with self._changed:
                    self._look_at = math.inf if is_done and not self._is_watching else now + _LOOK_SECONDS
            pause = _COMMIT_SECONDS if over else min(2 * pause, _COMMIT_MOST_SECONDS)
            with self._changed:
                if self._is_closing and all(one.transaction.is_active for one in self._committing):
                    return
                seconds = max(0.0, self._look_at - time.monotonic())
                self._changed.wait(min(seconds, pause if self._committing else threading.TIMEOUT_MAX))

    def _take_over(self) -> list[_Committing]:
        """What is over of what is followed. A transaction's flag is read from another thread; it changes once."""
        with self._changed:
            over = [one for one in self._committing if not one.transaction.is_active]
            self._committing = [one for one in self._committing if one.transaction.is_active]
        return over

    def _move(self) -> bool:
        """Move what is due; return False if that failed and has to be tried again."""
        try:
            for partition_id in self._database.read(lambda conn: stage.due(conn, self._database.dialect)):
                self._move_all_of(partition_id)
        except SqlmqError as error:
            log.warning("Staged messages could not be moved into the log, and are tried again: %s", error)
            return False
        except Exception:
            # A thread that dies here would leave what is staged behind, silently.
            log.exception("Moving staged messages failed, and is tried again")
            return False
        return True

    def _move_all_of(self, partition_id: int) -> None:
        while True:
            moved = self._database.write(
                lambda conn: stage.move(conn, self._database.dialect, partition_id),
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
