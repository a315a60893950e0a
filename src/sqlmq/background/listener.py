"""Receives the notifications of other processes while consumers wait: by LISTEN, where the database has it.

One connection and one thread per MQ, from the first time that a consumer waits. From time to time the listener sends
itself a probe. If the probe does not arrive, the connection is dead, or never receives anything, as through a pooler that
shares sessions. Nothing depends on the listener: consumers poll as if it were not there.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from sqlmq.background.notifier import Probe
from sqlmq.background.thread import BackgroundThread
from sqlmq.errors import DatabaseError, SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import poll_pause
from sqlmq.operations import notify

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq.background.notifier import Notifier
    from sqlmq.background.registry import MemberRegistry
    from sqlmq.database.database import Database
    from sqlmq.dialects import Dialect, Listening

log = logging.getLogger("sqlmq.background")

_PROBE_SECONDS = 30.0
"""How often to send a probe."""
_ANSWER_SECONDS = 5.0
"""How long a probe may take, from when it was sent."""
_UNREACHABLE_SECONDS = 600.0
"""How soon to connect again where no notification ever arrived."""
_RECONNECT_SECONDS = 0.1
_RECONNECT_MOST_SECONDS = 10.0
_CLOSE_SECONDS = 1.0


class Listener(BackgroundThread):
    """Wakes the members of one MQ when other processes notify of messages. Sends its probes through *notifier*."""

    thread_name = "sqlmq-listener"
    _listening: Listening | None = None

    def __init__(self, database: Database, registry: MemberRegistry, notifier: Notifier) -> None:
        super().__init__(database.clock)
        self._database = database
        self._registry = registry
        self._notifier = notifier
        self._has_warned = False

    def _start_over(self) -> None:
        super()._start_over()
        if self._listening is not None:
            _ABANDONED.append(self._listening)
        self._listening = None
        self._is_receiving = False

    @property
    def is_receiving(self) -> bool:
        """Whether a probe has arrived on the present connection."""
        return self._is_receiving

    def close(self) -> None:
        """End the thread, and with it the connection."""
        self.stop(_CLOSE_SECONDS)

    def _interrupt(self) -> None:
        if (listening := self._listening) is not None:
            listening.interrupt()

    def run(self) -> None:
        """Listen until stopped. Connect again when a connection ends, with growing pauses while that fails."""
        attempt = 0
        while not self._stopping.is_set():
            health = self._listen_once(attempt)
            if health is not None and health.receives_nothing:
                self._warn_unreachable()
                self._stopping.wait(_UNREACHABLE_SECONDS)
                continue
            attempt = 0 if health is not None and health.has_received else attempt + 1
            self._stopping.wait(self._pause(attempt))

    def _listen_once(self, attempt: int) -> ListenerHealth | None:
        """Listen on one connection until it ends; return what it received, None if there was no connection."""
        health = None
        try:
            with contextlib.closing(self._database.listen()) as self._listening:
                health = ListenerHealth(self._clock.monotonic())
                self._receive(self._listening, health)
        except Exception as error:
            log.log(
                # The first failure is ordinary, as when the server restarts; of those after the second there are many.
                logging.WARNING if attempt == 1 else logging.INFO,
                "Listening for messages ended; consumers poll meanwhile: %s",
                error,
                exc_info=not isinstance(error, SqlmqError),
                extra=log_fields("listening ended", error=error),
            )
        finally:
            self._is_receiving = False
            self._listening = None
        return health

    def _receive(self, listening: Listening, health: ListenerHealth) -> None:
        """Wake the members that are notified, until the connection turns out to be of no use."""
        # Messages may have been committed before this connection listened.
        self._registry.wake_all()
        while not self._stopping.is_set() and not health.is_over:
            if health.is_probe_due(self._clock.monotonic()):
                health.probe = Probe(self._clock)
                self._notifier.send_probe(health.probe)
            seconds = health.pause(self._clock.monotonic())
            with self._database.translating():
                payloads = listening.wait(seconds)
            health.arrived(payloads, self._clock.monotonic())
            self._is_receiving = health.has_received
            for topic_id in {notify.topic_id(payload) for payload in payloads} - {None}:
                assert topic_id is not None  # noqa: S101 - for mypy
                self._registry.wake(topic_id)

    def _pause(self, attempt: int) -> float:
        return poll_pause(
            attempt, least=_RECONNECT_SECONDS, most=_RECONNECT_MOST_SECONDS, random=self._clock.random.random()
        )

    def _warn_unreachable(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s: notifications do not arrive, as behind a pooler that shares connections between transactions "
                "(PgBouncer's transaction mode). Nothing is lost: waiting consumers poll every poll_max_seconds. "
                "For prompter delivery give the consumers' MQ a URL that leads to the server itself, or through a pool "
                "in session mode; notify=False ends this warning.",
                self._database.where,
                extra=log_fields("listener unreachable"),
            )


_ABANDONED: list[Listening] = []
"""Connections of the parent, kept alive in a forked child: closing them there would end the parent's."""


def can_receive(database: Database) -> bool:
    """Whether a connection that listens receives what another one sends, as soon as a listener's probe has to arrive."""
    clock = database.clock
    probe = Probe(clock)
    try:
        with contextlib.closing(database.listen()) as listening:
            database.read(_send, probe)
            deadline = clock.monotonic() + _ANSWER_SECONDS
            while (seconds := deadline - clock.monotonic()) > 0:
                with database.translating():
                    if probe.payload in listening.wait(seconds):
                        return True
    except DatabaseError:
        # Consumers could not listen either, and poll.
        return False
    return False


def _send(conn: Connection, dialect: Dialect, probe: Probe) -> None:
    dialect.notify(conn, [probe.payload])


class ListenerHealth:
    """Which probes one connection has received. Reads no clock."""

    def __init__(self, now: float) -> None:
        self.probe: Probe | None = None
        """The probe under way."""
        self.has_received = False
        """Whether a probe has arrived."""
        self.is_over = False
        """Whether a probe did not arrive in time: the connection is of no use."""
        self._next_probe_at = now

    @property
    def receives_nothing(self) -> bool:
        """Whether a probe did not arrive, and none before it."""
        return self.is_over and not self.has_received

    def is_probe_due(self, now: float) -> bool:
        """Whether it is time for a probe, and none is under way."""
        return self.probe is None and now >= self._next_probe_at

    def arrived(self, payloads: set[str], now: float) -> None:
        """Note that by *now* exactly *payloads* have arrived."""
        probe = self.probe
        if probe is None:
            return
        if probe.payload in payloads:
            self.probe = None
            self.has_received = True
            self._next_probe_at = now + _PROBE_SECONDS
        elif probe.sent_at is not None and now >= probe.sent_at + _ANSWER_SECONDS:
            self.is_over = True

    def pause(self, now: float) -> float:
        """Return for how many seconds to wait for a notification before the next probe is due or overdue."""
        if self.probe is None:
            return max(0.0, self._next_probe_at - now)
        return _ANSWER_SECONDS if self.probe.sent_at is None else max(0.0, self.probe.sent_at + _ANSWER_SECONDS - now)
