"""What one MQ has opened: producers, consumers, threads and connections; how it is closed, also if the MQ was dropped."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from typing import TYPE_CHECKING

from sqlmq.background.heartbeat import Heartbeat, Housekeeping
from sqlmq.background.listener import Listener
from sqlmq.background.notifier import Notifier
from sqlmq.background.poller import SharedPoller
from sqlmq.background.registry import MemberRegistry
from sqlmq.background.retention import RetentionService
from sqlmq.background.scheduler import Scheduler
from sqlmq.database.close_once import CloseOnce
from sqlmq.errors import MQClosedError
from sqlmq.model.timing import heartbeat_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.database.database import Database
    from sqlmq.model.config import MQConfig
    from sqlmq.producer.batcher import Batcher
    from sqlmq.producer.producer import Producer


class InUse:
    """Held by each object through which a program uses an MQ, and by none of its threads. With it, the MQ ends."""

    __slots__ = ("__weakref__",)


class BackgroundServices:
    """The background threads of one MQ, built in the order in which they need each other. Each starts when needed."""

    def __init__(self, database: Database, config: MQConfig) -> None:
        housekeeping_seconds = min(config.commit_interval_seconds, heartbeat_interval(config.lease_seconds))
        can_notify = config.notify and database.can_notify
        self.registry = MemberRegistry()
        self.heartbeat = Heartbeat(database, self.registry, lease_seconds=config.lease_seconds)
        self.housekeeping = Housekeeping(database.clock, self.registry, interval_seconds=housekeeping_seconds)
        self.poller = SharedPoller(database, self.registry, poll_max_seconds=config.poll_max_seconds)
        self.notifier = Notifier(database, self.registry, reaches_other_processes=can_notify)
        self.listener = Listener(database, self.registry, self.notifier)
        self.scheduler = Scheduler(database, self.notifier, poll_max_seconds=config.poll_max_seconds)
        self.retention = RetentionService(database)
        self.registry.wake_through(self.poller)
        self.registry.start_with_members(self.heartbeat, self.housekeeping)
        self.registry.start_with_waits(*([self.poller, self.listener] if can_notify else [self.poller]))

    def close(self) -> None:
        """End all threads. A thread ends before the threads that it needs for its last work."""
        self.retention.close()
        self.scheduler.close()
        self.listener.close()
        self.notifier.close()
        self.poller.close()
        self.heartbeat.stop()
        self.housekeeping.stop()


class Resources:
    """Everything that has to be closed for one MQ. It holds nothing through which a program uses the MQ."""

    def __init__(self, database: Database, config: MQConfig) -> None:
        self.database = database
        self.background = BackgroundServices(database, config)
        self._pid = os.getpid()
        self._closing = CloseOnce()
        self._lock = threading.RLock()  # a finalizer may make or close something in the middle of these steps
        self._is_closed = False
        # A producer that was dropped is forgotten, but what was submitted to it is sent before the end.
        self._producers: weakref.WeakSet[Producer] = weakref.WeakSet()
        self._batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()
        # A consumer stays a member of its group until it is closed.
        self._consumers: list[ConsumerCore] = []

    def new_handle(self) -> InUse:
        """Return what the MQ, and everything through which it is used, holds. When it is gone, everything is closed."""
        in_use = InUse()
        # Not at the end of the process, where an MQ that was not closed does no harm.
        weakref.finalize(in_use, self._close_dropped).atexit = False
        return in_use

    def add_producer(self, producer: Producer, batcher: Batcher) -> None:
        """Close *producer* with the rest. Raises MQClosedError, with *producer* closed, if that has begun."""
        with self._lock:
            if not self._is_closed:
                self._producers.add(producer)
                self._batchers.add(batcher)
                return
        producer.close()
        raise MQClosedError

    def add_consumer(self, core: ConsumerCore) -> None:
        """Close *core* with the rest. Raises MQClosedError, with *core* closed, if that has begun."""
        with self._lock:
            if not self._is_closed:
                self._consumers = [other for other in self._consumers if not other.closed]
                self._consumers.append(core)
                return
        core.close()
        raise MQClosedError

    @property
    def made(self) -> list[Producer | ConsumerCore]:
        """The producers and consumers that would be closed."""
        return [*self._producers, *self._consumers]

    def close(self) -> None:
        """Close everything. Errors are raised together in one ExceptionGroup. A second call has the same result."""
        self._closing.run(self._close)

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
        self.database.watchdog.shorten()
        closing: list[Callable[[], None]] = [producer.close for producer in self._producers]
        # After them those whose producers were dropped, and which still send.
        closing += [batcher.close for batcher in self._batchers]
        closing += [core.close for core in self._consumers]
        errors: list[Exception] = []
        for close in closing:
            try:
                close()
            except Exception as error:  # noqa: BLE001 - raised below, with the others
                errors.append(error)
        self.background.close()
        self.database.close()
        if errors:
            message = "Some objects of the MQ could not be closed; everything else is closed."
            raise ExceptionGroup(message, errors)

    def _close_dropped(self) -> None:
        """Close everything, in a thread: this may run in the middle of anything."""
        if self._is_closed or self._pid != os.getpid() or not self.database.was_used:
            return
        with contextlib.suppress(RuntimeError):  # no thread can be started now
            threading.Thread(target=self._close_quietly, name="sqlmq-close", daemon=True).start()
        message = (
            f"An MQ on {self.database.where} was dropped and not closed. Its threads and connections end now. Close it, or "
            "use it in a `with` statement; one MQ is enough for a program."
        )
        warnings.warn(message, ResourceWarning, stacklevel=2)

    def _close_quietly(self) -> None:
        with contextlib.suppress(Exception):  # nothing waits for the result
            self.close()
