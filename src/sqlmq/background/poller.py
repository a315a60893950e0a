"""Polls for all members of one MQ that have waited for long, in one statement, so that a hundred cost as much as one.

It has a thread of its own, because a slow poll must not delay heartbeats. Nothing depends on it: a member goes on
waiting only as long as shared polls succeed that began after its wait did; else it polls for itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from typing import TYPE_CHECKING

from sqlmq.background.registry import FEW_MEMBERS
from sqlmq.background.thread import BackgroundThread
from sqlmq.database.engines import BesidePool
from sqlmq.errors import SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import poll_pause, watch_interval
from sqlmq.operations import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from sqlmq.background.registry import GroupMember, MemberRegistry
    from sqlmq.database.database import Database
    from sqlmq.operations.poll import PollRequest, PollResult

log = logging.getLogger("sqlmq.background")

_GROUPS_SECONDS = 0.05
"""How long after a poll of the groups the next write makes it poll them again."""
_SLOW_SECONDS = 0.5
"""How long a poll may take before members are asked to poll for themselves."""
_WATCH_AGAIN_SECONDS = 10.0
"""How long after a failure to read the change counter the next attempt comes."""
_CLOSE_SECONDS = 1.0


class SharedPoller(BackgroundThread):
    """Polls for waiting members, and wakes those for which there is something. Starts when a member first waits.

    It polls somewhat more often than every *poll_max_seconds*. Where the database has a change counter (SQLite), it
    also polls as soon as another connection has written.
    """

    thread_name = "sqlmq-poller"

    def __init__(self, database: Database, registry: MemberRegistry, *, poll_max_seconds: float) -> None:
        super().__init__(database.clock)
        self._database = database
        self._registry = registry
        self._poll_max_seconds = poll_max_seconds
        self._can_watch = database.dialect.has_change_token and not database.one_connection

    def _start_over(self) -> None:
        super()._start_over()
        self._wake_event = self._clock.event()
        self._is_watching: bool = False
        """Whether the thread reads the change counter again soon, so that it need not be woken."""
        self._can_read_counter: bool = True
        self._watch_again_at: float = 0.0
        self._is_healthy: bool = True
        """Whether the last poll succeeded."""
        self._polling_since = math.inf
        """When the poll under way began; inf if there is none."""
        self._is_requested: bool = False
        self._groups_are_requested: bool = False
        self._found_at = self._clock.monotonic()
        """When a poll last found messages."""
        self._groups_at: float = 0.0
        """When a write next makes it poll the groups."""

    def start(self) -> None:
        """Start the thread if none is alive, and let it watch for writes: a member begins to wait."""
        self._start_over_if_forked()
        if self._is_watching:
            return
        super().start()
        if self._can_watch:
            self._wake_event.set()

    def poll_now(self, *, at_groups: bool) -> bool:
        """Poll for all waiting members without delay; return False if they should poll for themselves."""
        if self._pid != os.getpid() or self._thread is None or not self._thread.is_alive():
            return False
        if not self._is_healthy or self._clock.monotonic() - self._polling_since > _SLOW_SECONDS:
            return False
        with self._changed:
            self._is_requested = True
            self._groups_are_requested |= at_groups
        self._wake_event.set()
        return True

    def close(self) -> None:
        """End the thread."""
        self.stop(_CLOSE_SECONDS)

    def _interrupt(self) -> None:
        self._wake_event.set()

    def run(self) -> None:
        """Poll until stopped."""
        try:
            with contextlib.closing(_ChangeCounter(self._database)) as counter:
                self._serve(counter)
        finally:
            self._is_watching = False

    def _serve(self, counter: _ChangeCounter) -> None:
        next_poll_at = self._next_poll_at()
        while True:
            self._wake_event.clear()
            if self._stopping.is_set():
                return
            members = self._registry.members()
            self._decide_whether_to_watch(members)
            self._poll_if_requested(members)
            if self._is_watching and self._has_changed(counter):
                self._poll_after_change(members)
            if self._clock.monotonic() >= next_poll_at:
                next_poll_at = self._next_poll_at()
                self._poll_for_delegated(members)
            self._wake_event.wait(self._pause(next_poll_at))

    def _next_poll_at(self) -> float:
        seconds = self._poll_max_seconds
        return self._clock.monotonic() + poll_pause(0, least=seconds, most=seconds, random=self._clock.random.random())

    def _pause(self, next_poll_at: float) -> float:
        """Return for how many seconds there is nothing to do."""
        now = self._clock.monotonic()
        pause = next_poll_at - now
        if self._is_watching:
            pause = min(pause, watch_interval(now - self._found_at))
        elif not self._can_read_counter:
            pause = min(pause, self._watch_again_at - now)
        return max(0.0, pause)

    def _decide_whether_to_watch(self, members: Sequence[GroupMember]) -> None:
        # First the flag, then the question: a member that begins to wait in between sees the flag and sets the event.
        self._is_watching = False
        can_watch = self._can_watch and self._clock.monotonic() >= self._watch_again_at
        self._is_watching = can_watch and any(member.is_waiting for member in members)

    def _has_changed(self, counter: _ChangeCounter) -> bool:
        try:
            has_changed = counter.has_changed()
        except Exception:
            if self._can_read_counter:
                log.warning(
                    "Can't watch for writes of other processes, and tries again from time to time; consumers poll.",
                    exc_info=True,
                    extra=log_fields("watch unavailable"),
                )
            self._can_read_counter = self._is_watching = False
            self._watch_again_at = self._clock.monotonic() + _WATCH_AGAIN_SECONDS
            counter.reconnect()
            return False
        self._can_read_counter = True
        return has_changed

    def _poll_if_requested(self, members: Sequence[GroupMember]) -> None:
        with self._changed:
            is_requested, at_groups = self._is_requested, self._groups_are_requested
            self._is_requested = self._groups_are_requested = False
        if not is_requested:
            return
        chosen = [member for member in members if at_groups or member.is_waiting]
        for member in self._poll(chosen, at_groups=at_groups):
            if at_groups:
                member.recheck_group_soon()
            else:
                member.wake()

    def _poll_after_change(self, members: Sequence[GroupMember]) -> None:
        now = self._clock.monotonic()
        at_groups = now >= self._groups_at
        if at_groups:
            self._groups_at = now + _GROUPS_SECONDS
        # Also the members that do not wait: they may be polling just now, in a snapshot from before the write.
        awake = [member for member in members if not member.wakeups.delegated]
        if len(awake) <= FEW_MEMBERS:
            for member in awake:
                member.wake()
            members = [member for member in members if member not in awake]
        for member in self._poll(members, at_groups=at_groups):
            member.wake()

    def _poll_for_delegated(self, members: Sequence[GroupMember]) -> None:
        delegated = [member for member in members if member.wakeups.delegated]
        for member in self._poll(delegated, at_groups=True):
            member.wakeups.polled(-math.inf)

    def _poll(self, members: Sequence[GroupMember], *, at_groups: bool) -> list[GroupMember]:
        """Poll for *members* and wake those for which there is something; return those that must poll for themselves."""
        self._polling_since = began = self._clock.monotonic()
        requests = [(member, member.poll_request()) for member in members]
        results = self._poll_database([request for _, request in requests if request is not None], at_groups=at_groups)
        self._polling_since = math.inf
        left = []
        for member, request in requests:
            result = None if request is None else next(results, None)
            if result is None:
                left.append(member)
            elif result.has_changes:
                member.recheck_group_soon()
            elif result.has_messages:
                self._found_at = began
                member.wake()
            elif at_groups:
                member.wakeups.polled(began)
        return left

    def _poll_database(self, requests: Sequence[PollRequest], *, at_groups: bool) -> Iterator[PollResult]:
        """Return the result for each of *requests*; no result at all if the database can't be asked."""
        if not requests:
            return iter(())
        try:
            # Not retried here: that would take seconds, after which all members would poll for themselves.
            results = self._database.read_once(poll.poll, requests, at_groups=at_groups)
        except Exception as error:
            if self._is_healthy and not self._stopping.is_set():
                trace = not isinstance(error, SqlmqError)
                log.warning(
                    "The shared poll failed; each consumer polls for itself: %s",
                    error,
                    exc_info=trace,
                    extra=log_fields("shared poll failed", error=error),
                )
            self._is_healthy = False
            return iter(())
        self._is_healthy = True
        return iter(results)


class _ChangeCounter:
    """Tells whether another connection has written since the last question, on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._dialect = database.dialect
        # Kept for good, so it may be none of a pool, in which the application may have a single one.
        self._pool = BesidePool(database.engine)
        self._conn: Connection | None = None
        self._token: int | None = None

    def has_changed(self) -> bool:
        if self._conn is None:
            self._conn = self._pool.engine().connect()
        before, self._token = self._token, self._dialect.change_token(self._conn)
        return before != self._token

    def reconnect(self) -> None:
        """Drop the connection, which may be broken; the next question opens another."""
        if self._conn is not None:
            self._conn.invalidate()
            self.close()

    def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
        self._pool.dispose()
