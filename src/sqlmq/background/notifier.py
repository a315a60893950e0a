"""Announces new messages after a commit: wakes consumers of this process, and those of others by NOTIFY.

NOTIFY is never sent in the transaction that appends, because committing it takes a lock that the whole server shares. A
thread of its own sends it, so that committing threads do not wait. The first commit of a topic is notified at once,
later ones at most every 4 to 10 ms. Nothing depends on it: a consumer that is not notified polls, later.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.background.thread import BackgroundThread
from sqlmq.errors import SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.operations import notify

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlmq.background.registry import MemberRegistry
    from sqlmq.database.database import Database
    from sqlmq.hooks.clock import Clock

log = logging.getLogger("sqlmq.background")

_AGAIN_SECONDS = 0.01
"""How soon after a notification the next one of the same topic is sent, when it stood for many commits."""
_SOON_SECONDS = 0.004
"""And how soon when it stood for few: these come one by one, and none should wait for the next."""
_FEW_COMMITS = 2
_AUDIENCE_SECONDS = 1.0
"""For how long the answer counts whether consumers of other processes wait for a topic."""
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 1.0


class Probe:
    """A notification that a listener sends to itself. Its time runs from when it was sent, which may take a while."""

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self.payload = f"probe {clock.token()}"
        self.sent_at: float | None = None

    def sent(self) -> None:
        """Note that it was sent just now."""
        self.sent_at = self._monotonic()


class Notifier(BackgroundThread):
    """Announces the messages of one MQ. The thread starts with the first, where there are processes to notify.

    *reaches_other_processes* is whether the database has NOTIFY and the application wants it. The members of the
    *registry* are woken without it.
    """

    thread_name = "sqlmq-notifier"

    def __init__(self, database: Database, registry: MemberRegistry, *, reaches_other_processes: bool) -> None:
        super().__init__(database.clock)
        self._database = database
        self._registry = registry
        self.reaches_other_processes = reaches_other_processes

    def _start_over(self) -> None:
        super()._start_over()
        self._commits: dict[int, int] = {}
        """How many commits of each topic are not notified yet, by topic id."""
        self._probes: list[Probe] = []
        self._is_healthy = True
        """Whether the last attempt to send succeeded."""

    def announce(self, topic_id: int) -> None:
        """Wake the consumers of a topic, here and in other processes: it has new messages, committed by now."""
        self._registry.wake(topic_id)
        if self.reaches_other_processes:
            self.notify(topic_id)

    def notify(self, topic_id: int) -> None:
        """Notify other processes of new messages in a topic, soon. Returns at once."""
        self._start_over_if_forked()
        with self._changed:
            if self._stopping.is_set():
                return
            commits = self._commits.get(topic_id, 0)
            self._commits[topic_id] = commits + 1
            if not commits:
                self._changed.notify_all()
        if not commits:
            self.try_to_start()

    def send_probe(self, probe: Probe) -> None:
        """Send *probe* with the next notifications. Returns at once."""
        self._start_over_if_forked()
        with self._changed:
            if self._stopping.is_set():
                return
            self._probes.append(probe)
            self._changed.notify_all()
        self.try_to_start()

    def close(self) -> None:
        """Send what is left, if the database answers, and end the thread."""
        self.stop(_CLOSE_SECONDS)

    def run(self) -> None:
        """Send notifications when they are due, until stopped; then those that are left, once."""
        schedule = NotifySchedule()
        is_last = False
        while not is_last:
            batch = self._next_batch(schedule)
            is_last = batch.is_last
            if not batch.commits and not batch.probes:
                return
            try:
                self._send(schedule, batch)
            except Exception as error:  # noqa: BLE001 - if this thread died, all notifications would silently cease
                self._log_failure(error)
                self._put_back(batch)
                self._stopping.wait(_RETRY_SECONDS)
            else:
                self._is_healthy = True
                for probe in batch.probes:
                    probe.sent()

    def _next_batch(self, schedule: NotifySchedule) -> _Batch:
        """Wait until something is due, and take it; when stopped, take all topics."""
        with self._changed:
            while True:
                if self._stopping.is_set():
                    commits, self._commits = self._commits, {}
                    return _Batch(commits, [], is_last=True)
                now = self._clock.monotonic()
                due = schedule.ready(self._commits, now)
                if due or self._probes:
                    probes, self._probes = self._probes, []
                    return _Batch({topic_id: self._commits.pop(topic_id) for topic_id in due}, probes, is_last=False)
                self._changed.wait(schedule.pause(self._commits, now))

    def _send(self, schedule: NotifySchedule, batch: _Batch) -> None:
        now = self._clock.monotonic()
        sure = schedule.awaited(batch.commits, now)
        unsure = batch.commits.keys() - sure
        # Not retried here: that would take seconds, in which closing waits.
        awaited = self._database.read_once(
            notify.notify,
            sure=sure,
            unsure=unsure,
            but=self._registry.member_ids(),
            others=[probe.payload for probe in batch.probes],
        )
        schedule.note(batch.commits, unsure, awaited, now)

    def _log_failure(self, error: Exception) -> None:
        if self._is_healthy:
            log.warning(
                "Other processes can't be notified of messages; they poll: %s",
                error,
                exc_info=not isinstance(error, SqlmqError),
                extra=log_fields("notify failed", error=error),
            )
        self._is_healthy = False

    def _put_back(self, batch: _Batch) -> None:
        with self._changed:
            self._commits = batch.commits | self._commits
            self._probes += batch.probes


class _Batch(NamedTuple):
    """What is sent together."""

    commits: dict[int, int]
    """How many commits of each topic, by topic id."""
    probes: list[Probe]
    is_last: bool


class NotifySchedule:
    """When the next notification of each topic is due, and which topics have waiting consumers. Reads no clock."""

    def __init__(self) -> None:
        self._not_before: dict[int, float] = {}
        self._awaited_until: dict[int, float] = {}

    def ready(self, topic_ids: Collection[int], now: float) -> set[int]:
        """Return those of *topic_ids* of which a notification may be sent."""
        return {topic_id for topic_id in topic_ids if self._not_before.get(topic_id, now) <= now}

    def pause(self, topic_ids: Collection[int], now: float) -> float:
        """Return in how many seconds the first of *topic_ids* is ready."""
        moments = [self._not_before.get(topic_id, now) for topic_id in topic_ids]
        return max(0.0, min(moments) - now) if moments else threading.TIMEOUT_MAX

    def awaited(self, topic_ids: Iterable[int], now: float) -> set[int]:
        """Return those of *topic_ids* that had waiting consumers a moment ago."""
        return {topic_id for topic_id in topic_ids if self._awaited_until.get(topic_id, now) > now}

    def note(self, commits: Mapping[int, int], asked: set[int], awaited: set[int], now: float) -> None:
        """Note what was sent: a notification of the topics of *commits*, except those *asked* about but not *awaited*.

        For these, the next notification is held back until it is time to ask again. It is not dropped, so it is late at
        most.
        """
        for topic_id, count in commits.items():
            is_awaited = topic_id in awaited or topic_id not in asked
            again = _AGAIN_SECONDS if count > _FEW_COMMITS else _SOON_SECONDS
            self._not_before[topic_id] = now + (again if is_awaited else _AUDIENCE_SECONDS)
        for topic_id in awaited:
            self._awaited_until[topic_id] = now + _AUDIENCE_SECONDS
        # Without this, they would grow with all topics that ever existed.
        for moments in (self._not_before, self._awaited_until):
            if len(moments) > 1_000:
                for topic_id in [topic_id for topic_id, moment in moments.items() if moment <= now]:
                    del moments[topic_id]
