"""A consumer's state, the lock that guards it, and the steps by which messages are delivered.

`Consumer` and `AsyncConsumer` wait between these steps, a thread or an event loop each in its own way. `Transaction` and the
worker pool take some of the steps too. Background threads see a core as a member that they keep alive.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Literal, Protocol

from sqlmq.background.wakeups import Wakeups
from sqlmq.consumer.buffer import FetchBuffer
from sqlmq.consumer.coordinator import Coordinator
from sqlmq.consumer.transaction_scope import TransactionContext
from sqlmq.database.close_once import CloseOnce
from sqlmq.errors import (
    ConsumerClosedError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    ForkedError,
    OutcomeUnknownError,
    SqlmqError,
)
from sqlmq.hooks.log_hold import WITH_RECORDS, LogHold, emit_held_records, hold_records_under
from sqlmq.model.positions import check_seek
from sqlmq.model.timing import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq.background.registry import MemberRegistry
    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.coordinator import Subscription
    from sqlmq.consumer.partition import Delivery
    from sqlmq.database.database import Database
    from sqlmq.model.config import MQConfig
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.model.positions import SeekTo
    from sqlmq.operations.poll import PollRequest
    from sqlmq.store.claims import Claim
    from sqlmq.store.groups import Group
    from sqlmq.store.offsets import Commit

log = logging.getLogger("sqlmq.consumer")

Ack = Literal["auto", "on_delivery"]
"""When a message is done: after it was handled (at least once), or when it is delivered (at most once)."""

NO_DEADLINE = Deadline.after(None, 0.0)

_CLOSE_SECONDS = 4.5
"""How long ``close`` waits for the lock: a little longer than it waits for the database's response."""


class Stoppable(Protocol):
    """A run of a handler, as far as its consumer knows it."""

    def stop(self) -> None:
        """Begin no other message."""


class ConsumerCore:
    """One member of a group: its assignment, its buffer, and the one lock that guards both. Is a ``GroupMember``.

    Most steps take the lock themselves. They hold it while the database is asked, at most once in a step, and never while
    they wait for messages. These run without the lock: what the background calls to report an event
    (``heartbeat_acknowledged``, ``membership_lost``, ``recheck_group_soon``, ``wake``), because each sets one field or counts
    one wake-up; the steps of a loop between two messages (``may_continue``, ``iterate_delivery``, ``mark_interrupted``),
    because a receiver alone touches its deliveries and each message leaves a deque once; and the commit of ``housekeeping``,
    whose positions were collected under the lock. They may read a value that another thread is changing.
    """

    def __init__(
        self, database: Database, members: MemberRegistry, subscription: Subscription, config: MQConfig, ack: Ack
    ) -> None:
        self.database = database
        self.clock = database.clock
        self.config = config
        self.subscription = subscription
        self.ack = ack
        self.closed = False
        self.lock = threading.RLock()
        hold_records_under(self.lock)
        # What threading.Condition asks. A note of our own could be wrong after an interrupt.
        self._is_inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        self.coordinator = Coordinator(database, subscription, config)
        self.buffer = FetchBuffer(database, self.coordinator, config)
        self.wakeups = Wakeups(members, config, self.clock)
        self.transactions = TransactionContext(database, subscription.topic, config, subscription.on_evicted)
        self._members = members
        self._pid = os.getpid()
        self._polled_at = self.clock.monotonic()
        self._run: Stoppable | None = None
        self._is_stopped = False
        self._closing = CloseOnce()
        self._has_to_leave = False
        """Whether it was closed in the middle of a call, at whose end it leaves its group."""
        members.add(self)

    def __repr__(self) -> str:
        _, group, _, name, _ = self.subscription
        return f"<Consumer {name!r} of {self.topic!r} in {group!r}{' (closed)' if self.closed else ''}>"

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self.subscription.topic.name

    @property
    def group(self) -> Group:
        """The group, as the database knows it."""
        return self.coordinator.group

    # What the background knows of a member, and calls.

    @property
    def member_id(self) -> int:
        """The database's id of the member. It changes when the member has lost its membership and joined again."""
        return self.coordinator.member_id

    @property
    def group_id(self) -> int:
        """The database's id of the group."""
        return self.coordinator.group.id

    @property
    def topic_id(self) -> int:
        """The database's id of the topic."""
        return self.subscription.topic.id

    @property
    def is_waiting(self) -> bool:
        """Whether a thread or task waits for a message."""
        return self.wakeups.waiters > 0

    def poll_request(self) -> PollRequest | None:
        """What the shared poller can look for; None if the waiting threads have to fetch for themselves."""
        if self.closed or self.wakeups.self_polling or not self.lock.acquire(blocking=False):
            return None  # the thread that holds the lock polls for itself
        try:
            return None if self.buffer.has_in_flight else self.coordinator.poll_request()
        finally:
            self.lock.release()

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        """Extend the lease: the heartbeat sent at *sent_at*, by the monotonic clock, was acknowledged."""
        self.coordinator.heartbeat_acknowledged(sent_at)

    def membership_lost(self) -> None:
        """Deliver nothing before the consumer has joined its group again."""
        self.coordinator.membership_lost()
        self.wake()

    def wake(self) -> None:
        """Wake the waiting threads and tasks: there may be new messages."""
        self.wakeups.wake()

    def recheck_group_soon(self) -> None:
        """Read the group's members and claims at the next poll: they may have changed."""
        self.coordinator.recheck_group_soon()
        self.wake()

    def housekeeping(self) -> None:
        """Commit what is due; release all partitions if the application has stopped polling."""
        try:
            with LogHold():
                due = self._housekeeping_under_lock()
            self.coordinator.commit_unlocked(due)
            if self._has_to_leave:
                self._end_call()
        except SqlmqError as error:
            log.warning("%r: %s", self, error, extra=self.log_fields("housekeeping failed", error))

    def _housekeeping_under_lock(self) -> list[tuple[Claim, Commit]]:
        """Release all partitions if the application has stopped polling; return what is due to be committed."""
        if self.closed or not self.lock.acquire(blocking=False):
            return []  # the thread that holds the lock does both
        try:
            due = self.coordinator.committable_positions() if self.coordinator.is_commit_due(1) else []
            # In this order: a thread that has just stopped waiting is about to poll again.
            if not self.is_waiting and self._run is None:
                self.coordinator.release_if_not_polled(max(self._polled_at, self.wakeups.waited_at))
            return due
        finally:
            self.lock.release()

    # The steps of a poll.

    def acknowledge(self, receiver: Receiver) -> None:
        """Finish what *receiver* got before, except a message at which it left a loop."""
        with self.lock:
            self.check_usable()
            self._check_not_run("Use another consumer to ask for some.")
            self.buffer.acknowledge(receiver, include_interrupted=False)

    def fetch(self, receiver: Receiver, at_most: int, deadline: Deadline) -> list[ReceivedMessage]:
        """Acknowledge what *receiver* got before, and deliver up to *at_most* messages if there are any now.

        While the database is unavailable there are none, and after *deadline* its error is raised.
        """
        if self._is_inside():
            raise self._interrupted_error()
        try:
            with self.lock:
                self.acknowledge(receiver)
                return self.deliver(receiver, at_most) if self.prepare_delivery(at_most, deadline) else []
        finally:
            if WITH_RECORDS or self._has_to_leave:  # as LogHold, which would take 0.6 us more of each message
                self._end_call()

    def fetch_lazily(self, receiver: Receiver, at_most: int, deadline: Deadline) -> Delivery | None:
        """As ``fetch``, for a loop: messages of one partition that are in flight only as the loop takes them."""
        if self._is_inside():
            raise self._interrupted_error()
        try:
            with self.lock:
                self.acknowledge(receiver)
                return self.deliver_lazily(receiver, at_most) if self.prepare_delivery(at_most, deadline) else None
        finally:
            if WITH_RECORDS or self._has_to_leave:
                self._end_call()

    def fetch_buffered(self, receiver: Receiver, at_most: int) -> list[ReceivedMessage]:
        """As ``fetch``, but deliver nothing if that needs the database, or another thread has the lock."""
        if self._is_inside():
            raise self._interrupted_error()
        try:
            if not self.lock.acquire(blocking=False):
                return []
            return self.deliver(receiver, at_most) if self._may_deliver_buffered(receiver) else []
        finally:
            # It was acquired, unless this raises. An interrupt could come between the lock and a flag that says so.
            try:  # noqa: SIM105 - nor may a call come before the release
                self.lock.release()
            except RuntimeError:
                pass

    def fetch_buffered_lazily(self, receiver: Receiver, at_most: int) -> Delivery | None:
        """As ``fetch_lazily``, but deliver nothing if that needs the database, or another thread has the lock."""
        if self._is_inside():
            raise self._interrupted_error()
        try:
            if not self.lock.acquire(blocking=False):
                return None
            return self.deliver_lazily(receiver, at_most) if self._may_deliver_buffered(receiver) else None
        finally:
            try:  # noqa: SIM105 - as above
                self.lock.release()
            except RuntimeError:
                pass

    def wait(self, attempt: int, deadline: Deadline, seen: int, *, may_delegate: bool = False) -> bool:
        """Block the thread after *attempt*, which found nothing; return whether there was a wake-up since the count *seen*."""
        return self.wakeups.wait(self.wakeups.pause(attempt, deadline, may_delegate=may_delegate), seen)

    def prepare_delivery(self, at_most: int, deadline: Deadline) -> bool:
        """Do what is due and fetch if need be; return whether messages may be delivered now. With the lock held.

        Until *deadline* it is False while the database is unavailable; after that the error is raised.
        """
        self.check_usable()
        self._polled_at = self.clock.monotonic()
        self._log_unfinished()
        try:
            if self.coordinator.ensure_assignment():
                self._members.recheck_group_soon(self.group_id, but=self)
            # Usually the housekeeping thread commits, while this one goes on.
            if self.coordinator.is_commit_due(2) and (fenced := self.coordinator.commit_due()):
                log.warning("%s", self.coordinator.fenced(fenced), extra=self.log_fields("fenced"))
            self.buffer.fetch_more(at_most)
        except (DatabaseUnavailableError, DatabaseBusyError, OutcomeUnknownError) as error:
            if deadline.passed(self.clock.monotonic()):
                raise
            self.log_retry(error)
            return False
        # Asked last: the fetch may have taken longer than the lease.
        return self.coordinator.is_lease_valid()

    def deliver(self, receiver: Receiver, at_most: int) -> list[ReceivedMessage]:
        """Deliver up to *at_most* buffered messages to *receiver*. With the lock held, after ``prepare_delivery``."""
        messages = self.buffer.deliver(receiver, at_most)
        if self.ack == "on_delivery" and messages:
            self.buffer.acknowledge(receiver, include_interrupted=True)
            fenced = self.coordinator.commit_due()
            return [message for message in messages if message.partition not in fenced]
        return messages

    def deliver_lazily(self, receiver: Receiver, at_most: int) -> Delivery | None:
        """Deliver up to *at_most* buffered messages of one partition to a loop of *receiver*. As ``deliver``."""
        # One message at a time while other threads wait: what a loop has not taken is no use to them.
        deliveries = self.buffer.deliver_lazily(receiver, at_most, is_shared=self.wakeups.waiters > 0)
        return deliveries[0] if deliveries else None

    def iterate_delivery(self, delivery: Delivery, until: float) -> Iterator[ReceivedMessage]:
        """Take the messages of *delivery* until the loop has to poll again, or until the monotonic clock reads *until*."""
        monotonic = self.clock.monotonic
        while self.may_continue(now := monotonic()) and now < until and (message := delivery.take()) is not None:
            yield message

    def may_continue(self, now: float) -> bool:
        """Whether a loop may take the next message of its delivery at *now* without a poll before it."""
        return self.coordinator.needs_no_check(now) and not self.closed

    def requeue(self, receiver: Receiver) -> None:
        """Redeliver what *receiver* got and will not finish."""
        with self.lock:
            self.buffer.requeue(receiver)

    def mark_interrupted(self, receiver: Receiver) -> None:
        """Note that *receiver* has left the loop in which it got its messages: the last one is not done."""
        self.buffer.mark_interrupted(receiver)

    # What else an application does with a consumer.

    def commit(self, receiver: Receiver, has_ended: Callable[[Receiver], bool] | None = None) -> None:
        """Finish what *receiver* got, also where it left a loop, and commit everything that is done.

        Finish too what receivers got of which *has_ended* says that they have handled it.
        """
        if self._is_inside():
            raise self._interrupted_error()
        try:
            with self.lock:
                self.check_usable()
                self.buffer.acknowledge(receiver, include_interrupted=True)
                if has_ended is not None:
                    self.buffer.acknowledge_all(has_ended)
                fenced = self.coordinator.commit_due()
        finally:
            self._end_call()
        if fenced:
            self.coordinator.check_topic()
            raise self.coordinator.fenced(fenced)

    def seek(self, partition: int, to: SeekTo) -> None:
        """Move the group in *partition*, which this member owns, and drop what is buffered or in flight of it."""
        if self._is_inside():
            raise self._interrupted_error()
        try:
            with self.lock:
                self.check_usable()
                self._check_not_run("`mq.admin.reset_group` moves its group.")
                self.coordinator.ensure_assignment()
                self.coordinator.seek(partition, check_seek(to))
        finally:
            self._end_call()

    def release_for_transaction(self, receiver: Receiver) -> Group:
        """Finish what *receiver* got and release all partitions, but stay a member; return the group.

        A transaction takes its partition by a row lock. A claim of this member would stand in its way.
        """
        if self._is_inside():
            raise self._interrupted_error()
        try:
            with self.lock:
                self.acknowledge(receiver)
                self._polled_at = self.clock.monotonic()
                if self.coordinator.assigned:
                    self.coordinator.release_all()
                    self._members.recheck_group_soon(self.group_id, but=self)
                self.coordinator.ensure_membership()
                return self.group
        finally:
            self._end_call()

    def wake_topic(self) -> None:
        """Wake the consumers of the topic in this process: messages are to be delivered again."""
        self._members.wake(self.topic_id)

    def begin_run(self, run: Stoppable) -> None:
        """Note that *run* gets the messages from now on. Raises ValueError or RuntimeError if it can't."""
        if self.ack != "auto":
            message = "run() finishes a message after its handler. Make the consumer with ack='auto'."
            raise ValueError(message)
        with self.lock:
            self.check_usable()
            if self._run is not None:
                message = f"{self!r} is run already. Give each run a consumer of its own, or use concurrency=."
                raise RuntimeError(message)
            self._run = run
        if self._is_stopped:
            run.stop()

    def stop(self) -> None:
        """Stop the run; one that begins later stops at once."""
        self._is_stopped = True
        if self._run is not None:
            self._run.stop()

    def close(self) -> None:
        """Commit what is done, hand the partitions over and leave the group. A second call has the same result.

        In the middle of another call of this thread, that call leaves the group at its end.
        """
        if self._pid == os.getpid():
            if not self._is_inside():
                self.database.check_may_write()
            self._closing.run(self._close)
            self._end_call()

    def close_after(self, error: BaseException | None) -> None:
        """Close at the end of a ``with`` block. An error of closing is raised, or logged if the block raised *error*."""
        try:
            self.close()
        except SqlmqError:
            if error is None:
                raise
            log.exception("Closing %r failed", self, extra=self.log_fields("close failed"))

    # Checks and log records.

    def check_usable(self) -> None:
        """Raise ConsumerClosedError after ``close``, ForkedError in a forked child."""
        if self._pid != os.getpid():
            what = f"This consumer of {self.topic!r}"
            raise ForkedError(what)
        if self.closed:
            raise ConsumerClosedError(self.topic, self.subscription.group_name)

    def no_message_error(self, timeout: float | None) -> TimeoutError:
        """The error of ``consume`` when nothing came in time."""
        return TimeoutError(f"No message came from topic {self.topic!r} within {timeout} seconds.")

    def log_fields(self, event: str, error: BaseException | None = None) -> dict[str, object]:
        """The fields of a log record of *event*."""
        return self.coordinator.log_fields(event, error=error)

    def log_retry(self, error: SqlmqError) -> None:
        """Log that the consumer goes on after *error* of the database."""
        log.warning("%r goes on trying: %s", self, error, extra=self.log_fields("retry", error))

    def _interrupted_error(self) -> RuntimeError:
        """The error of a call in the middle of another one of the same thread: it would find, and leave, half of a step."""
        return RuntimeError(
            f"This thread was interrupted in the middle of a call to {self!r}, by a signal handler, a finalizer or an event "
            "of the engine. Call it after that, or use another consumer. Only `close` may be called."
        )

    def _check_not_run(self, advice: str) -> None:
        if self._run is not None:
            message = f"{self!r} is run: its messages go to the handler. {advice}"
            raise RuntimeError(message)

    def _may_deliver_buffered(self, receiver: Receiver) -> bool:
        """Acknowledge what *receiver* got before; return whether the buffer has messages and no check is due."""
        self.acknowledge(receiver)
        self._polled_at = now = self.clock.monotonic()
        is_settled = self.coordinator.needs_no_check(now) and not self.coordinator.is_commit_due(2)
        return is_settled and self.buffer.is_ready(now)

    def _log_unfinished(self) -> None:
        for name in self.buffer.requeue_of_dead_receivers():
            fields = self.log_fields("unfinished")
            log.warning(
                "%r: %s ended without finishing its messages; they are delivered again.", self, name, extra=fields
            )

    def _close(self) -> None:
        self.closed = True
        self.wake()
        if self._is_inside():
            self._has_to_leave = True
        else:
            self._leave()

    def _leave(self) -> None:
        try:
            with self.database.watchdog.shortening(), self._lock_for_close():
                self.buffer.close()
                self.coordinator.leave()
        finally:
            # Not before, or its own process would take the member for another's, and send notices to it.
            self._members.remove(self)
        self._members.recheck_group_soon(self.group_id, but=self)

    def _end_call(self) -> None:
        """Emit the log records that arose under the lock, and leave the group if a close has interrupted the call."""
        emit_held_records()
        if self._has_to_leave and not self._is_inside():
            self._has_to_leave = False
            try:
                self._leave()
            except SqlmqError:
                log.exception("Closing %r failed", self, extra=self.log_fields("close failed"))

    @contextlib.contextmanager
    def _lock_for_close(self) -> Iterator[None]:
        """Hold the lock, which another thread may have while it waits for a silent database."""
        with LogHold():
            try:
                if not self.lock.acquire(timeout=_CLOSE_SECONDS):
                    message = f"{self!r} can't leave its group: another thread waits for the database. Its lease ends by itself."
                    raise DatabaseUnavailableError(message)
                yield
            finally:
                try:  # noqa: SIM105 - as above
                    self.lock.release()
                except RuntimeError:
                    pass
