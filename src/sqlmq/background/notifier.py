"""Tells other processes, after a commit, that a topic has new messages: by NOTIFY, where the database has that.

Never in the transaction that appends, because committing a NOTIFY takes a lock that the whole server shares. One thread
per MQ, for those who commit have better things to do; it tells of each topic at once, and then not more often than
anybody could use. Nothing depends on it: whoever is not told looks by himself, later.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from sqlmq.errors import SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.operations import notify

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from sqlmq.database.database import Database

log = logging.getLogger("sqlmq.background")

_AGAIN_SECONDS = 0.01
"""How soon after a notice the next one of the same topic goes out, when it told of many commits."""
_SOON_SECONDS = 0.004
"""And how soon when it told of few: one by one, so that none waits for the next."""
_FEW_COMMITS = 2
_AUDIENCE_SECONDS = 1.0
"""For how long it is taken for granted that somebody, or nobody, waits for a topic's messages."""
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 1.0


class Notifier:
    """Sends notices of one MQ. The thread starts with the first message and ends with ``close``.

    *own_members* gives the ids of the consumers that are woken without it.
    """

    def __init__(self, database: Database, own_members: Callable[[], Collection[int]]) -> None:
        self._database = database
        self._clock = database.clock
        self._own_members = own_members
        self._thread: threading.Thread | None
        self._told: dict[int, int]
        self._others: list[tuple[str, Callable[[], None]]]
        self._start_over()

    def tell(self, topic_id: int) -> None:
        """A topic has new messages, committed by now. Returns at once."""
        self._leave_fork()
        with self._changed:
            if self._is_closing:
                return
            commits = self._told.get(topic_id, 0)
            self._told[topic_id] = commits + 1
            if not commits:
                self._run_thread()

    def send(self, payload: str, sent: Callable[[], None]) -> None:
        """Send *payload* beside the notices, and call *sent* then. Returns at once."""
        self._leave_fork()
        with self._changed:
            if not self._is_closing:
                self._others.append((payload, sent))
                self._run_thread()

    def close(self) -> None:
        """Send what is still to be told, if the database answers, and end the thread."""
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
            self._thread = threading.Thread(target=self._run, name="sqlmq-notifier", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        schedule = Schedule()
        is_well = True
        while True:
            now = self._clock.monotonic()
            with self._changed:
                is_last = self._is_closing
                due = set(self._told) if is_last else schedule.ready(self._told, now)
                others, self._others = ([] if is_last else self._others), []
                if not due and not others:
                    if is_last:
                        return
                    self._changed.wait(schedule.pause(self._told, now))
                    continue
                told = {topic_id: self._told.pop(topic_id) for topic_id in due}
            try:
                self._send(schedule, told, [payload for payload, _ in others])
            except Exception as error:
                if is_well:
                    trace = not isinstance(error, SqlmqError)
                    log.warning(
                        "Other processes can't be told of messages; they poll: %s",
                        error,
                        exc_info=trace,
                        extra=log_fields("notify failed", error=error),
                    )
                is_well = False
                with self._changed:
                    self._told = told | self._told
                    self._others += others
                    if not self._is_closing:
                        self._changed.wait_for(lambda: self._is_closing, _RETRY_SECONDS)
            else:
                is_well = True
                for _, sent in others:
                    sent()
            if is_last:
                return

    def _send(self, schedule: Schedule, told: Mapping[int, int], others: list[str]) -> None:
        now = self._clock.monotonic()
        sure = schedule.awaited(told, now)
        unsure = told.keys() - sure
        but = self._own_members()
        # Retries would take seconds, in which close() waits.
        awaited = self._database.read_once(notify.tell, sure=sure, unsure=unsure, but=but, others=others)
        schedule.note(told, unsure, awaited, now)

    def _leave_fork(self) -> None:
        if self._pid != os.getpid():
            self._start_over()

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: the parent's thread and what it was told stay with the parent."""
        self._pid = os.getpid()
        self._changed = self._clock.condition()
        self._thread = None
        self._told = {}  # how many commits there were of each topic, by its id
        self._others = []
        self._is_closing = False


class Schedule:
    """When each topic's next notice is due, and for which topics somebody waits. Every time is given."""

    def __init__(self) -> None:
        self._not_before: dict[int, float] = {}
        self._awaited_until: dict[int, float] = {}

    def ready(self, told: Collection[int], now: float) -> set[int]:
        """Those of the topics *told* whose turn it is."""
        return {topic_id for topic_id in told if self._not_before.get(topic_id, now) <= now}

    def pause(self, told: Collection[int], now: float) -> float:
        """Seconds until it is the turn of one of *told*."""
        turns = [self._not_before.get(topic_id, now) for topic_id in told]
        return max(0.0, min(turns) - now) if turns else threading.TIMEOUT_MAX

    def awaited(self, topic_ids: Iterable[int], now: float) -> set[int]:
        """Those of *topic_ids* for which somebody waited a moment ago."""
        return {topic_id for topic_id in topic_ids if self._awaited_until.get(topic_id, now) > now}

    def note(self, told: Mapping[int, int], asked: set[int], awaited: set[int], now: float) -> None:
        """Of so many commits of each topic it was *told*, but for those that were *asked* about and are not *awaited*.

        For these a notice is held back until it is time to ask again, not dropped: then it comes late at the most.
        """
        for topic_id, commits in told.items():
            is_awaited = topic_id in awaited or topic_id not in asked
            again = _AGAIN_SECONDS if commits > _FEW_COMMITS else _SOON_SECONDS
            self._not_before[topic_id] = now + (again if is_awaited else _AUDIENCE_SECONDS)
        for topic_id in awaited:
            self._awaited_until[topic_id] = now + _AUDIENCE_SECONDS
        # So that they don't grow with all topics there ever were.
        for moments in (self._not_before, self._awaited_until):
            if len(moments) > 1_000:
                for topic_id in [topic_id for topic_id, moment in moments.items() if moment <= now]:
                    del moments[topic_id]
