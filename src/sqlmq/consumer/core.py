"""A member that is kept alive: what the background threads, and other members of its process, have to do with a consumer."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING

from sqlmq.background.wakeups import Wakeups
from sqlmq.consumer.buffer import FetchBuffer
from sqlmq.consumer.coordinator import Coordinator
from sqlmq.errors import ConsumerClosedError, DatabaseUnavailableError, ForkedError, SqlmqError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.coordinator import Subscription
    from sqlmq.consumer.partition import Delivery
    from sqlmq.database.database import Database
    from sqlmq.model.config import MQConfig
    from sqlmq.model.message import Message
    from sqlmq.operations.poll import PollRequest
    from sqlmq.store.groups import Group

    T = TypeVar("T")

log = logging.getLogger("sqlmq.consumer")

_CLOSE_SECONDS = 4.5
"""For how long closing waits for the lock: somewhat longer than an answer is waited for then."""


class ConsumerCore:
    """What a consumer owns and has read ahead, and the lock that guards it. Is a ``GroupMember``."""

    def __init__(
        self, database: Database, on_wait: Callable[[], None], subscription: Subscription, options: MQConfig
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._subscription = subscription
        self._options = options
        self._closed = False
        self._pid = os.getpid()
        # Held while the database is asked, so only briefly waited for; never while waiting for messages.
        self._lock = threading.RLock()
        self._coordinator = Coordinator(database, subscription, options)
        self._buffer = FetchBuffer(database, self._coordinator, options)
        self._asked_at = self._clock.monotonic()
        self._is_run = False
        """Whether workers ask for messages whenever their handlers let them."""
        self._wakeups = Wakeups(on_wait, options, self._clock)

    @property
    def member_id(self) -> int:
        """The database's id of the member; another one after it was expelled and has joined again."""
        return self._coordinator.member_id

    @property
    def group_id(self) -> int:
        """The database's id of the group."""
        return self._coordinator.group.id

    @property
    def topic_id(self) -> int:
        """The database's id of the topic."""
        return self._subscription.topic.id

    @property
    def is_waiting(self) -> bool:
        """Whether somebody waits for a message."""
        return self._wakeups.waiters > 0

    @property
    def wakeups(self) -> Wakeups:
        """Those who wait for a message."""
        return self._wakeups

    def poll_request(self) -> PollRequest | None:
        """What to look for, for those who wait; None while there is something to do here that they have to see to."""
        if self._closed or self._wakeups.self_polling or not self._lock.acquire(blocking=False):
            return None  # whoever has the lock looks himself
        try:
            return None if self._buffer.has_in_flight else self._coordinator.poll_request()
        finally:
            self._lock.release()

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        """The heartbeat that was sent at *began* has arrived."""
        self._coordinator.heartbeat_acknowledged(sent_at)

    def membership_lost(self) -> None:
        """The group no longer has this member: hand nothing out before joining again."""
        self._coordinator.membership_lost()
        self.wake()

    def wake(self) -> None:
        """There may be new messages."""
        self._wakeups.wake()

    def recheck_group_soon(self) -> None:
        """The group may have changed."""
        self._coordinator.recheck_group_soon()
        self.wake()

    def housekeeping(self) -> None:
        """Commit what has waited long enough; give everything back if the application does not ask any more."""
        if self._closed or not self._lock.acquire(blocking=False):
            return  # whoever has it tends to the consumer himself
        finished = []
        try:
            try:
                if self._coordinator.is_commit_due(1):
                    finished = self._coordinator.committable_positions()
                if (
                    not self.is_waiting and not self._is_run
                ):  # asked first: whoever has just waited is about to ask again
                    self._coordinator.release_if_not_polled(max(self._asked_at, self._wakeups.waited_at))
            finally:
                self._lock.release()
            self._coordinator.commit_unlocked(finished)
        except SqlmqError as error:
            log.warning("%r: %s", self, error, extra=self.log_fields("housekeeping failed", error))

    @contextlib.contextmanager
    def _lock_for_close(self) -> Iterator[None]:
        """The lock, for closing: whoever has it may wait for a database that does not answer."""
        if not self._lock.acquire(timeout=_CLOSE_SECONDS):
            message = (
                f"{self!r} can't leave its group: another thread waits for the database. Its lease ends by itself."
            )
            raise DatabaseUnavailableError(message)
        try:
            yield
        finally:
            self._lock.release()

    def log_fields(self, event: str, error: BaseException | None = None) -> dict[str, object]:
        """What a record of the log tells of *event*."""
        return self._coordinator.log_fields(event, error=error)

    def _group(self) -> Group:
        return self._coordinator.group

    def _may_take(self, now: float) -> bool:
        """Whether a loop may go on, *now*, with what was lent to it, before it asks again. Without the lock."""
        return self._coordinator.needs_no_check(now) and not self._closed

    def _iterate_delivery(self, delivery: Delivery, until: float) -> Iterator[Message]:
        """Take what is lent, until the loop has to ask again, or the monotonic clock has come to *until*."""
        monotonic = self._clock.monotonic
        while self._may_take(now := monotonic()) and now < until and (message := delivery.take()) is not None:
            yield message

    # The steps that ask no database.

    def acknowledge(self, receiver: Receiver) -> None:
        """What *receiver* got before is done, but for the message at which it left a loop."""
        with self._lock:
            self._check_usable()
            self._check_not_run("Use another consumer to ask for some.")
            self._buffer.acknowledge(receiver, include_interrupted=False)

    def fetch_buffered(self, receiver: Receiver, give: Callable[[Receiver, int], list[T]], at_most: int) -> list[T]:
        """As ``_finish`` and ``_try``, but give nothing if that takes the database, or somebody has the lock."""
        if not self._lock.acquire(blocking=False):
            return []
        try:
            self.acknowledge(receiver)
            self._asked_at = now = self._clock.monotonic()
            is_calm = self._coordinator.needs_no_check(now) and not self._coordinator.is_commit_due(2)
            return give(receiver, at_most) if is_calm and self._buffer.is_ready(now) else []
        finally:
            self._lock.release()

    def requeue(self, receiver: Receiver) -> None:
        """What *receiver* got will not be finished: it comes again, to whoever asks."""
        with self._lock:
            self._buffer.requeue(receiver)

    def mark_interrupted(self, receiver: Receiver) -> None:
        """*receiver* has left the loop in which it got its messages."""
        self._buffer.mark_interrupted(receiver)

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            what = f"This consumer of {self._subscription.topic.name!r}"
            raise ForkedError(what)
        if self._closed:
            raise ConsumerClosedError(self._subscription.topic.name, self._subscription.group_name)

    def _check_not_run(self, advice: str) -> None:
        if self._is_run:
            message = f"{self!r} is run: its messages go to the handler. {advice}"
            raise RuntimeError(message)
