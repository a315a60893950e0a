"""What has to happen for consumers whatever the application is doing: two threads per MQ.

One sends the heartbeats of all consumers, in one statement, and does nothing else: whatever else may take long, leases
must not depend on it. The other has each consumer tend to itself: commit what has waited long enough, give partitions
back that nobody asks for.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Protocol

from sqlmq.background.wakeups import FEW
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import heartbeat_interval
from sqlmq.operations import membership

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlmq.background.wakeups import Wakeups
    from sqlmq.database.database import Database
    from sqlmq.operations.poll import PollRequest

log = logging.getLogger("sqlmq.background")


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
        """Whether somebody waits for a message."""

    @property
    def wakeups(self) -> Wakeups:
        """Those who wait."""

    def poll_request(self) -> PollRequest | None:
        """What to look for, for those who wait; None if they will have to look themselves."""

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        """The heartbeat that was sent at *began*, by the monotonic clock, has arrived."""

    def membership_lost(self) -> None:
        """The group no longer has this member."""

    def housekeeping(self) -> None:
        """Do what is due."""

    def wake(self) -> None:
        """There may be new messages."""

    def recheck_group_soon(self) -> None:
        """The group may have changed."""


class Background:
    """Keeps the consumers of one MQ alive. Its threads start with the first and end with ``close``.

    *awaited* is called whenever one begins to wait. *look_soon* has somebody look for all who wait, at their groups too
    if told so, and wake those for whom there is something; it returns whether that will be done.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_seconds: float,
        tend_seconds: float,
        awaited: Callable[[], None],
        look_soon: Callable[[bool], bool],
    ) -> None:
        self._database = database
        self._clock = database.clock
        self.on_wait = awaited
        self._look_soon = look_soon
        self._beat_seconds = heartbeat_interval(lease_seconds)
        self._tend_seconds = min(tend_seconds, self._beat_seconds)
        self._threads: tuple[threading.Thread, ...]
        self._keepers: tuple[Keeper, ...]
        self._start_over()

    def add(self, keeper: Keeper) -> None:
        """Keep *keeper* alive from now on."""
        self._leave_fork()
        with self._lock:
            self._keepers = (*self._keepers, keeper)
            if not self._threads:
                self._threads = (
                    threading.Thread(target=self._keep_beating, name="sqlmq-heartbeats", daemon=True),
                    threading.Thread(target=self._keep_tending, name="sqlmq-housekeeping", daemon=True),
                )
                for thread in self._threads:
                    thread.start()

    def keepers(self) -> tuple[Keeper, ...]:
        """The consumers of this process; in a forked child, none of its parent's."""
        return self._keepers if self._pid == os.getpid() else ()

    def remove(self, keeper: Keeper) -> None:
        """Leave *keeper* to itself."""
        with self._lock:
            self._keepers = tuple(other for other in self._keepers if other is not keeper)

    def wake(self, topic_id: int) -> None:
        """Tell the consumers of a topic, those in this process, that there are new messages."""
        self._leave_fork()
        self._stir([keeper for keeper in self._keepers if keeper.topic_id == topic_id], at_groups=False)

    def wake_all(self) -> None:
        """Tell all consumers of this process that there may be new messages."""
        self._stir(self._keepers, at_groups=False)

    def member_ids(self) -> list[int]:
        """The members of this process; in a forked child, none of its parent's."""
        return [keeper.member_id for keeper in self.keepers()]

    def recheck_group_soon(self, group_id: int, *, but: Keeper | None = None) -> None:
        """Tell the consumers of a group, those in this process *but* one, that the group has changed."""
        self._leave_fork()
        others = [keeper for keeper in self._keepers if keeper.group_id == group_id and keeper is not but]
        self._stir(others, at_groups=True)

    def close(self) -> None:
        """End the threads and wait for them."""
        if self._pid != os.getpid():
            return
        self._closing.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _stir(self, keepers: Sequence[Keeper], *, at_groups: bool) -> None:
        """Wake *keepers*, but where many wait, leave it to one look which of them."""
        waiting = {keeper for keeper in keepers if keeper.is_waiting}
        are_looked_for = len(waiting) > FEW and self._look_soon(at_groups)
        for keeper in keepers:
            if are_looked_for and keeper in waiting:
                continue
            if at_groups:
                keeper.recheck_group_soon()
            else:
                keeper.wake()

    def _keep_beating(self) -> None:
        is_over = False
        while not is_over:
            began = self._clock.monotonic()
            pause = self._beat_seconds if self._beat(began) else self._beat_seconds / 10
            is_over = self._closing.wait(max(0.0, began + pause - self._clock.monotonic()))

    def _keep_tending(self) -> None:
        while not self._closing.wait(self._tend_seconds):
            self._tend()

    def _tend(self) -> None:
        for keeper in self._keepers:
            try:
                keeper.housekeeping()
            except Exception:
                # Whatever it is, the others have to be tended to.
                log.exception("Tending to %r failed", keeper, extra=log_fields("housekeeping failed"))

    def _beat(self, began: float) -> bool:
        keepers = self._keepers
        if not keepers:
            return True
        ids = [keeper.member_id for keeper in keepers]
        try:
            # One that takes longer is better sent again, by another connection, than waited for.
            with self._database.watchdog.shortening(self._beat_seconds):
                alive = self._database.write_with_priority(membership.heartbeat, ids)
        except Exception as error:  # noqa: BLE001 - a thread that dies here would end all consumers, silently
            log.warning(
                "A heartbeat failed and is tried again: %s", error, extra=log_fields("heartbeat failed", error=error)
            )
            return False
        for keeper, member_id in zip(keepers, ids, strict=True):
            if member_id in alive:
                keeper.heartbeat_acknowledged(began)
            elif keeper.member_id == member_id:
                keeper.membership_lost()
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
        self._closing = self._clock.event()
        self._keepers = ()
        self._threads = ()
