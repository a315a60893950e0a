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
    from sqlmq.model.message import Message
    from sqlmq.model.positions import SeekTo
    from sqlmq.model.retry import FailurePolicy


class Consumer:
    """Reads one topic as a member of a group. Made by ``mq.consumer(topic, group_id)``; may be shared by threads.

    The partitions of the topic are shared out between the group's consumers, each to one at a time, and the group's
    position in each is kept. A message is done when the thread that got it asks for the next one, or calls ``commit``;
    what was not done when a consumer went away is delivered again, to whoever has the partition then. Leaving a loop
    by an exception, or by ``break``, finishes nothing.

    Threads that share a consumer get different messages, side by side, of one partition too; for messages of a
    partition to be handled in order, one at a time, give each thread a consumer of its own.
    """

    def __init__(self, core: ConsumerCore) -> None:
        self._core = core

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._core.topic

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._core.closed

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._core.subscription.group_name

    @property
    def name(self) -> str:
        """How this member is called where members are listed."""
        return self._core.subscription.member_name

    @property
    def partitions(self) -> tuple[int, ...]:
        """The numbers of the partitions it owns at this moment."""
        return self._core.coordinator.partition_numbers

    def consume(self, timeout: float | None = None) -> Message:
        """Return the next message, and finish what this thread got before.

        Waits up to *timeout* seconds, without one for ever; raises TimeoutError when nothing came, ConsumerClosedError
        when the consumer is or becomes closed.
        """
        messages = self._poll(1, check_timeout(timeout))
        if not messages:
            raise self._core.no_message_error(timeout)
        return messages[0]

    def consume_chan(self) -> Iterator[Message]:
        """Give one message after the other, each when the one before is done; ends when the consumer closes.

        The message at which a loop was left, by an exception or by ``break``, is not done: ``commit`` finishes it all
        the same, asking for messages brings it again, before what follows it in its partition.
        """
        core, receiver = self._core, threading.current_thread()
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
                core.mark_interrupted(receiver)
                raise

    def __iter__(self) -> Iterator[Message]:
        return self.consume_chan()

    def poll(self, max_messages: int = 500, timeout: float | None = None) -> list[Message]:
        """Return up to *max_messages*, as soon as there is one, and finish what this thread got before.

        Each partition's messages come in order. Waits up to *timeout* seconds, without one for ever; an empty list
        says that nothing came. ``timeout=0`` looks once.
        """
        return self._poll(validation.integer("max_messages", max_messages), check_timeout(timeout))

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
        return Transaction(
            self._core, validation.integer("max_messages", max_messages), check_timeout(timeout), session
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
        """Have ``run`` begin no other message, and return when those in hand are done. May be called from anywhere.

        Called before ``run``, it makes that return at once.
        """
        self._core.stop()

    def commit(self) -> None:
        """Finish what this thread got, and commit everything that is finished, now.

        Raises FencedError if another consumer has taken one of the partitions over, UnknownTopicError if the topic was
        deleted; what was finished of other partitions is committed all the same.
        """
        self._core.commit(threading.current_thread())

    def seek(self, partition: int, to: SeekTo) -> None:
        """Move the group in *partition*, which this consumer owns, and go on there.

        *to* is an offset, ``earliest``, ``latest`` or an aware datetime: the first message since then. What any thread
        has of the partition is dropped: its commit moves nothing. So is what the group has set aside from there on.

        Raises NotOwnedError, FencedError, InvalidOffsetError, RuntimeError under ``run``.
        """
        self._core.seek(partition, to)

    def close(self) -> None:
        """Commit what is finished, hand the partitions over and leave the group. A second call has the same result.

        Whatever thread waits for a message gets ConsumerClosedError. What was handed out and not finished is delivered
        again, to the next owner.
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

    # The loops of a thread. A task has loops of its own, with the same steps.

    def _poll(self, at_most: int, timeout: float | None) -> list[Message]:
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
