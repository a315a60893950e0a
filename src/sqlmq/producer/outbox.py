"""Messages in the application's transaction: kept until it commits, and appended as its last act.

What waits is kept beside the Connection, whose SQLAlchemy events tell what becomes of the transaction. So a Session, an
AsyncSession and a Connection are served alike, and whatever else the application does at commit time comes before.
Nothing is written, and no lock is taken, before the commit. Delayed messages are the exception: they are rows like the
application's own, stored and cancelled at the call.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, TwoPhaseTransaction, event
from sqlalchemy.sql.expression import SavepointClause

from sqlmq.database.retrying import roll_back_in_driver
from sqlmq.dialects import TopicGrownError
from sqlmq.errors import SessionError, UnknownTopicError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.message import Publication
from sqlmq.operations import produce, staging
from sqlmq.operations.admin import topics
from sqlmq.producer.session_binding import (
    TOO_LATE,
    active_transaction,
    check_before_commit,
    check_database,
    connection_of,
    hidden_parameters,
)
from sqlmq.schema import own_names

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.engine import RootTransaction

    from sqlmq.database.database import Database
    from sqlmq.model.message import DelayedMessage, ProducerResult
    from sqlmq.model.validation import Due
    from sqlmq.operations.produce import KeylessPartitioner, PlacedMessage, RoutedMessage
    from sqlmq.operations.staging import StagedBatch
    from sqlmq.producer.core import ProducerCore
    from sqlmq.producer.session_binding import SessionLike
    from sqlmq.store.topics import Topic

log = logging.getLogger("sqlmq.producer")


class _Waiting(NamedTuple):
    producer: ProducerCore
    placed: PlacedMessage
    publication: Publication


class _StickyPartitioner:
    """Sends all messages without a key of one transaction to one partition, so that they stay in order."""

    def __init__(self, keyless: KeylessPartitioner) -> None:
        self._keyless = keyless
        self._number: int | None = None

    def next(self, partitions: int) -> int:
        if self._number is None:
            self._number = self._keyless.next(partitions)
        return self._number


class _Outbox:
    """What waits for the transaction of one Connection. It holds no reference to that, which the application closes."""

    def __init__(self, conn: Connection, transaction: RootTransaction) -> None:
        self._start_over(transaction)
        self._hears_twophase = self._hears_commit = False
        # Each listener costs about 10 us, for each Connection that publishes.
        event.listen(conn, "before_execute", self._before_execute)
        event.listen(conn, "rollback_savepoint", self._rollback_savepoint)
        self._listen(conn, transaction)

    def _listen(self, conn: Connection, transaction: RootTransaction) -> None:
        if isinstance(transaction, TwoPhaseTransaction):
            if not self._hears_twophase:
                self._hears_twophase = True
                event.listen(conn, "prepare_twophase", self._publish)
                event.listen(conn, "commit_twophase", self._publish)
                event.listen(conn, "rollback_twophase", self._forget)
        elif not self._hears_commit:
            self._hears_commit = True
            event.listen(conn, "commit", self._publish)
            event.listen(conn, "rollback", self._forget)

    def _start_over(self, transaction: RootTransaction) -> None:
        self._transaction = ref(transaction)
        self._is_committing = False
        self.checked: list[Database] = []
        self._waiting: list[_Waiting] = []
        self._published: list[_Waiting] = []
        # Savepoints of this transaction since the outbox exists, each with the number of messages that waited by then.
        # Released ones stay in the list: nothing can roll back to them.
        self._savepoints: list[tuple[str, int]] = []
        self._sticky: dict[int, _StickyPartitioner] = {}
        # For each database, when its first delayed message is due. Those of a savepoint that is rolled back stay here:
        # the scheduler then finds nothing due.
        self._delayed: dict[Database, tuple[ProducerCore, float]] = {}

    def begin(self, conn: Connection, transaction: RootTransaction) -> None:
        """Wait for *transaction* from now on, if it is another one than before."""
        if self._transaction() is not transaction:
            check_before_commit(transaction)
            self._start_over(transaction)
            self._listen(conn, transaction)
        if self._is_committing:
            raise SessionError(TOO_LATE)

    def add(self, producer: ProducerCore, topic: Topic, routed: Sequence[RoutedMessage]) -> list[Publication]:
        publications = []
        for placed in self._place(producer, topic, routed):
            publication = Publication(topic.name, placed.number)
            self._waiting.append(_Waiting(producer, placed, publication))
            publications.append(publication)
        return publications

    def schedule(
        self, conn: Connection, producer: ProducerCore, topic: Topic, routed: Sequence[RoutedMessage], due: Due
    ) -> list[DelayedMessage]:
        staged = _stage(conn, producer, self._place(producer, topic, routed), due)
        database = producer.database
        due_at = database.clock.monotonic() + staged.wait_seconds
        _, earliest = self._delayed.get(database, (producer, math.inf))
        self._delayed[database] = (producer, min(due_at, earliest))
        return staged.messages

    def _place(self, producer: ProducerCore, topic: Topic, routed: Sequence[RoutedMessage]) -> list[PlacedMessage]:
        sticky = self._sticky.setdefault(topic.id, _StickyPartitioner(producer.rotation))
        return produce.place(topic, routed, sticky)

    def _before_execute(self, conn: Connection, element: object, *_: object) -> None:
        # Not the event `savepoint`: it comes before the savepoint has its name.
        del conn
        if isinstance(element, SavepointClause):
            self._savepoints.append((element.ident, len(self._waiting)))

    def _rollback_savepoint(self, conn: Connection, name: str, _context: object) -> None:
        """Drop what was added since the savepoint began; it may have begun before the outbox existed."""
        del conn
        names = [known for known, _ in self._savepoints]
        index = names.index(name) if name in names else 0
        count = self._savepoints[index][1] if name in names else 0
        del self._savepoints[index:]
        del self._waiting[count:]

    def _publish(self, conn: Connection, *_: object) -> None:
        """Append what waits, just before the application's COMMIT is sent."""
        waiting, self._waiting = self._waiting, []
        transaction = conn.get_transaction()
        if transaction is None or transaction is not self._transaction():
            return
        self._is_committing = True
        # The same order everywhere (schema, then partition id), so that two transactions can't wait for each other.
        by_schema: dict[str, list[_Waiting]] = {}
        for one in waiting:
            by_schema.setdefault(one.producer.database.schema or "", []).append(one)
        try:
            for database in self.checked:
                with database.translating():
                    database.dialect.check_in_place(conn)
            with own_names(conn):
                for schema in sorted(by_schema):
                    self._publish_schema(conn, transaction, by_schema[schema])
        except BaseException:
            self._forget(conn)
            roll_back_in_driver(conn)
            raise
        delayed, self._delayed = self._delayed, {}
        for producer, due_at in delayed.values():
            producer.scheduler.track_commit(transaction, set(), due_at)

    def _publish_schema(self, conn: Connection, transaction: RootTransaction, waiting: list[_Waiting]) -> None:
        """Append what goes to the tables of one schema."""
        try:
            try:
                results = _append(conn, waiting)
            except TopicGrownError:
                waiting = _placed_again(conn, waiting)
                results = _append(conn, waiting)
        except UnknownTopicError as error:
            _forget_topic(waiting, error.topic)
            raise
        self._published += waiting
        if results is not None:
            for one, result in zip(waiting, results, strict=True):
                one.publication.set_result(result)
        # What was staged instead is due at once, and what is in the log is not due at all.
        _track_commit(transaction, waiting, due_at=-math.inf if results is None else math.inf)

    def _forget(self, conn: Connection, *_: object) -> None:
        """Drop everything: the transaction was rolled back, or its commit failed."""
        del conn
        for one in self._published:
            one.publication.set_result(None)
        if self._waiting or self._published:
            log.debug(
                "%d message(s) are not published: their transaction was rolled back, or ended without commit().",
                len(self._waiting) + len(self._published),
                extra=log_fields("publication dropped", messages=len(self._waiting) + len(self._published)),
            )
        self._waiting.clear()
        self._published.clear()
        self._savepoints.clear()
        self._delayed.clear()


def _append(conn: Connection, waiting: list[_Waiting]) -> list[ProducerResult] | None:
    dialect = waiting[0].producer.database.dialect
    return produce.publish(conn, dialect, produce.make_batch([one.placed for one in waiting]))


def _placed_again(conn: Connection, waiting: list[_Waiting]) -> list[_Waiting]:
    """*waiting*, placed on the topics as the transaction sees them: one has more partitions than its producer knew."""
    dialect = waiting[0].producer.database.dialect
    found = {name: topics.find_topic(conn, dialect, name) for name in {one.publication.topic for one in waiting}}
    again = []
    for one in waiting:
        topic = found[one.publication.topic]
        one.producer.learn_topic(topic)
        placed = one.placed.on(topic)
        one.publication.move_to(placed.number)
        again.append(one._replace(placed=placed))
    return again


def _forget_topic(waiting: list[_Waiting], topic: str) -> None:
    for one in waiting:
        if one.publication.topic == topic:
            one.producer.forget_topic()


def _track_commit(transaction: RootTransaction, waiting: list[_Waiting], due_at: float) -> None:
    """Notify the scheduler of each MQ, once *transaction* is over, to wake consumers or to move staged messages."""
    for database in {one.producer.database for one in waiting}:
        of_database = [one for one in waiting if one.producer.database is database]
        topic_ids = {one.placed.topic.id for one in of_database}
        of_database[0].producer.scheduler.track_commit(transaction, topic_ids, due_at)


def _stage(conn: Connection, producer: ProducerCore, placed: list[PlacedMessage], due: Due) -> StagedBatch:
    """Store *placed*, once more if its topic has more partitions than the producer knew."""
    dialect = producer.database.dialect
    try:
        try:
            return staging.stage(conn, dialect, placed, due)
        except TopicGrownError:
            topic = topics.find_topic(conn, dialect, producer.topic)
            producer.learn_topic(topic)
            return staging.stage(conn, dialect, [one.on(topic) for one in placed], due)
    except UnknownTopicError:
        producer.forget_topic()
        raise


# A Connection is used by one thread at a time, so two threads never make an outbox for the same one.
_outboxes: WeakKeyDictionary[Connection, _Outbox] = WeakKeyDictionary()


def add(
    session: SessionLike, producer: ProducerCore, topic: Topic, routed: Sequence[RoutedMessage]
) -> list[Publication]:
    """Publish *routed* when the transaction of *session* commits; a transaction is begun if there is none.

    Raises SessionError if that transaction can't carry them.
    """
    _, outbox = _outbox_of(session, producer.database)
    return outbox.add(producer, topic, routed)


def schedule(
    session: SessionLike, producer: ProducerCore, topic: Topic, routed: Sequence[RoutedMessage], due: Due
) -> list[DelayedMessage]:
    """Store *routed* in the transaction of *session*, now, until they are *due*.

    Raises SessionError, UnknownTopicError, and SQLAlchemy's errors for those of the database.
    """
    conn, outbox = _outbox_of(session, producer.database)
    with own_names(conn), hidden_parameters():
        return outbox.schedule(conn, producer, topic, routed, due)


def cancel(session: SessionLike, database: Database, ids: Collection[int]) -> set[int]:
    """Delete those delayed messages of *ids* that still wait, in the transaction of *session*. Returns their ids."""
    conn, _ = _outbox_of(session, database)
    with own_names(conn):
        return staging.cancel(conn, database.dialect, ids)


def _outbox_of(session: SessionLike, database: Database) -> tuple[Connection, _Outbox]:
    """The Connection that carries the transaction of *session*, and its outbox. Raises SessionError."""
    conn = connection_of(session, database)
    transaction = active_transaction(conn)
    outbox = _outboxes.get(conn)
    if outbox is None:
        check_before_commit(transaction)
        outbox = _outboxes[conn] = _Outbox(conn, transaction)
    outbox.begin(conn, transaction)
    if database not in outbox.checked:
        with own_names(conn):
            check_database(conn, database)
        outbox.checked.append(database)
    return conn, outbox
