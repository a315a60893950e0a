"""Producers: messages in, places in the log out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, overload

from sqlmq.database.close_once import CloseOnce
from sqlmq.database.watchdog import WaitBudget
from sqlmq.dialects import TopicGrownError
from sqlmq.errors import InvalidPartitionError, ProducerClosedError, UnknownTopicError
from sqlmq.model.message import Message, ProducerResult, RecordBatch
from sqlmq.model.partitioner import Rotation
from sqlmq.model.validation import (
    check_due,
    check_no_timeout,
    check_no_timeout_for_delayed,
    check_partition,
    check_timeout,
)
from sqlmq.operations import produce, staging
from sqlmq.operations.admin import topics
from sqlmq.operations.produce import RoutedMessage
from sqlmq.producer import outbox
from sqlmq.producer.batcher import Batcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future
    from datetime import datetime
    from types import TracebackType
    from typing import TypeVar

    from sqlmq.background.scheduler import Scheduler
    from sqlmq.database.database import Database
    from sqlmq.hooks.observer import Sent
    from sqlmq.model.message import DelayedMessage
    from sqlmq.model.validation import Due
    from sqlmq.operations.produce import AppendBatch, PlacedMessage
    from sqlmq.operations.staging import Delayed
    from sqlmq.producer.outbox import Publication, SessionLike
    from sqlmq.store.topics import Topic

    T = TypeVar("T")


class Producer:
    """Appends messages to one topic. Made by ``mq.producer(topic)``; may be shared by threads, and by forked children.

    A message with a key goes to the partition that its key decides; messages without one take turns. A call returns
    when the message is committed. Calls that come while another one commits go together in the next transaction, so
    many threads that share a producer are much faster than one producer each.
    """

    def __init__(
        self,
        database: Database,
        topic: Topic,
        *,
        max_message_bytes: int,
        wake: Callable[[int], None],
        scheduler: Scheduler,
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._name = topic.name
        self._topic: Topic | None = topic
        self._max_message_bytes = max_message_bytes
        self._wake = wake
        self._rotation = Rotation(self._clock.random.randrange(topic.partitions))
        self._batcher = Batcher(topic.name, self._append)
        self._wait_budget = WaitBudget()
        self._source = outbox.Source(database, scheduler.track_commit, self._forget_topic, self._know_topic)
        self._expect = scheduler.schedule
        self._closing = CloseOnce()
        self._closed = False

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @overload
    def produce(
        self,
        message: Message,
        *,
        timeout: float | None = None,
        session: None = None,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> ProducerResult: ...
    @overload
    def produce(
        self,
        message: Message,
        *,
        timeout: None = None,
        session: SessionLike,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> Publication: ...
    @overload
    def produce(
        self,
        message: Message,
        *,
        timeout: None = None,
        session: SessionLike | None = None,
        delay_seconds: float,
        deliver_at: None = None,
    ) -> DelayedMessage: ...
    @overload
    def produce(
        self,
        message: Message,
        *,
        timeout: None = None,
        session: SessionLike | None = None,
        delay_seconds: None = None,
        deliver_at: datetime,
    ) -> DelayedMessage: ...

    def produce(
        self,
        message: Message,
        *,
        timeout: float | None = None,
        session: SessionLike | None = None,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
    ) -> ProducerResult | Publication | DelayedMessage:
        """Append *message* and return its place, once that is committed.

        *timeout*, in seconds, bounds the wait: TimeoutError means that the message was not sent, OutcomeUnknownError
        that it was on its way. Raises UnknownTopicError if the topic was deleted, MessageTooLargeError, and
        DatabaseError when the database refuses; then nothing was written.

        With a *session* (a Session, scoped_session or Connection on the same database) the message is part of its
        transaction instead: appended when that commits, never if it, or the savepoint around the call, is rolled back.
        The partition is locked for the commit only. Messages of one transaction keep their order in each partition;
        those without a key go to one partition. Raises SessionError, at once, for a session that can't carry a message.

        *delay_seconds*, from now by the database's clock, or *deliver_at*, an aware datetime, has the message stored
        and appended when it is due, by any process that is alive then. ``mq.admin.cancel_delayed`` takes it back until then.
        """
        due = check_due(delay_seconds, deliver_at)
        if due is not None:
            return self._delay([message], None, timeout, session, due)[0]
        return self._send(self._checked(message), None, timeout, session)

    @overload
    def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: float | None = None,
        session: None = None,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> ProducerResult: ...
    @overload
    def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: None = None,
        session: SessionLike,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> Publication: ...
    @overload
    def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: None = None,
        session: SessionLike | None = None,
        delay_seconds: float,
        deliver_at: None = None,
    ) -> DelayedMessage: ...
    @overload
    def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: None = None,
        session: SessionLike | None = None,
        delay_seconds: None = None,
        deliver_at: datetime,
    ) -> DelayedMessage: ...

    def produce_with_partition(
        self,
        message: Message,
        partition: int,
        *,
        timeout: float | None = None,
        session: SessionLike | None = None,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
    ) -> ProducerResult | Publication | DelayedMessage:
        """Append *message* to the partition with the number *partition*, whatever its key; else as ``produce``.

        Raises InvalidPartitionError if the topic has no such partition.
        """
        due = check_due(delay_seconds, deliver_at)
        if due is not None:
            return self._delay([message], partition, timeout, session, due)[0]
        return self._send(self._checked(message), self._checked_partition(partition), timeout, session)

    def submit(self, message: Message, partition: int | None = None) -> Future[ProducerResult]:
        """Append *message* without waiting for it; the future has the place, or the error.

        Messages submitted by one thread keep their order in each partition. ``close`` waits for all of them.
        """
        routed = RoutedMessage(
            self._checked(message), None if partition is None else self._checked_partition(partition)
        )
        self._database.check_may_write()
        observer = self._database.observer
        if observer is None:
            return self._batcher.submit(routed)
        return observer.submit(
            self._name,
            message,
            lambda given: self._batcher.submit(routed._replace(message=self._checked(given))),
        )

    @overload
    def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: None = None,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> list[ProducerResult]: ...
    @overload
    def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: SessionLike,
        delay_seconds: None = None,
        deliver_at: None = None,
    ) -> list[Publication]: ...
    @overload
    def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: SessionLike | None = None,
        delay_seconds: float,
        deliver_at: None = None,
    ) -> list[DelayedMessage]: ...
    @overload
    def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: SessionLike | None = None,
        delay_seconds: None = None,
        deliver_at: datetime,
    ) -> list[DelayedMessage]: ...

    def produce_many(
        self,
        messages: Iterable[Message],
        *,
        session: SessionLike | None = None,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
    ) -> list[ProducerResult] | list[Publication] | list[DelayedMessage]:
        """Append *messages* in one transaction, all or none, and return their places in the same order.

        Those without a key go to one partition together; if there are no others, on Postgres to one that nobody else
        appends to at the moment. With a *session*, as ``produce``: in its transaction. With *delay_seconds* or
        *deliver_at* as well: all are due at the same moment, and keep their order in each partition.
        """
        due = check_due(delay_seconds, deliver_at)
        self._check_open()
        together = list(messages)
        if due is not None:
            return self._delay(together, None, None, session, due)
        contents = self._checked_contents(together)
        if session is not None:
            return self._publish(together, None, session)
        self._database.check_may_write()
        if not together:
            return []
        return self._observed(
            together, lambda given: self._append_many(contents if given is together else RecordBatch.of(given))
        )

    def close(self) -> None:
        """Wait for what was submitted, then take no more. A second call has the same result.

        A database that does not answer is waited for no longer than five seconds; then the futures have the error.
        """
        self._closing.run(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Producer of {self._name!r}{' (closed)' if self._closed else ''}>"

    def _close(self) -> None:
        self._closed = True
        self._wait_budget.shorten()
        self._batcher.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ProducerClosedError(self._name)

    def _checked(self, message: object) -> Message:
        self._check_open()
        if not isinstance(message, Message):
            complaint = f"A producer takes a sqlmq.Message, not {type(message).__name__}."
            raise TypeError(complaint)
        message.check_size(self._max_message_bytes)
        return message

    def _checked_contents(self, messages: Sequence[Message]) -> RecordBatch:
        if set(map(type, messages)) <= {Message}:
            contents = RecordBatch.of(messages)
            if contents.is_within(self._max_message_bytes):
                return contents
        return RecordBatch.of([self._checked(message) for message in messages])

    def _checked_partition(self, partition: int) -> int:
        try:
            return check_partition(self._name, partition, self._current_topic().partitions)
        except InvalidPartitionError:
            self._forget_topic()  # it may have got more
            return check_partition(self._name, partition, self._current_topic().partitions)

    def _observed(self, messages: Sequence[Message], send: Callable[[Sequence[Message]], list[Sent]]) -> list[Sent]:
        """Have *send* send *messages*, which are checked, or what an observer puts in their place."""
        observer = self._database.observer
        if observer is None or not messages:
            return send(messages)
        return observer.send(self._name, messages, lambda given: send([self._checked(message) for message in given]))

    def _send(
        self, message: Message, number: int | None, timeout: float | None, session: SessionLike | None
    ) -> ProducerResult | Publication:
        if session is None:
            self._database.check_may_write()
            seconds = check_timeout(timeout)
            return self._observed(
                [message], lambda given: [self._batcher.call(RoutedMessage(given[0], number), seconds)]
            )[0]
        check_no_timeout(timeout)
        return self._publish([message], number, session)[0]

    def _publish(self, messages: Sequence[Message], number: int | None, session: SessionLike) -> list[Publication]:
        def publish(given: Sequence[Message]) -> list[Publication]:
            routed = [RoutedMessage(message, number) for message in given]
            return outbox.add(session, self._source, self._current_topic(), routed, self._rotation)

        return self._observed(messages, publish)

    def _delay(
        self,
        messages: Sequence[Message],
        partition: int | None,
        timeout: float | None,
        session: SessionLike | None,
        due: Due,
    ) -> list[DelayedMessage]:
        check_no_timeout_for_delayed(timeout)
        checked = [self._checked(message) for message in messages]
        number = None if partition is None else self._checked_partition(partition)
        return self._observed(checked, lambda given: self._store(given, number, session, due))

    def _store(
        self, messages: Sequence[Message], number: int | None, session: SessionLike | None, due: Due
    ) -> list[DelayedMessage]:
        routed = [RoutedMessage(message, number) for message in messages]
        if session is not None:
            return outbox.delay(session, self._source, self._current_topic(), routed, self._rotation, due)
        self._database.check_may_write()
        delayed = self._on_topic(lambda topic: self._stage(produce.place(topic, routed, self._rotation), due))
        self._expect(self._clock.monotonic() + delayed.wait_seconds)
        return delayed.messages

    def _append_many(self, contents: RecordBatch) -> list[ProducerResult]:
        return self._run(lambda topic: produce.load_keyed(topic, contents, self._rotation))

    def _append(self, routed: list[RoutedMessage]) -> list[ProducerResult]:
        with self._database.watchdog.with_budget(self._wait_budget):
            if len(routed) > 1 and all(partition is None for _, partition in routed):
                return self._append_many(RecordBatch.of([message for message, _ in routed]))
            return self._run(lambda topic: produce.load(produce.place(topic, routed, self._rotation)))

    def _stage(self, placed: list[PlacedMessage], due: Due) -> Delayed:
        return self._database.write(staging.delay, placed, due)

    def _run(self, load_for: Callable[[Topic], AppendBatch]) -> list[ProducerResult]:
        return self._on_topic(lambda topic: self._append_load(topic, load_for(topic)))

    def _append_load(self, topic: Topic, load: AppendBatch) -> list[ProducerResult]:
        dialect = self._database.dialect
        run = self._database.append if dialect.takes_one_statement(load.contents) else self._database.write
        results = run(produce.append, load)
        self._wake(topic.id)
        return results

    def _on_topic(self, work: Callable[[Topic], T]) -> T:
        """Do *work* with the topic as it is known; once more, from the beginning, if that turns out to have grown."""
        topic = self._current_topic()
        while True:
            try:
                return work(topic)
            except UnknownTopicError:
                self._forget_topic()
                raise
            except TopicGrownError:
                self._forget_topic()
                known, topic = topic, self._current_topic()
                if topic == known:
                    raise

    def _look_up(self) -> None:
        """Have at hand what publishing in a session asks the database for."""
        self._check_open()
        self._current_topic()
        self._database.identity(fresh=False)

    def _current_topic(self) -> Topic:
        topic = self._topic
        if topic is None:
            topic = self._database.read(topics.find_topic, self._name)
            self._topic = topic
        return topic

    def _know_topic(self, topic: Topic) -> None:
        """The topic has got more partitions; but a transaction may see it as it was before."""
        if self._topic is None or topic.partitions > self._topic.partitions:
            self._topic = topic

    def _forget_topic(self) -> None:
        """There may be a new topic of this name by the next call."""
        self._topic = None
