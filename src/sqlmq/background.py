"""One thread per MQ, for what has to happen whatever the application is doing.

It sends the heartbeats of all consumers in one statement, has each consumer tend to itself (commit what has waited long
enough, give partitions back that nobody asks for), and watches for other processes' writes where that costs next to
nothing, so that waiting consumers need not wait for their next look.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Protocol

from sqlmq.flows import membership
from sqlmq.timing import heartbeat_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from sqlmq.database import Database

log = logging.getLogger(__name__)

_WATCH_SECONDS = 0.01
"""How often to look for other processes' writes while a consumer waits, on a database that tells cheaply."""


class Keeper(Protocol):
    """What the thread needs of a consumer. None of these may block for longer than a statement takes."""

    @property
    def member_id(self) -> int:
        """The database's id of the member."""

    @property
    def topic_id(self) -> int:
        """The database's id of its topic."""

    @property
    def group_id(self) -> int:
        """The database's id of its group."""

    @property
    def is_waiting(self) -> bool:
        """Whether a thread waits for a message."""

    def heard(self, began: float) -> None:
        """The heartbeat that was sent at *began*, by the monotonic clock, has arrived."""

    def expelled(self) -> None:
        """The group no longer has this member."""

    def tend(self) -> None:
        """Do what is due."""

    def wake(self) -> None:
        """There may be new messages."""

    def look_around(self) -> None:
        """The group may have changed."""


class Background:
    """Keeps the consumers of one MQ alive. The thread starts with the first and ends with ``close``.

    *awaited* is called whenever one begins to wait.
    """

    def __init__(
        self, database: Database, *, lease_seconds: float, tend_seconds: float, awaited: Callable[[], None]
    ) -> None:
        self._database = database
        self._awaited = awaited
        self._can_watch = database.dialect.has_change_token and not database.one_connection
        self._beat_seconds = heartbeat_interval(lease_seconds)
        self._tend_seconds = min(tend_seconds, self._beat_seconds)
        self._thread: threading.Thread | None
        self._keepers: tuple[Keeper, ...]
        self._start_over()

    def add(self, keeper: Keeper) -> None:
        """Keep *keeper* alive from now on."""
        self._leave_fork()
        with self._lock:
            self._keepers = (*self._keepers, keeper)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sqlmq-background", daemon=True)
                self._thread.start()

    def remove(self, keeper: Keeper) -> None:
        """Leave *keeper* to itself."""
        with self._lock:
            self._keepers = tuple(other for other in self._keepers if other is not keeper)

    def wake(self, topic_id: int) -> None:
        """Tell the consumers of a topic, those in this process, that there are new messages."""
        self._leave_fork()
        for keeper in self._keepers:
            if keeper.topic_id == topic_id:
                keeper.wake()

    def wake_all(self) -> None:
        """Tell all consumers of this process that there may be new messages."""
        for keeper in self._keepers:
            keeper.wake()

    def member_ids(self) -> list[int]:
        """The members of this process; in a forked child, none of its parent's."""
        return [keeper.member_id for keeper in self._keepers] if self._pid == os.getpid() else []

    def look_around(self, group_id: int, *, but: Keeper) -> None:
        """Tell the other consumers of a group, those in this process, that the group has changed."""
        self._leave_fork()
        for keeper in self._keepers:
            if keeper.group_id == group_id and keeper is not but:
                keeper.look_around()

    def nudge(self) -> None:
        """A consumer has begun to wait: watch for it."""
        self._awaited()
        if self._can_watch:
            self._nudged.set()

    def close(self) -> None:
        """End the thread and wait for it."""
        if self._pid != os.getpid():
            return
        self._closing = True
        self._nudged.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        watch = _Watch(self._database, is_possible=self._can_watch)
        next_beat = next_tend = 0.0
        try:
            while not self._closing:
                now = time.monotonic()
                if now >= next_beat:
                    next_beat = now + (self._beat_seconds if self._beat(now) else self._beat_seconds / 10)
                if now >= next_tend:
                    next_tend = now + self._tend_seconds
                    self._tend()
                is_watching = watch.is_possible and any(keeper.is_waiting for keeper in self._keepers)
                if is_watching and watch.has_changed():
                    self.wake_all()
                pause = _WATCH_SECONDS if is_watching else max(0.0, min(next_beat, next_tend) - time.monotonic())
                self._nudged.wait(pause)
                # While watching, a nudge says nothing new; left set, it would turn the wait into a spin.
                self._nudged.clear()
        finally:
            watch.close()

    def _tend(self) -> None:
        for keeper in self._keepers:
            try:
                keeper.tend()
            except Exception:
                # Whatever it is, the others' heartbeats must go on.
                log.exception("Tending to %r failed", keeper)

    def _beat(self, began: float) -> bool:
        keepers = self._keepers
        if not keepers:
            return True
        ids = [keeper.member_id for keeper in keepers]
        try:
            alive = self._database.write(lambda conn: membership.heartbeat(conn, self._database.dialect, ids))
        except Exception as error:  # noqa: BLE001 - a thread that dies here would end all consumers, silently
            log.warning("A heartbeat failed and is tried again: %s", error)
            return False
        for keeper, member_id in zip(keepers, ids, strict=True):
            if member_id in alive:
                keeper.heard(began)
            elif keeper.member_id == member_id:
                keeper.expelled()
        return True

    def _leave_fork(self) -> None:
        if self._pid != os.getpid():
            self._start_over()

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: the parent's thread and consumers stay with the parent.

        They are not even woken: their locks may have been held by threads that the child has not got.
        """
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._nudged = threading.Event()
        self._keepers = ()
        self._thread = None
        self._closing = False


class _Watch:
    """Notices that some other connection has written, on a connection it keeps."""

    def __init__(self, database: Database, *, is_possible: bool) -> None:
        self._database = database
        self.is_possible = is_possible
        self._conn: Connection | None = None
        self._token: int | None = None

    def has_changed(self) -> bool:
        try:
            if self._conn is None:
                self._conn = self._database.engine.connect()
            before, self._token = self._token, self._database.dialect.change_token(self._conn)
        except Exception:
            log.warning("Can't watch for writes of other processes; consumers poll.", exc_info=True)
            self.is_possible = False
            return False
        return before != self._token

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
