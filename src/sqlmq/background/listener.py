"""Listens for notices of other processes while consumers wait: by LISTEN, where the database has that.

One connection and one thread per MQ, from the first time that a consumer waits. It sends itself a notice now and then:
one that does not arrive tells that the connection is dead, or that it never hears anything, as through a pooler that
shares sessions. Nothing depends on it: consumers poll as if it were not there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Protocol

from sqlmq.errors import DatabaseError, SqlmqError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import backoff
from sqlmq.operations import notify

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from sqlmq.database.database import Database
    from sqlmq.dialects import Dialect, Listening
    from sqlmq.hooks.clock import Clock

log = logging.getLogger("sqlmq.background")

_PROBE_SECONDS = 30.0
"""How often to find out whether the connection still hears."""
_ANSWER_SECONDS = 5.0
"""How long a notice to oneself may take, from when it was sent."""
_DEAF_SECONDS = 600.0
"""How soon to try again where nothing was ever heard."""
_RECONNECT_SECONDS = 0.1
_RECONNECT_MOST_SECONDS = 10.0
_CLOSE_SECONDS = 1.0


class Wakes(Protocol):
    """What can wake consumers."""

    def wake(self, topic_id: int) -> None:
        """Wake those of one topic."""

    def wake_all(self) -> None:
        """Wake all."""


class Listener:
    """Wakes the consumers of one MQ when other processes say so. The thread ends with ``close``.

    *send* sends a payload by another connection, and calls what it was given when that is done.
    """

    def __init__(self, database: Database, consumers: Wakes, send: Callable[[str, Callable[[], None]], None]) -> None:
        self._database = database
        self._clock = database.clock
        self._consumers = consumers
        self._send = send
        self._warned_deaf = False
        self._thread: threading.Thread | None
        self._listening: Listening | None = None
        self._start_over()

    @property
    def is_hearing(self) -> bool:
        """Whether a notice has arrived on the connection that there is."""
        return self._is_hearing

    def start(self) -> None:
        """A consumer waits: listen for it, from now on."""
        if self._pid != os.getpid():
            self._start_over()
        with self._starting:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="sqlmq-listener", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread, and with it the connection."""
        if self._pid != os.getpid():
            return
        with self._starting:
            self._closing.set()
        if (listening := self._listening) is not None:
            listening.interrupt()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        attempt = 0
        while not self._closing.is_set():
            health = None
            try:
                with contextlib.closing(self._database.listen()) as self._listening:
                    health = ListenerHealth(self._clock.monotonic())
                    self._hear(self._listening, health)
            except Exception as error:
                # Whatever it is, a thread that dies here would make all messages late, silently.
                level = logging.WARNING if attempt == 1 else logging.INFO
                trace = not isinstance(error, SqlmqError)
                log.log(
                    level,
                    "Listening for messages ended; consumers poll meanwhile: %s",
                    error,
                    exc_info=trace,
                    extra=log_fields("listening ended", error=error),
                )
            finally:
                self._is_hearing = False
                self._listening = None
            if health is not None and health.receives_nothing:
                self._warn_deaf()
                self._closing.wait(_DEAF_SECONDS)
                continue
            attempt = 0 if health is not None and health.has_heard else attempt + 1
            self._closing.wait(self._pause(attempt))

    def _hear(self, listening: Listening, health: ListenerHealth) -> None:
        """Wake whoever is to be woken, until the connection turns out to be of no use."""
        # What was committed before there was anybody to listen.
        self._consumers.wake_all()
        while not self._closing.is_set() and not health.is_over:
            if health.is_probe_due(self._clock.monotonic()):
                health.probe = probe = Probe(self._clock)
                self._send(probe.payload, probe.sent)
            payloads = self._wait(listening, health.pause(self._clock.monotonic()))
            health.arrived(payloads, self._clock.monotonic())
            self._is_hearing = health.has_heard
            for topic_id in {notify.topic_id(payload) for payload in payloads} - {None}:
                assert topic_id is not None  # noqa: S101 - for mypy
                self._consumers.wake(topic_id)

    def _wait(self, listening: Listening, seconds: float) -> set[str]:
        with self._database.translating():
            return listening.wait(seconds)

    def _pause(self, attempt: int) -> float:
        return backoff(
            attempt, least=_RECONNECT_SECONDS, most=_RECONNECT_MOST_SECONDS, random=self._clock.random.random()
        )

    def _warn_deaf(self) -> None:
        if not self._warned_deaf:
            self._warned_deaf = True
            log.warning(
                "%s: notifications do not arrive, as behind a pooler that shares connections between transactions "
                "(PgBouncer's transaction mode). Nothing is lost: waiting consumers look again every poll_max_seconds. "
                "For prompter delivery give the consumers' MQ a URL that leads to the server itself, or through a pool "
                "in session mode; notify=False ends this warning.",
                self._database.where,
                extra=log_fields("listener unreachable"),
            )

    def _start_over(self) -> None:
        """In the beginning, and in a forked child: the parent's thread and connection stay with the parent."""
        if self._listening is not None:
            _ABANDONED.append(self._listening)
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._closing = self._clock.event()
        self._listening = None
        self._thread = None
        self._is_hearing = False


# Kept alive in a forked child: closing them there would end the parent's.
_ABANDONED: list[Listening] = []


def _notify(conn: Connection, dialect: Dialect, payload: str) -> None:
    dialect.notify(conn, [payload])


def can_receive(database: Database) -> bool:
    """Whether a connection that listens hears what another one sends, in as much time as a listener gives its probes."""
    clock = database.clock
    probe = Probe(clock)
    try:
        with contextlib.closing(database.listen()) as listening:
            database.read(_notify, probe.payload)
            deadline = clock.monotonic() + _ANSWER_SECONDS
            while (seconds := deadline - clock.monotonic()) > 0:
                with database.translating():
                    if probe.payload in listening.wait(seconds):
                        return True
    except DatabaseError:
        # Consumers could not listen either, and poll.
        return False
    return False


class Probe:
    """A notice to oneself. It counts from when it was sent, which may wait for a connection to send it by."""

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self.payload = f"probe {clock.token()}"
        self.sent_at: float | None = None

    def sent(self) -> None:
        """It was sent just now."""
        self.sent_at = self._monotonic()


class ListenerHealth:
    """What one connection has heard of its probes. Every time is given."""

    def __init__(self, now: float) -> None:
        self.probe: Probe | None = None
        self.has_heard = False
        self.is_over = False
        self._next_probe_at = now

    @property
    def receives_nothing(self) -> bool:
        """Whether a probe did not arrive, and none before it."""
        return self.is_over and not self.has_heard

    def is_probe_due(self, now: float) -> bool:
        """Whether it is time for a probe, and none is under way."""
        return self.probe is None and now >= self._next_probe_at

    def arrived(self, payloads: set[str], now: float) -> None:
        """*payloads* have arrived by *now*, and nothing else."""
        probe = self.probe
        if probe is None:
            return
        if probe.payload in payloads:
            self.probe = None
            self.has_heard = True
            self._next_probe_at = now + _PROBE_SECONDS
        elif probe.sent_at is not None and now >= probe.sent_at + _ANSWER_SECONDS:
            self.is_over = True

    def pause(self, now: float) -> float:
        """How long to wait for a notice before something else is to be done."""
        if self.probe is None:
            return max(0.0, self._next_probe_at - now)
        return _ANSWER_SECONDS if self.probe.sent_at is None else max(0.0, self.probe.sent_at + _ANSWER_SECONDS - now)
