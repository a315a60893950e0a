"""Consumers: messages out of a group's partitions, and the group's positions moved on."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from sqlmq.consumer.core import ConsumerCore
from sqlmq.consumer.transaction import Host, Transaction
from sqlmq.consumer.transaction_scope import TransactionContext
from sqlmq.consumer.worker.attempts import Books
from sqlmq.consumer.worker.dispatcher import Terms
from sqlmq.consumer.worker.executor import (
    DirectExecutor,
    TransactionalExecutor,
    check_handler,
    check_no_session,
    observed,
    session_maker,
)
from sqlmq.consumer.worker.pool import Host as RunHost
from sqlmq.consumer.worker.pool import Limits, WorkerPool
from sqlmq.database.close_once import CloseOnce
from sqlmq.errors import (
    ConsumerClosedError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    OutcomeUnknownError,
    SqlmqError,
)
from sqlmq.model.config import check_max_messages, check_timeout
from sqlmq.model.positions import check_seek
from sqlmq.model.timing import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlalchemy.orm import Session

    from sqlmq.background.registry import MemberRegistry
    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.coordinator import Subscription
    from sqlmq.consumer.partition import Delivery
    from sqlmq.consumer.transaction import SessionSource
    from sqlmq.consumer.worker.dispatcher import Attempt
    from sqlmq.consumer.worker.executor import Executor
    from sqlmq.consumer.worker.pool import RunSummary
    from sqlmq.database.database import Database
    from sqlmq.model.config import MQConfig
    from sqlmq.model.message import Message
    from sqlmq.model.positions import SeekTo
    from sqlmq.model.retry import FailurePolicy, Retry
    from sqlmq.store.groups import Group

T = TypeVar("T")
log = logging.getLogger("sqlmq.consumer")

Ack = Literal["auto", "on_delivery"]
"""When a message counts as done: after it was handled (at least once), or before it is handed out (at most once)."""


class Consumer(ConsumerCore):
    """Reads one topic as a member of a group. Made by ``mq.consumer(topic, group_id)``; may be shared by threads.

    The partitions of the topic are shared out between the group's consumers, each to one at a time, and the group's
    position in each is kept. A message is done when the thread that got it asks for the next one, or calls ``commit``;
    what was not done when a consumer went away is delivered again, to whoever has the partition then. Leaving a loop
    by an exception, or by ``break``, finishes nothing.

    Threads that share a consumer get different messages, side by side, of one partition too; for messages of a
    partition to be handled in order, one at a time, give each thread a consumer of its own.
    """

    def __init__(
        self, database: Database, background: MemberRegistry, subscription: Subscription, options: MQConfig, ack: Ack
    ) -> None:
        super().__init__(database, background.on_wait, subscription, options)
        self._background = background
        self._ack = ack
        self._closing = CloseOnce()
        self._transactions = TransactionContext(database, subscription.topic, options, subscription.on_evicted)
        self._run: WorkerPool | None = None
        self._is_stopped = False
        background.add(self)

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._subscription.topic.name

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._subscription.group_name

    @property
    def name(self) -> str:
        """How this member is called where members are listed."""
        return self._subscription.member_name

    @property
    def partitions(self) -> tuple[int, ...]:
        """The numbers of the partitions it owns at this moment."""
        return self._coordinator.partition_numbers

    def consume(self, timeout: float | None = None) -> Message:
        """Return the next message, and finish what this thread got before.

        Waits up to *timeout* seconds, without one for ever; raises TimeoutError when nothing came, ConsumerClosedError
        when the consumer is or becomes closed.
        """
        return self._only(self._poll_until(self.deliver, 1, check_timeout(timeout)), timeout)

    def consume_chan(self) -> Iterator[Message]:
        """Give one message after the other, each when the one before is done; ends when the consumer closes.

        The message at which a loop was left, by an exception or by ``break``, is not done: ``commit`` finishes it all
        the same, asking for messages brings it again, before what follows it in its partition.
        """
        while True:
            try:
                if self._ack == "on_delivery":
                    yield self.consume()
                    continue
                deliveries = self._poll_until(self.deliver_lazily, self._options.read_messages, None)
            except ConsumerClosedError:
                return
            try:
                for delivery in deliveries:
                    yield from self._iterate_delivery(delivery, math.inf)
            except GeneratorExit:
                self.mark_interrupted(threading.current_thread())
                raise

    def __iter__(self) -> Iterator[Message]:
        return self.consume_chan()

    def poll(self, max_messages: int = 500, timeout: float | None = None) -> list[Message]:
        """Return up to *max_messages*, as soon as there is one, and finish what this thread got before.

        Each partition's messages come in order. Waits up to *timeout* seconds, without one for ever; an empty list
        says that nothing came. ``timeout=0`` looks once.
        """
        return self._poll_until(self.deliver, check_max_messages(max_messages), check_timeout(timeout))

    def transaction(
        self, max_messages: int = 100, timeout: float | None = None, session: SessionSource | None = None
    ) -> Transaction:
        """Take messages, and do with them what takes effect together with the group's position, or not at all.

        To be used as ``with consumer.transaction() as tx:``. Up to *max_messages* of one partition, in order, are in
        ``tx.messages``; what is done with ``tx.session`` or ``tx.connection`` commits with the position when the block
        is left, and is rolled back with it when the block is left by an exception. Waits for messages up to *timeout*
        seconds, without one for ever; if none came, ``tx.messages`` is empty. *session* is a sessionmaker, a Session, a
        scoped_session or a Connection on the same database, in no transaction; by default one of the MQ's engine.

        The partition is this transaction's own as long as it is open, and free as soon as its connection ends. What
        this consumer has claimed by ``poll`` or ``consume`` is finished and given back first.

        Raises SessionError, IsolationError for a session above READ COMMITTED, OutcomeUnknownError.
        """
        check_max_messages(max_messages)
        host = Host(
            self._count_wakeups, lambda: self._give_back_all(threading.current_thread()), self._wait, self._wake_others
        )
        return Transaction(self._transactions, host, max_messages, check_timeout(timeout), session)

    def run(
        self,
        handler: Callable[..., object],
        *,
        batch_size: int | None = None,
        transaction: bool = False,
        session: Callable[[], Session] | None = None,
        concurrency: int = 1,
        retry: Retry | None = None,
        on_failure: FailurePolicy | None = None,
        max_parked: int = 1_000,
        max_processing_seconds: float | None = None,
        stop_seconds: float = 25.0,
        idle_seconds: float | None = None,
        handle_signals: bool = True,
    ) -> RunSummary:
        """Call *handler* with each message, until ``stop`` or a signal; then close the consumer, and return what was done.

        A message is done when the handler returns. When it raises, the message is tried again as *retry* says, and then
        *on_failure* decides: ``park`` (the default for messages with a key), ``dead`` (for those without), ``skip`` or
        ``stop``; docs/failures.md says what each does to the order. Attempts are counted before the handler runs.

        - *batch_size*: give the handler lists of up to so many messages of a partition, instead of one message.
        - *transaction*: give it a session too, whose changes commit with the group's position, or not at all. *session*
          is what makes it, a sessionmaker on the same database; else it is one of the MQ's engine.
        - *concurrency*: how many partitions are worked on at a time, in a thread each. Those of one stay in order.
        - *max_parked*: with so many messages of a partition set aside, it is read no further.
        - *max_processing_seconds*: give a partition back when its handler takes longer; the attempt has failed.
        - *stop_seconds*: how long handlers may go on after ``stop``. What they have not finished is delivered again.
        - *idle_seconds*: return when for so long nothing came, and nothing waits for another attempt.
        - *handle_signals*: in the main thread, stop at SIGTERM and SIGINT; a second one raises KeyboardInterrupt.

        Raises what is wrong with the topic or the database, once the handlers have ended; also what a handler raises that
        is no Exception, as SystemExit.
        """
        check_handler(handler)
        terms = Terms.checked(retry, on_failure, max_parked, batch_size)
        limits = Limits.checked(concurrency, stop_seconds, max_processing_seconds, idle_seconds)
        perform = self._executor(handler, session, in_batches=batch_size is not None, transaction=transaction)
        run = self._new_run(perform, terms, limits)
        with run.taking_signals() if handle_signals else contextlib.nullcontext():
            return self._work(run)

    def stop(self) -> None:
        """Have ``run`` begin no other message, and return when those in hand are done. May be called from anywhere.

        Called before ``run``, it makes that return at once.
        """
        self._is_stopped = True
        if self._run is not None:
            self._run.stop()

    def commit(self) -> None:
        """Finish what this thread got, and commit everything that is finished, now.

        Raises FencedError if another consumer has taken one of the partitions over, UnknownTopicError if the topic was
        deleted; what was finished of other partitions is committed all the same.
        """
        self._commit(threading.current_thread())

    def seek(self, partition: int, to: SeekTo) -> None:
        """Move the group in *partition*, which this consumer owns, and go on there.

        *to* is an offset, ``earliest``, ``latest`` or an aware datetime: the first message since then. What any thread
        has of the partition is dropped: its commit moves nothing. So is what the group has set aside from there on.

        Raises NotOwnedError, FencedError, InvalidOffsetError, RuntimeError under ``run``.
        """
        with self._lock:
            self._check_usable()
            self._check_not_run("`mq.admin.reset_group` moves its group.")
            self._coordinator.ensure_assignment()
            self._coordinator.seek(partition, check_seek(to))

    def close(self) -> None:
        """Commit what is finished, hand the partitions over and leave the group. A second call has the same result.

        Whatever thread waits for a message gets ConsumerClosedError. What was handed out and not finished is delivered
        again, to the next owner.
        """
        if self._pid == os.getpid():
            self._database.check_may_write()
            self._closing.run(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SqlmqError:
            if error is None:
                raise
            log.exception("Closing %r failed", self, extra=self.log_fields("close failed"))

    def __repr__(self) -> str:
        return f"<Consumer {self.name!r} of {self.topic!r} in {self.group!r}{' (closed)' if self._closed else ''}>"

    # What a run needs of a consumer.

    def _executor(
        self, handler: Callable[..., object], session: object, *, in_batches: bool, transaction: bool
    ) -> Executor:
        handler = observed(handler, self._database.observer, self.group)
        if transaction:
            return TransactionalExecutor(
                handler, self._transactions, self._group, session_maker(session), in_batches=in_batches
            )
        check_no_session(session)
        return DirectExecutor(handler, in_batches=in_batches)

    def _new_run(self, perform: Executor, terms: Terms, limits: Limits) -> WorkerPool:
        if self._ack != "auto":
            message = "run() finishes a message after its handler. Make the consumer with ack='auto'."
            raise ValueError(message)
        with self._lock:
            self._check_usable()
            if self._is_run:
                message = f"{self!r} is run already. Give each run a consumer of its own, or use concurrency=."
                raise RuntimeError(message)
            self._is_run = True
            books = Books(self._database, self._coordinator, self._buffer, self._lock)
            host = RunHost(self._take, self._may_take, self._wakeups)
            self._run = WorkerPool(host, books, self._options, terms, limits, perform)
        if self._is_stopped:
            self._run.stop()
        return self._run

    def _work(self, run: WorkerPool) -> RunSummary:
        try:
            return run.work()
        finally:
            self._coordinator.expects_successor = run.expects_successor
            self.close()

    def _take(self, choose: Callable[[], Attempt | None]) -> Attempt | None:
        """Have *choose* choose, if anything may be handed out at this moment."""
        with self._lock:
            self._check_usable()
            is_ready = self._make_ready(1, Deadline.after(None, 0.0)) and self._coordinator.is_lease_valid()
            try:
                return choose() if is_ready else None
            except (DatabaseUnavailableError, DatabaseBusyError) as error:
                log.warning("%r goes on trying: %s", self, error, extra=self.log_fields("retry", error))
                return None

    # The loop of a thread. A task has one of its own, with the same steps.

    def _poll_until(self, give: Callable[[Receiver, int], list[T]], at_most: int, timeout: float | None) -> list[T]:
        receiver = threading.current_thread()
        deadline = Deadline.after(timeout, self._clock.monotonic())
        self.acknowledge(receiver)
        attempt = 0
        while True:
            seen = self._wakeups.count
            given = self.fetch(receiver, give, at_most, deadline)
            if given or deadline.passed(self._clock.monotonic()):
                return given
            is_woken = self._wait(attempt, deadline, seen, may_rest=True)
            attempt = 0 if is_woken else attempt + 1

    def _wait(self, attempt: int, deadline: Deadline, seen: int, *, may_rest: bool = False) -> bool:
        """Wait after *attempt*, which found nothing, until a wake-up since the count *seen*; return whether."""
        return self._wakeups.wait(self._wakeups.pause(attempt, deadline, may_delegate=may_rest), seen)

    def _only(self, messages: list[Message], timeout: float | None) -> Message:
        if not messages:
            message = f"No message came from topic {self.topic!r} within {timeout} seconds."
            raise TimeoutError(message)
        return messages[0]

    # What its transactions need of a consumer.

    def _count_wakeups(self) -> int:
        self._check_usable()
        return self._wakeups.count

    def _give_back_all(self, receiver: Receiver) -> Group:
        """Finish what *receiver* got, and have no claims by lease, but be a member; return the group."""
        with self._lock:
            self.acknowledge(receiver)
            self._asked_at = self._clock.monotonic()
            if self._coordinator.assigned:
                self._coordinator.release_all()
                self._background.recheck_group_soon(self.group_id, but=self)
            self._coordinator.ensure_membership()
            return self._coordinator.group

    def _wake_others(self) -> None:
        self._background.wake(self.topic_id)

    # The steps: each takes the lock, asks the database once at the most, and waits for nothing else.

    def fetch(
        self, receiver: Receiver, give: Callable[[Receiver, int], list[T]], at_most: int, deadline: Deadline
    ) -> list[T]:
        """Have *give* give *receiver* up to *at_most* messages, if there are any at this moment."""
        with self._lock:
            self._check_usable()
            self._asked_at = self._clock.monotonic()
            # Looking may take long, and the lease be over then.
            is_ready = self._make_ready(at_most, deadline) and self._coordinator.is_lease_valid()
            return give(receiver, at_most) if is_ready else []

    def _commit(self, receiver: Receiver) -> None:
        """Finish what *receiver* got, also where it left a loop, and commit whatever is finished."""
        with self._lock:
            self._check_usable()
            self._buffer.acknowledge(receiver, include_interrupted=True)
            fenced = self._coordinator.commit_due()
        if fenced:
            self._coordinator.check_topic()
            raise self._coordinator.fenced(fenced)

    # What the steps do, with the lock held.

    def _make_ready(self, at_most: int, deadline: Deadline) -> bool:
        """Do what is due, and read on if need be; False while the database is away, as long as there is time."""
        for name in self._buffer.requeue_of_dead_receivers():
            told = self.log_fields("unfinished")
            log.warning(
                "%r: %s ended without finishing its messages; they are delivered again.", self, name, extra=told
            )
        try:
            if self._coordinator.ensure_assignment():
                self._background.recheck_group_soon(self.group_id, but=self)
            # The background thread does it, usually, while this one goes on.
            if self._coordinator.is_commit_due(2) and (fenced := self._coordinator.commit_due()):
                log.warning("%s", self._coordinator.fenced(fenced), extra=self.log_fields("fenced"))
            self._buffer.fetch_more(at_most)
        except (DatabaseUnavailableError, DatabaseBusyError, OutcomeUnknownError) as error:
            if deadline.passed(self._clock.monotonic()):
                raise
            log.warning("%r goes on trying: %s", self, error, extra=self.log_fields("retry", error))
            return False
        return True

    def deliver(self, receiver: Receiver, at_most: int) -> list[Message]:
        """Deliver up to *at_most* buffered messages to *receiver*."""
        messages = self._buffer.deliver(receiver, at_most)
        if self._ack == "on_delivery" and messages:
            self._buffer.acknowledge(receiver, include_interrupted=True)
            fenced = self._coordinator.commit_due()
            return [message for message in messages if message.partition not in fenced]
        return messages

    def deliver_lazily(self, receiver: Receiver, at_most: int) -> list[Delivery]:
        """Deliver buffered messages to a loop of *receiver*, which takes them one after the other."""
        return self._buffer.deliver_lazily(receiver, at_most, is_shared=self._wakeups.waiters > 0)

    def _close(self) -> None:
        self._closed = True
        self.wake()
        try:
            with self._database.watchdog.shortening(), self._lock_for_close():
                self._buffer.close()
                self._coordinator.leave()
        finally:
            # Not before, or its own process would take the member for another's, and send notices to it.
            self._background.remove(self)
        self._background.recheck_group_soon(self.group_id, but=self)
