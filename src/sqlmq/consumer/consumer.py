"""What applications call to read a topic with threads: `Consumer`. The steps are those of its `ConsumerCore`."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Self

from sqlmq.consumer.core import NO_DEADLINE
from sqlmq.consumer.transaction import Transaction
from sqlmq.consumer.worker.config import RunConfig
from sqlmq.consumer.worker.executor import direct_executor
from sqlmq.consumer.worker.pool import WorkerPool
from sqlmq.errors import ConsumerClosedError
from sqlmq.model import validation
from sqlmq.model.retry import Retry
from sqlmq.model.timing import Deadline
from sqlmq.model.validation import check_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlalchemy.orm import Session

    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.partition import Delivery
    from sqlmq.consumer.transaction import SessionSource
    from sqlmq.consumer.worker.pool import RunSummary
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.model.positions import SeekTo
    from sqlmq.model.retry import FailurePolicy


class Consumer:
    """Reads one topic as a member of a group. Made by ``mq.consumer(topic, group)``; may be shared by threads.

    The group's partitions are assigned to its consumers, each partition to one consumer at a time. The group has a position
    in each partition. A message is done when the thread that got it asks for the next one or calls ``commit``. What was not
    done when a consumer ended is delivered again, to the partition's next owner. A loop that is left by an exception, or by
    ``break``, finishes nothing.

    Threads that share a consumer get different messages at the same time, also of one partition. If you need the messages
    of a partition in order, one at a time, give each thread its own consumer.
    """

    def __init__(self, core: ConsumerCore, in_use: object) -> None:
        self._core = core
        self._in_use = in_use

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._core.topic

    @property
    def closed(self) -> bool:
        """Whether the consumer was closed."""
        return self._core.closed

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._core.subscription.group_name

    @property
    def name(self) -> str:
        """The member's name where members are listed."""
        return self._core.subscription.member_name

    @property
    def partitions(self) -> tuple[int, ...]:
        """The numbers of the partitions that the consumer owns now."""
        return self._core.coordinator.partition_numbers

    def consume(self, timeout: float | None = None) -> ReceivedMessage:
        """Finish what this thread got before, and return the next message.

        Waits up to *timeout* seconds, or without end for None. Raises TimeoutError if no message came, ConsumerClosedError
        if the consumer is closed or becomes closed.
        """
        messages = self._poll(1, check_timeout(timeout))
        if not messages:
            raise self._core.no_message_error(timeout)
        return messages[0]

    def messages(self) -> Iterator[ReceivedMessage]:
        """Iterate over the messages until the consumer closes: ``for message in consumer`` does the same.

        A message is done when the loop asks for the next one. If the loop is left by an exception or by ``break``, its last
        message is not done: ``commit`` finishes it, and the next poll delivers it again, before the messages that follow it
        in its partition. Raises ConsumerClosedError at the call if the consumer is closed already.
        """
        self._core.check_usable()
        return self._iterate()

    def consume_chan(self) -> Iterator[ReceivedMessage]:
        """Iterate as ``messages`` does. Go's name for it."""
        return self.messages()

    def __iter__(self) -> Iterator[ReceivedMessage]:
        return self.messages()

    def poll(self, max_messages: int = 500, *, timeout: float | None = None) -> list[ReceivedMessage]:
        """Finish what this thread got before, and return up to *max_messages* as soon as there is one.

        Each partition's messages are in order. Waits up to *timeout* seconds, or without end for None; with 0 it polls
        once. The list is empty if no message came.
        """
        return self._poll(validation.integer("max_messages", max_messages), check_timeout(timeout))

    def transaction(
        self, *, max_messages: int = 100, timeout: float | None = None, session: SessionSource | None = None
    ) -> Transaction:
        """Take messages in a transaction of their own: your changes and the group's position commit together, or not at all.

        Use it as ``with consumer.transaction() as tx:``. ``tx.messages`` holds up to *max_messages* of one partition, in
        order. What you do with ``tx.session`` or ``tx.connection`` commits with the position at the end of the block. If the
        block ends with an exception, both are rolled back. Waits for messages up to *timeout* seconds, or without end for
        None; ``tx.messages`` is empty if none came. *session* is a sessionmaker, a Session, a scoped_session or a Connection
        on the same database, in no transaction; by default the MQ's engine makes one.

        Only this transaction has the partition while it is open, and the partition is free as soon as the connection ends.
        What this consumer got by ``poll`` or ``consume`` is finished first, and its partitions are released.

        Raises SessionError, TransactionEndedError, IsolationError for a session above READ COMMITTED, OutcomeUnknownError.
        """
        return Transaction(
            self._core,
            self._in_use,
            validation.integer("max_messages", max_messages),
            check_timeout(timeout),
            session,
        )

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
        """Call *handler* with each message until ``stop`` or a signal; then close the consumer and return a summary.

        A message is done when the handler returns. When the handler raises, the message is tried again as *retry* says. After
        the last attempt *on_failure* decides: ``park`` (the default for messages with a key), ``dead`` (the default without),
        ``skip`` or ``stop``; docs/failures.md says what each does to the order. Attempts are counted before the handler runs.

        - *batch_size*: pass the handler lists of up to so many messages of a partition, instead of one message.
        - *transaction*: pass it a session too, whose changes commit with the group's position, or not at all. *session* is
          a sessionmaker on the same database; by default the MQ's engine makes the sessions.
        - *concurrency*: the number of threads, each with one partition at a time. The messages of a partition stay in order.
        - *max_parked*: when so many messages of a partition are parked, no more of it are fetched.
        - *max_processing_seconds*: release the partition when the handler takes longer; the attempt has failed.
        - *stop_seconds*: how long handlers may go on after ``stop``. Messages that they have not finished are redelivered.
        - *idle_seconds*: return after so long without a message, and without one that waits for another attempt. With 0,
          what is there is handled.
        - *handle_signals*: in the main thread, stop at SIGTERM and SIGINT; a second signal raises KeyboardInterrupt. Handlers
          of other owners, as a web server, are called too.

        Once the handlers have ended, raises the error of the topic or the database that ended the run, or what a handler
        raised that is no Exception, for example SystemExit.
        """
        config = RunConfig(
            batch_size=batch_size,
            transaction=transaction,
            concurrency=concurrency,
            retry=Retry() if retry is None else retry,
            on_failure=on_failure,
            max_parked=max_parked,
            max_processing_seconds=max_processing_seconds,
            stop_seconds=stop_seconds,
            idle_seconds=idle_seconds,
            handle_signals=handle_signals,
        )
        pool = WorkerPool(self._core, config, direct_executor(self._core, handler, session, config))
        self._core.begin_run(pool)
        with pool.taking_signals():
            return pool.work_and_close()

    def stop(self) -> None:
        """Make ``run`` return after the messages that are in flight. Any thread may call it.

        A ``run`` that begins later returns at once.
        """
        self._core.stop()

    def commit(self) -> None:
        """Finish what this thread got, and commit everything that is done, now.

        Raises FencedError if another consumer has taken over one of the partitions, UnknownTopicError if the topic was
        deleted. The positions in the other partitions are committed all the same.
        """
        self._core.commit(threading.current_thread())

    def seek(self, partition: int, to: SeekTo) -> None:
        """Move the group in *partition*, which this consumer owns.

        *to* is an offset, ``earliest``, ``latest``, or an aware datetime for the first message since then. Messages of the
        partition that are in flight are dropped: the commit of their threads moves nothing. The group's parked messages from
        the new position on are forgotten.

        Raises NotOwnedError, FencedError, InvalidOffsetError, and RuntimeError during ``run``.
        """
        self._core.seek(partition, to)

    def close(self) -> None:
        """Commit what is done, hand the partitions over and leave the group. A second call has the same result.

        Threads that wait for a message get ConsumerClosedError. Messages in flight are delivered again, to the next owner.
        """
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._core.close_after(error)

    def __repr__(self) -> str:
        return repr(self._core)

    def _iterate(self) -> Iterator[ReceivedMessage]:
        core = self._core
        while True:
            try:
                if core.ack == "on_delivery":
                    yield self.consume()
                    continue
                delivery = self._next_delivery()
            except ConsumerClosedError:
                return
            try:
                yield from core.iterate_delivery(delivery, math.inf)
            except GeneratorExit:
                core.mark_interrupted(threading.current_thread())
                raise

    # The loops of a thread. A task has loops of its own, with the same steps.

    def _poll(self, at_most: int, timeout: float | None) -> list[ReceivedMessage]:
        core, receiver = self._core, threading.current_thread()
        deadline = Deadline.after(timeout, core.clock.monotonic())
        attempt = 0
        while True:
            seen = core.wakeups.count
            messages = core.fetch(receiver, at_most, deadline)
            if messages or deadline.passed(core.clock.monotonic()):
                return messages
            is_woken = core.wait(attempt, deadline, seen, may_delegate=True)
            attempt = 0 if is_woken else attempt + 1

    def _next_delivery(self) -> Delivery:
        core, receiver = self._core, threading.current_thread()
        attempt = 0
        while True:
            seen = core.wakeups.count
            delivery = core.fetch_lazily(receiver, core.config.read_messages, NO_DEADLINE)
            if delivery is not None:
                return delivery
            is_woken = core.wait(attempt, NO_DEADLINE, seen, may_delegate=True)
            attempt = 0 if is_woken else attempt + 1
