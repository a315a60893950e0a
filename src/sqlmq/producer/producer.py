"""Producers: messages in, places in the log out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self, overload

from sqlmq.database.close_once import CloseOnce
from sqlmq.hooks.observer import observe_send, observe_submit
from sqlmq.model.validation import check_due, check_no_timeout, check_partition_number, check_timeout
from sqlmq.operations.produce import RoutedMessage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Future
    from datetime import datetime
    from types import TracebackType

    from sqlmq.model.message import DelayedMessage, Message, ProducerResult, Publication
    from sqlmq.producer.batcher import Batcher
    from sqlmq.producer.core import ProducerCore
    from sqlmq.producer.session_binding import SessionLike


class Producer:
    """Appends messages to one topic. Made by ``mq.producer(topic)``; may be shared by threads and forked children.

    A message with a key goes to the partition that its key decides. Messages without one take turns. A call returns
    when the message is committed. Calls that arrive during a commit go together in the next transaction, so many
    threads that share a producer are much faster than one producer each.
    """

    def __init__(self, core: ProducerCore, batcher: Batcher, in_use: object) -> None:
        self._core = core
        self._batcher = batcher
        self._in_use = in_use
        self._closing = CloseOnce()

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._core.topic

    @property
    def closed(self) -> bool:
        """Whether the producer was closed."""
        return self._core.closed

    @overload
    def produce(
        self, message: Message, *, partition: int | None = None, timeout: float | None = None, session: None = None
    ) -> ProducerResult: ...
    @overload
    def produce(
        self, message: Message, *, partition: int | None = None, timeout: None = None, session: SessionLike
    ) -> Publication: ...

    def produce(
        self,
        message: Message,
        *,
        partition: int | None = None,
        timeout: float | None = None,
        session: SessionLike | None = None,
    ) -> ProducerResult | Publication:
        """Append *message* and return its place, once that is committed.

        *partition* is the number of a partition, whatever the key. *timeout*, in seconds, bounds the wait: TimeoutError
        means that the message was not sent, OutcomeUnknownError that it was being sent. Raises UnknownTopicError if the
        topic was deleted, InvalidPartitionError, MessageTooLargeError, and DatabaseError when the database refuses; then
        nothing was written.

        With a *session* (a Session, scoped_session or Connection on the same database) the message is part of its
        transaction: appended when that commits, and never if the transaction, or the savepoint around the call, is
        rolled back. The partition is locked only during the commit. Messages of one transaction keep their order in each
        partition, and those without a key go to one partition. Raises SessionError, at once, for a session that can't
        carry a message.
        """
        if session is not None:
            check_no_timeout(timeout)
            return self._core.publish(session, [message], partition)[0]
        routed = self._core.route(message, partition, waits=True)
        seconds = check_timeout(timeout)
        observer = self._core.database.observer
        if observer is None:
            return self._batcher.call(routed, seconds)
        return observe_send(observer, self._core.topic, [message], partial(self._call, partition, seconds))[0]

    @overload
    def produce_with_partition(
        self, message: Message, partition: int, *, timeout: float | None = None, session: None = None
    ) -> ProducerResult: ...
    @overload
    def produce_with_partition(
        self, message: Message, partition: int, *, timeout: None = None, session: SessionLike
    ) -> Publication: ...

    def produce_with_partition(
        self, message: Message, partition: int, *, timeout: float | None = None, session: SessionLike | None = None
    ) -> ProducerResult | Publication:
        """Append *message* to a *partition*: another name for ``produce(message, partition=partition)``."""
        if session is not None:
            check_no_timeout(timeout)
            return self.produce(message, partition=check_partition_number(partition), session=session)
        return self.produce(message, partition=check_partition_number(partition), timeout=timeout)

    def submit(self, message: Message, *, partition: int | None = None) -> Future[ProducerResult]:
        """Append *message* without waiting. The future gets its place, or the error.

        Messages submitted by one thread keep their order in each partition. ``close`` waits for all of them, and so does the
        end of the process. Callbacks of futures are called in the order of the messages, in a thread for which no message
        waits: they may use the producer.
        """
        routed = self._core.route(message, partition, waits=False)
        observer = self._core.database.observer
        if observer is None:
            return self._batcher.submit(routed)
        return observe_submit(observer, self._core.topic, message, partial(self._submit, partition))

    @overload
    def produce_many(
        self, messages: Iterable[Message], *, partition: int | None = None, session: None = None
    ) -> list[ProducerResult]: ...
    @overload
    def produce_many(
        self, messages: Iterable[Message], *, partition: int | None = None, session: SessionLike
    ) -> list[Publication]: ...

    def produce_many(
        self, messages: Iterable[Message], *, partition: int | None = None, session: SessionLike | None = None
    ) -> list[ProducerResult] | list[Publication]:
        """Append *messages* in one transaction, all or none, and return their places in the same order.

        Messages without a key go to one partition together. If none has a key, that is on Postgres a partition to which
        no other producer appends at the moment. *partition* and *session* work as in ``produce``.
        """
        if session is not None:
            return self._core.publish(session, messages, partition)
        return self._core.append_many(messages, partition)

    def schedule(
        self,
        message: Message,
        *,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
        partition: int | None = None,
        session: SessionLike | None = None,
    ) -> DelayedMessage:
        """Store *message* now and append it when it is due.

        It is due *delay_seconds* from now by the database's clock, or at *deliver_at*, an aware datetime; give one of
        them. Any process that is alive then appends it. Until then, ``mq.admin.cancel_delayed`` cancels it by its ``id``. With
        a *session* the message is stored in its transaction, so a rollback removes it. Errors are those of ``produce``.
        """
        due = check_due(delay_seconds, deliver_at)
        return self._core.schedule(session, [message], partition, due)[0]

    def schedule_many(
        self,
        messages: Iterable[Message],
        *,
        delay_seconds: float | None = None,
        deliver_at: datetime | None = None,
        partition: int | None = None,
        session: SessionLike | None = None,
    ) -> list[DelayedMessage]:
        """Store *messages* in one transaction, all or none, and append them when they are due.

        All are due at the same moment, and keep their order in each partition. Else as ``schedule``.
        """
        due = check_due(delay_seconds, deliver_at)
        return self._core.schedule(session, messages, partition, due)

    def close(self) -> None:
        """Wait for submitted messages, then refuse new ones. A second call has the same result.

        Waits at most five seconds for a database that does not answer. Then the futures get the error.
        """
        self._closing.run(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Producer of {self._core.topic!r}{' (closed)' if self._core.closed else ''}>"

    def _close(self) -> None:
        self._core.close()
        self._batcher.close()

    # The last parameter of these two is the message, because an observer may give another one than it was given.

    def _call(self, partition: int | None, seconds: float | None, messages: Sequence[Message]) -> list[ProducerResult]:
        (message,) = messages
        return [self._batcher.call(RoutedMessage(self._core.check_message(message), partition), seconds)]

    def _submit(self, partition: int | None, message: Message) -> Future[ProducerResult]:
        return self._batcher.submit(RoutedMessage(self._core.check_message(message), partition))
