"""Looks for all consumers of one MQ that have waited for long, in one go, so that a hundred cost as much as one.

One thread per MQ, apart from the one that sends heartbeats, which a slow look must not hold up. Nothing depends on it:
a consumer goes on waiting only as long as looks succeed that began after its wait did; else it looks itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from typing import TYPE_CHECKING, Protocol

from sqlmq.background.wakeups import FEW
from sqlmq.errors import SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import backoff, watch_interval
from sqlmq.operations import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from sqlmq.background.wakeups import Wakeups
    from sqlmq.database.database import Database
    from sqlmq.operations.poll import PollRequest, PollResult

log = logging.getLogger("sqlmq.background")

_GROUPS_SECONDS = 0.05
"""How soon to look at groups again, when there are writes to be noticed."""
_SLOW_SECONDS = 0.5
"""Whoever can't be served for so long looks himself."""
_WATCH_AGAIN_SECONDS = 10.0
"""When to try again to watch a file, after that has failed."""
_CLOSE_SECONDS = 1.0


class Sleeper(Protocol):
    """What the thread needs of a consumer. None of these may block."""

    @property
    def is_waiting(self) -> bool:
        """Whether somebody waits for a message."""

    @property
    def wakeups(self) -> Wakeups:
        """Those who wait."""

    def poll_request(self) -> PollRequest | None:
        """What to look for; None if they will have to look themselves."""

    def wake(self) -> None:
        """There may be new messages."""

    def recheck_group_soon(self) -> None:
        """The group may have changed."""


class SharedPoller:
    """Looks for consumers, wakes those for whom there is something. The thread starts with the first that waits.

    On a database that tells cheaply that somebody has written, it looks as soon as that happens; on every one,
    somewhat more often than each *poll_max_seconds*.
    """

    def __init__(
        self, database: Database, consumers: Callable[[], Sequence[Sleeper]], *, poll_max_seconds: float
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._consumers = consumers
        self._poll_max_seconds = poll_max_seconds
        self._can_watch = database.dialect.has_change_token and not database.one_connection
        self._thread: threading.Thread | None
        self._is_well: bool
        self._watches_well: bool
        self._watch_at: float
        self._is_asked: bool
        self._is_asked_for_groups: bool
        self._groups_at: float
        self._start_over()

    def start(self) -> None:
        """A consumer begins to wait."""
        if self._pid != os.getpid():
            self._start_over()
        if self._is_watching:
            return
        with self._starting:
            if not self._is_closing and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="sqlmq-poller", daemon=True)
                self._thread.start()
        if self._can_watch:
            self._stirred.set()

    def poll_now(self, *, at_groups: bool) -> bool:
        """Look for all who wait, without delay; return False if they had better look themselves."""
        if self._pid != os.getpid() or self._thread is None or not self._thread.is_alive():
            return False
        if not self._is_well or self._clock.monotonic() - self._looking_since > _SLOW_SECONDS:
            return False
        with self._asking:
            self._is_asked = True
            self._is_asked_for_groups |= at_groups
        self._stirred.set()
        return True

    def close(self) -> None:
        """End the thread."""
        if self._pid != os.getpid():
            return
        with self._starting:
            self._is_closing = True
        self._stirred.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            with contextlib.closing(_ChangeCounter(self._database)) as watch:
                self._serve(watch)
        finally:
            self._is_watching = False

    def _serve(self, watch: _ChangeCounter) -> None:
        next_look_at = self._next_look()
        while True:
            self._stirred.clear()
            if self._is_closing:
                return
            consumers = self._consumers()
            # Not watching first, then asking who waits: whoever begins to wait in between stirs.
            self._is_watching = False
            can_watch = self._can_watch and self._clock.monotonic() >= self._watch_at
            self._is_watching = can_watch and any(consumer.is_waiting for consumer in consumers)
            self._look_if_asked(consumers)
            if self._is_watching and self._has_changed(watch):
                self._look_after_change(consumers)
            if self._clock.monotonic() >= next_look_at:
                next_look_at = self._next_look()
                resting = [consumer for consumer in consumers if consumer.wakeups.delegated]
                self._look(resting, _leave_alone, at_groups=True)
            pause = next_look_at - self._clock.monotonic()
            if self._is_watching:
                pause = min(pause, watch_interval(self._clock.monotonic() - self._found_at))
            elif not self._watches_well:
                pause = min(pause, self._watch_at - self._clock.monotonic())
            self._stirred.wait(max(0.0, pause))

    def _next_look(self) -> float:
        seconds = self._poll_max_seconds
        return self._clock.monotonic() + backoff(0, least=seconds, most=seconds, random=self._clock.random.random())

    def _has_changed(self, watch: _ChangeCounter) -> bool:
        try:
            has_changed = watch.has_changed()
        except Exception:
            if self._watches_well:
                log.warning(
                    "Can't watch for writes of other processes, and tries again from time to time; consumers poll.",
                    exc_info=True,
                    extra=log_fields("watch unavailable"),
                )
            self._watches_well = self._is_watching = False
            self._watch_at = self._clock.monotonic() + _WATCH_AGAIN_SECONDS
            watch.start_over()
            return False
        self._watches_well = True
        return has_changed

    def _look_if_asked(self, consumers: Sequence[Sleeper]) -> None:
        with self._asking:
            is_asked, at_groups = self._is_asked, self._is_asked_for_groups
            self._is_asked = self._is_asked_for_groups = False
        if is_asked:
            awaiting = [consumer for consumer in consumers if at_groups or consumer.is_waiting]
            self._look(awaiting, _recheck_group_soon if at_groups else _wake, at_groups=at_groups)

    def _look_after_change(self, consumers: Sequence[Sleeper]) -> None:
        now = self._clock.monotonic()
        at_groups = now >= self._groups_at
        if at_groups:
            self._groups_at = now + _GROUPS_SECONDS
        # Also those who do not wait: they may be looking, and have seen the log as it was before.
        awake = [consumer for consumer in consumers if not consumer.wakeups.delegated]
        if len(awake) <= FEW:
            for consumer in awake:
                consumer.wake()
            consumers = [consumer for consumer in consumers if consumer not in awake]
        self._look(consumers, _wake, at_groups=at_groups)

    def _look(self, consumers: Sequence[Sleeper], missed: Callable[[Sleeper], None], *, at_groups: bool) -> None:
        """Look for *consumers*, and wake those for whom there is something; those who could not be looked for are *missed*."""
        self._looking_since = began = self._clock.monotonic()
        views = [(consumer, consumer.poll_request()) for consumer in consumers]
        found = self._look_once([view for _, view in views if view is not None], at_groups=at_groups)
        self._looking_since = math.inf
        for consumer, view in views:
            news = None if view is None else next(found, None)
            if news is None:
                missed(consumer)
            elif news.has_changes:
                consumer.recheck_group_soon()
            elif news.has_messages:
                self._found_at = began
                consumer.wake()
            elif at_groups:
                consumer.wakeups.polled(began)

    def _look_once(self, views: Sequence[PollRequest], *, at_groups: bool) -> Iterator[PollResult]:
        """What there is for each of *views*; nothing if that can't be found out."""
        if not views:
            return iter(())
        try:
            # Retries would take seconds, after which all consumers would poll for themselves.
            found = self._database.read_once(poll.look, views, at_groups=at_groups)
        except Exception as error:
            if self._is_well and not self._is_closing:
                trace = not isinstance(error, SqlmqError)
                log.warning(
                    "Looking for all consumers at once failed; each looks itself: %s",
                    error,
                    exc_info=trace,
                    extra=log_fields("shared poll failed", error=error),
                )
            self._is_well = False
            return iter(())
        self._is_well = True
        return iter(found)

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: the parent's thread stays with the parent."""
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._stirred = self._clock.event()
        self._thread = None
        self._is_closing = False
        self._is_watching = False
        self._watches_well = True
        self._watch_at = 0.0
        self._is_well = True
        self._looking_since = math.inf
        self._asking = threading.Lock()
        self._is_asked = self._is_asked_for_groups = False
        self._found_at = self._clock.monotonic()
        self._groups_at = 0.0


def _wake(consumer: Sleeper) -> None:
    consumer.wake()


def _recheck_group_soon(consumer: Sleeper) -> None:
    consumer.recheck_group_soon()


def _leave_alone(consumer: Sleeper) -> None:
    consumer.wakeups.polled(-math.inf)


class _ChangeCounter:
    """Notices that some other connection has written, on a connection it keeps."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conn: Connection | None = None
        self._token: int | None = None

    def has_changed(self) -> bool:
        if self._conn is None:
            self._conn = self._database.engine.connect()
        before, self._token = self._token, self._database.dialect.change_token(self._conn)
        return before != self._token

    def start_over(self) -> None:
        """Leave the connection, which may be broken."""
        if self._conn is not None:
            self._conn.invalidate()
            self.close()

    def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
