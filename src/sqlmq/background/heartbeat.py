"""What keeps members alive whatever the application is doing: heartbeats and housekeeping, a thread for each.

They are two threads because leases depend on heartbeats alone: no housekeeping, however slow, may delay one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlmq.background.thread import BackgroundThread
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import heartbeat_interval
from sqlmq.operations import membership

if TYPE_CHECKING:
    from sqlmq.background.registry import MemberRegistry
    from sqlmq.database.database import Database
    from sqlmq.hooks.clock import Clock

log = logging.getLogger("sqlmq.background")


class Heartbeat(BackgroundThread):
    """Sends the heartbeats of all members in one statement."""

    thread_name = "sqlmq-heartbeats"

    def __init__(self, database: Database, registry: MemberRegistry, *, lease_seconds: float) -> None:
        super().__init__(database.clock)
        self._database = database
        self._registry = registry
        self._interval_seconds = heartbeat_interval(lease_seconds)

    def run(self) -> None:
        """Send heartbeats at regular times, counted from when each was sent; sooner after a failure."""
        is_stopping = False
        while not is_stopping:
            sent_at = self._clock.monotonic()
            seconds = self._interval_seconds if self._send(sent_at) else self._interval_seconds / 10
            is_stopping = self._stopping.wait(max(0.0, sent_at + seconds - self._clock.monotonic()))

    def _send(self, sent_at: float) -> bool:
        """Send one heartbeat for all members; return whether the database acknowledged it."""
        # Read once: a member that joins again meanwhile gets another id.
        members = [(member.member_id, member) for member in self._registry.members()]
        if not members:
            return True
        try:
            # A heartbeat that takes longer is better sent again, by another connection, than waited for.
            with self._database.watchdog.shortening(self._interval_seconds):
                alive = self._database.write_with_priority(
                    membership.heartbeat, [member_id for member_id, _ in members]
                )
        except Exception as error:  # noqa: BLE001 - if this thread died, all members would silently lose their leases
            log.warning(
                "A heartbeat failed and is tried again: %s", error, extra=log_fields("heartbeat failed", error=error)
            )
            return False
        for member_id, member in members:
            if member_id in alive:
                member.heartbeat_acknowledged(sent_at)
            elif member.member_id == member_id:
                member.membership_lost()
        return True


class Housekeeping(BackgroundThread):
    """Lets each member commit what is due and release partitions that the application no longer polls."""

    thread_name = "sqlmq-housekeeping"

    def __init__(self, clock: Clock, registry: MemberRegistry, *, interval_seconds: float) -> None:
        super().__init__(clock)
        self._registry = registry
        self._interval_seconds = interval_seconds

    def run(self) -> None:
        """Visit all members every *interval_seconds*."""
        while not self._stopping.wait(self._interval_seconds):
            for member in self._registry.members():
                try:
                    member.housekeeping()
                except Exception:
                    # Whatever the error is, the other members need their housekeeping.
                    log.exception(
                        "Housekeeping for %r failed and is tried again", member, extra=log_fields("housekeeping failed")
                    )
