"""What Producer and AsyncProducer share: one topic, the checks of what is sent, and the steps that append it.

``Producer`` and ``Batcher`` stand above: they decide which messages go in one transaction, and which thread sends them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlmq.database.watchdog import WaitBudget
from sqlmq.dialects import TopicGrownError
from sqlmq.errors import InvalidPartitionError, ProducerClosedError, UnknownTopicError
from sqlmq.hooks.observer import observe_send
from sqlmq.model.message import Message, ReceivedMessage, RecordBatch
from sqlmq.model.partitioner import Rotation
from sqlmq.model.validation import check_partition
from sqlmq.operations import produce, staging
from sqlmq.operations.admin import topics
from sqlmq.operations.produce import RoutedMessage
from sqlmq.producer import outbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmq.background.notifier import Notifier
    from sqlmq.background.scheduler import Scheduler
    from sqlmq.database.database import Database
    from sqlmq.model.message import DelayedMessage, ProducerResult, Publication
    from sqlmq.model.validation import Due
    from sqlmq.operations.produce import AppendBatch
    from sqlmq.producer.session_binding import SessionLike
    from sqlmq.store.topics import Topic


class ProducerCore:
    """The steps of a producer of one topic. May be shared by threads.

    Threads share the topic as it was last read, without a lock: the worst that a race does is one more read.
    """

    def __init__(
        self,
        database: Database,
        topic: Topic,
        *,
        max_message_bytes: int,
        notifier: Notifier,
        scheduler: Scheduler,
    ) -> None:
        self.topic = topic.name
        self.database = database
        self.scheduler = scheduler
        self.rotation = Rotation(database.clock.random.randrange(topic.partitions))
        self.closed = False
        self._known_topic: Topic | None = topic
        self._max_message_bytes = max_message_bytes
        self._notifier = notifier
        self._wait_budget = WaitBudget()

    @property
    def batch_seconds(self) -> float:
        """How long a batch may take at the very most, with all attempts, while the database responds."""
        return 60.0 + 2 * self.database.watchdog.seconds

    # What is sent is checked before an observer, a thread or the database sees it.

    def check_open(self) -> None:
        """Raise ProducerClosedError if the producer was closed."""
        if self.closed:
            raise ProducerClosedError(self.topic)

    def check_message(self, message: object) -> Message:
        """Return *message* if it can be sent now. Raises TypeError, MessageTooLargeError, ProducerClosedError."""
        if self.closed:
            raise ProducerClosedError(self.topic)
        if not isinstance(message, Message):
            complaint = f"A producer takes a sqlmq.Message, not {type(message).__name__}."
            raise TypeError(complaint)
        message.check_size(self._max_message_bytes)
        return message

    def check_messages(self, messages: Sequence[Message]) -> RecordBatch:
        """Return what *messages* hold, if they can be sent now; raises as ``check_message`` does."""
        self.check_open()
        # Passes over columns: a call for each message would cost a third of sending it.
        if set(map(type, messages)) <= {Message, ReceivedMessage}:
            contents = RecordBatch.of(messages)
            if contents.is_within(self._max_message_bytes):
                return contents
        return RecordBatch.of([self.check_message(message) for message in messages])

    def check_partition(self, partition: int | None) -> None:
        """Raise InvalidPartitionError if the topic has no partition with that number."""
        if partition is None:
            return
        try:
            check_partition(self.topic, partition, self.current_topic().partitions)
        except InvalidPartitionError:
            # Partitions may have been added since the topic was read.
            self.forget_topic()
            check_partition(self.topic, partition, self.current_topic().partitions)

    def route(self, message: Message, partition: int | None, *, waits: bool) -> RoutedMessage:
        """Return *message* with its *partition*, if it can be sent there in a transaction of the MQ's own.

        *waits* is whether the thread then waits for that transaction.
        """
        routed = RoutedMessage(self.check_message(message), partition)
        if partition is not None:
            self.check_partition(partition)
        if waits:
            self.database.check_may_write()
        else:
            self.database.check_may_submit()
        return routed

    # The steps. Each asks the observer of the MQ once, who may replace the messages.

    def append_many(self, messages: Iterable[Message], partition: int | None) -> list[ProducerResult]:
        """Append *messages* in one transaction. Returns their places in the same order."""
        self.check_open()
        together = list(messages)
        contents = self.check_messages(together)
        self.check_partition(partition)
        self.database.check_may_write()
        observer = self.database.observer
        if observer is None or not together:
            return self._append_contents(contents, partition)
        return observe_send(observer, self.topic, together, partial(self._append_messages, partition))

    def publish(self, session: SessionLike, messages: Iterable[Message], partition: int | None) -> list[Publication]:
        """Append *messages* when the transaction of *session* commits."""
        self.check_open()
        together = list(messages)
        self.check_partition(partition)
        observer = self.database.observer
        if observer is None or not together:
            return self._publish(session, partition, together)
        self.check_messages(together)
        return observe_send(observer, self.topic, together, partial(self._publish, session, partition))

    def schedule(
        self, session: SessionLike | None, messages: Iterable[Message], partition: int | None, due: Due
    ) -> list[DelayedMessage]:
        """Store *messages* until they are *due*; with a *session*, in its transaction."""
        self.check_open()
        together = list(messages)
        self.check_partition(partition)
        observer = self.database.observer
        if observer is None or not together:
            return self._schedule(session, partition, due, together)
        self.check_messages(together)
        return observe_send(observer, self.topic, together, partial(self._schedule, session, partition, due))

    def append_batch(self, routed: Sequence[RoutedMessage]) -> list[ProducerResult]:
        """Append what the batcher has collected, in one transaction."""
        with self.database.watchdog.with_budget(self._wait_budget):
            if len(routed) > 1 and all(partition is None for _, partition in routed):
                return self._append_contents(RecordBatch.of([message for message, _ in routed]), None)
            topic = self.current_topic()
            while True:
                try:
                    return self._append(produce.make_batch(produce.place(topic, routed, self.rotation)))
                except TopicGrownError as error:
                    topic = self._topic_after_growth(topic, error)

    def close(self) -> None:
        """Refuse messages from now on, and wait for a silent database no longer than closing may take."""
        self.closed = True
        self._wait_budget.shorten()

    # What is known of the topic. The outbox shares it.

    def current_topic(self) -> Topic:
        """The topic as it was last read; it is read now if it is not known. Raises UnknownTopicError."""
        topic = self._known_topic
        if topic is None:
            topic = self._known_topic = self.database.read(topics.find_topic, self.topic)
        return topic

    def learn_topic(self, topic: Topic) -> None:
        """Remember *topic* if it has more partitions than are known: a transaction may see it as it was before."""
        if self._known_topic is None or topic.partitions > self._known_topic.partitions:
            self._known_topic = topic

    def forget_topic(self) -> None:
        """Read the topic again before the next message: it was deleted, or has other partitions."""
        self._known_topic = None

    @property
    def knows_topic(self) -> bool:
        """Whether a partition can be checked without asking the database."""
        return self._known_topic is not None

    @property
    def is_ready_for_sessions(self) -> bool:
        """Whether ``publish`` asks the database nothing on a connection of the MQ's own."""
        return self._known_topic is not None and self.database.knows_identity

    def prepare_for_sessions(self) -> None:
        """Ask the database now for what ``publish`` would ask on a connection of the MQ's own."""
        self.check_open()
        self.current_topic()
        self.database.identity(fresh=False)

    # The last parameter of these three is the messages, because an observer may give others than it was given.

    def _append_messages(self, partition: int | None, messages: Sequence[Message]) -> list[ProducerResult]:
        return self._append_contents(self.check_messages(messages), partition)

    def _publish(self, session: SessionLike, partition: int | None, messages: Sequence[Message]) -> list[Publication]:
        routed = [RoutedMessage(self.check_message(message), partition) for message in messages]
        return outbox.add(session, self, self.current_topic(), routed)

    def _schedule(
        self, session: SessionLike | None, partition: int | None, due: Due, messages: Sequence[Message]
    ) -> list[DelayedMessage]:
        routed = [RoutedMessage(self.check_message(message), partition) for message in messages]
        if session is not None:
            return outbox.schedule(session, self, self.current_topic(), routed, due)
        self.database.check_may_write()
        topic = self.current_topic()
        while True:
            try:
                staged = self.database.write(staging.stage, produce.place(topic, routed, self.rotation), due)
            except TopicGrownError as error:
                topic = self._topic_after_growth(topic, error)
            except UnknownTopicError:
                self.forget_topic()
                raise
            else:
                self.scheduler.schedule(self.database.clock.monotonic() + staged.wait_seconds)
                return staged.messages

    def _append_contents(self, contents: RecordBatch, partition: int | None) -> list[ProducerResult]:
        if not contents.values:
            return []
        topic = self.current_topic()
        while True:
            try:
                if partition is None:
                    return self._append(produce.make_keyed_batch(topic, contents, self.rotation))
                return self._append(produce.make_partition_batch(topic, contents, partition))
            except TopicGrownError as error:
                topic = self._topic_after_growth(topic, error)

    def _append(self, batch: AppendBatch) -> list[ProducerResult]:
        database = self.database
        try:
            if database.dialect.takes_one_statement(batch.contents):
                results = database.append(produce.append, batch)
            else:
                results = database.write(produce.append, batch)
        except UnknownTopicError:
            self.forget_topic()
            raise
        self._notifier.announce(batch.runs[0].topic.id)
        return results

    def _topic_after_growth(self, known: Topic, error: TopicGrownError) -> Topic:
        """Read the topic again, because it has other partitions than were *known*.

        Raises *error* if it has not: then another attempt would fail in the same way.
        """
        self.forget_topic()
        topic = self.current_topic()
        if topic == known:
            raise error
        return topic
