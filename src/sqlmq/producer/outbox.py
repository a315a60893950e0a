"""Messages in somebody else's transaction: kept until it commits, and appended as its last act.

What waits is kept beside the Connection, and SQLAlchemy's events of that Connection tell what becomes of it: so a
Session, an AsyncSession and a Connection are served alike, and whatever else the application does at commit time is done
by then. Nothing is written, and no lock taken, before the commit; but for delayed messages, which are rows like the
application's own, stored and cancelled at the call.
"""

from __future__ import annotations

import inspect
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Transaction, TwoPhaseTransaction, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.sql.expression import SavepointClause

from sqlmq.database.retrying import roll_back_in_driver
from sqlmq.dialects import TopicGrownError
from sqlmq.errors import SessionError, UnknownTopicError
from sqlmq.operations import produce, staging
from sqlmq.operations.admin import topics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.engine import RootTransaction

    from sqlmq.database.database import Database
    from sqlmq.model.message import DelayedMessage, ProducerResult
    from sqlmq.model.validation import Due
    from sqlmq.operations.produce import KeylessPartitioner, PlacedMessage, RoutedMessage
    from sqlmq.store.topics import Topic

SessionLike: TypeAlias = "Session | scoped_session[Session] | Connection"
"""Whatever stands for a transaction of the application's."""


class Publication:
    """A message that is published when the transaction it was given to commits, or never.

    Made by ``Producer.produce`` with ``session=``.
    """

    __slots__ = ("_partition", "_result", "_topic")

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._result: ProducerResult | None = None

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._topic

    @property
    def partition(self) -> int:
        """The number of the partition it goes to."""
        return self._partition

    @property
    def result(self) -> ProducerResult | None:
        """Its place in the log, once the transaction has committed.

        It stays None for a transaction above READ COMMITTED, which can't know it, and one that was rolled back. It means
        nothing where COMMIT itself has failed: SQLAlchemy tells of that only him who called for it.
        """
        return self._result

    def __repr__(self) -> str:
        where = "not in the log" if self._result is None else f"at offset {self._result.offset}"
        return f"<Publication to {self._topic}/{self._partition}, {where}>"


class Source(NamedTuple):
    """The producer's side of a publication."""

    database: Database
    track_commit: Callable[[RootTransaction, set[int], float], None]
    """Is told of a transaction that is about to commit, the ids of its topics, and when what it staged is due."""
    forget_topic: Callable[[], None]
    """Is called when the topic turns out to be gone."""
    know_topic: Callable[[Topic], None]
    """Is told the topic as it is now, when that turns out to be other than was known."""


class _Waiting(NamedTuple):
    source: Source
    placed: PlacedMessage
    publication: Publication


class _StickyPartitioner:
    """Messages without a key go to one partition in a transaction, so that they stay in order."""

    def __init__(self, turn: KeylessPartitioner) -> None:
        self._turn = turn
        self._number: int | None = None

    def next(self, partitions: int) -> int:
        if self._number is None:
            self._number = self._turn.next(partitions)
        return self._number


class _Outbox:
    """What waits for the transaction of one Connection. It holds no reference to that, whose closing is the user's."""

    def __init__(self, conn: Connection, transaction: RootTransaction) -> None:
        self._start_over(transaction)
        self._hears_twophase = self._hears_commit = False
        # Each costs some 10 microseconds, for each Connection that publishes.
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
        # The savepoints of this transaction, those begun since the outbox is there, each with how much waited by then.
        # Those that were released stay: nobody can roll back to them.
        self._savepoints: list[tuple[str, int]] = []
        self._turns: dict[int, _StickyPartitioner] = {}
        # Of each database, when the first of the delayed messages is due. Those of savepoints that are rolled back
        # stay: somebody looks in vain.
        self._delayed: dict[Database, tuple[Source, float]] = {}

    def begin(self, conn: Connection, transaction: RootTransaction) -> None:
        """Wait for *transaction* from now on, if it is another one."""
        if self._transaction() is not transaction:
            _check_in_time(transaction)
            self._start_over(transaction)
            self._listen(conn, transaction)
        if self._is_committing:
            raise SessionError(_TOO_LATE)

    def add(
        self, source: Source, topic: Topic, routed: Sequence[RoutedMessage], turn: KeylessPartitioner
    ) -> list[Publication]:
        publications = []
        for placed in self._place(topic, routed, turn):
            publication = Publication(topic.name, placed.number)
            self._waiting.append(_Waiting(source, placed, publication))
            publications.append(publication)
        return publications

    def delay(
        self,
        conn: Connection,
        source: Source,
        topic: Topic,
        routed: Sequence[RoutedMessage],
        turn: KeylessPartitioner,
        due: Due,
    ) -> list[DelayedMessage]:
        dialect = source.database.dialect
        placed = self._place(topic, routed, turn)
        try:
            try:
                delayed = staging.delay(conn, dialect, placed, due)
            except TopicGrownError:
                found = topics.find_topic(conn, dialect, topic.name)
                source.know_topic(found)
                delayed = staging.delay(conn, dialect, [one.on(found) for one in placed], due)
        except UnknownTopicError:
            source.forget_topic()
            raise
        due_at = source.database.clock.monotonic() + delayed.wait_seconds
        _, sooner_at = self._delayed.get(source.database, (source, math.inf))
        self._delayed[source.database] = (source, min(due_at, sooner_at))
        return delayed.messages

    def _place(self, topic: Topic, routed: Sequence[RoutedMessage], turn: KeylessPartitioner) -> list[PlacedMessage]:
        return produce.place(topic, routed, self._turns.setdefault(topic.id, _StickyPartitioner(turn)))

    def _before_execute(self, conn: Connection, element: object, *_: object) -> None:
        # The event `savepoint` comes before the savepoint has its name.
        del conn
        if isinstance(element, SavepointClause):
            self._savepoints.append((element.ident, len(self._waiting)))

    def _rollback_savepoint(self, conn: Connection, name: str, _context: object) -> None:
        """What was added since the savepoint began is not to be published; that may be before the outbox was there."""
        del conn
        names = [known for known, _ in self._savepoints]
        index = names.index(name) if name in names else 0
        count = self._savepoints[index][1] if name in names else 0
        del self._savepoints[index:]
        del self._waiting[count:]

    def _publish(self, conn: Connection, *_: object) -> None:
        waiting, self._waiting = self._waiting, []
        transaction = conn.get_transaction()
        if transaction is None or transaction is not self._transaction():
            return
        self._is_committing = True
        # In one order everywhere, so that two transactions can't wait for each other: by schema, then by partition id.
        by_schema: dict[str, list[_Waiting]] = {}
        for one in waiting:
            by_schema.setdefault(one.source.database.schema or "", []).append(one)
        try:
            for schema in sorted(by_schema):
                self._publish_group(conn, transaction, by_schema[schema])
        except BaseException:
            self._forget(conn)
            roll_back_in_driver(conn)
            raise
        delayed, self._delayed = self._delayed, {}
        for source, due_at in delayed.values():
            source.track_commit(transaction, set(), due_at)

    def _publish_group(self, conn: Connection, transaction: RootTransaction, group: list[_Waiting]) -> None:
        dialect = group[0].source.database.dialect
        try:
            try:
                results = produce.publish(conn, dialect, produce.load([one.placed for one in group]))
            except TopicGrownError:
                group = _placed_again(conn, group)
                results = produce.publish(conn, dialect, produce.load([one.placed for one in group]))
        except UnknownTopicError as error:
            for one in group:
                if one.publication.topic == error.topic:
                    one.source.forget_topic()
            raise
        if results is not None:
            for one, result in zip(group, results, strict=True):
                one.publication._result = result  # noqa: SLF001 - set by nobody else
        self._published += group
        for database in {one.source.database for one in group}:
            mine = [one for one in group if one.source.database is database]
            due_at = -math.inf if results is None else math.inf
            mine[0].source.track_commit(transaction, {one.placed.topic.id for one in mine}, due_at)

    def _forget(self, conn: Connection, *_: object) -> None:
        del conn
        for one in self._published:
            one.publication._result = None  # noqa: SLF001 - set by nobody else
        self._waiting.clear()
        self._published.clear()
        self._savepoints.clear()
        self._delayed.clear()


def _placed_again(conn: Connection, group: list[_Waiting]) -> list[_Waiting]:
    """*group*, on the topics as the transaction sees them: one has got more partitions."""
    dialect = group[0].source.database.dialect
    found = {name: topics.find_topic(conn, dialect, name) for name in {one.publication.topic for one in group}}
    again = []
    for one in group:
        topic = found[one.publication.topic]
        one.source.know_topic(topic)
        placed = one.placed.on(topic)
        one.publication._partition = placed.number  # noqa: SLF001 - set by nobody else
        again.append(one._replace(placed=placed))
    return again


_TOO_LATE = "The transaction is being committed, or prepared, and nothing was done in it. Publish before."

_COMMIT, _PREPARE = Transaction.commit.__code__, TwoPhaseTransaction.prepare.__code__


def _check_in_time(transaction: RootTransaction) -> None:
    """Raise SessionError if *transaction*, which has no message yet, is prepared, or is just being committed or prepared.

    Listeners of its end are called then, one of which wants to publish, and ours would come too late. No attribute tells
    of that, so this looks for the call: 4 microseconds for 60 frames, once for each transaction that publishes.
    """
    is_late = isinstance(transaction, TwoPhaseTransaction) and transaction._is_prepared  # noqa: SLF001 - told nowhere else
    frame = inspect.currentframe()
    while frame is not None and not is_late:
        code = frame.f_code
        # Not `in`: the hash of a code is that of all it holds, and costs twenty times as much.
        is_late = (code is _COMMIT or code is _PREPARE) and frame.f_locals.get("self") is transaction
        frame = frame.f_back
    if is_late:
        raise SessionError(_TOO_LATE)


# A Connection is used by one thread at a time, so that no two make its outbox.
_outboxes: WeakKeyDictionary[Connection, _Outbox] = WeakKeyDictionary()


def add(
    session: SessionLike, source: Source, topic: Topic, routed: Iterable[RoutedMessage], turn: KeylessPartitioner
) -> list[Publication]:
    """Have *routed* published when the transaction of *session* commits; it is begun if there is none.

    Raises SessionError if that transaction can't carry them.
    """
    _, outbox = _outbox_of(session, source.database)
    return outbox.add(source, topic, list(routed), turn)


def delay(
    session: SessionLike,
    source: Source,
    topic: Topic,
    routed: Iterable[RoutedMessage],
    turn: KeylessPartitioner,
    due: Due,
) -> list[DelayedMessage]:
    """Store *routed* in the transaction of *session*, now, until they are *due*; else as ``add``.

    Raises UnknownTopicError if the topic was deleted, and SQLAlchemy's errors for those of the database.
    """
    conn, outbox = _outbox_of(session, source.database)
    with _without_parameters():
        return outbox.delay(conn, source, topic, list(routed), turn, due)


def cancel(session: SessionLike, database: Database, ids: Collection[int]) -> set[int]:
    """Delete those of the delayed messages *ids* that still wait, in the transaction of *session*; return their ids."""
    conn, _ = _outbox_of(session, database)
    return staging.cancel(conn, database.dialect, ids)


def _outbox_of(session: SessionLike, database: Database) -> tuple[Connection, _Outbox]:
    """The Connection that carries the transaction of *session*, and what waits for that; it is begun if there is none.

    Raises SessionError if nothing could commit with it.
    """
    conn = connection_of(session, database)
    transaction = conn.get_transaction() or conn.begin()
    if conn.invalidated or not transaction.is_active:
        message = "The transaction of this Connection has failed, and nothing was done in it. First roll it back."
        raise SessionError(message)
    outbox = _outboxes.get(conn)
    if outbox is None:
        _check_in_time(transaction)
        outbox = _outboxes[conn] = _Outbox(conn, transaction)
    outbox.begin(conn, transaction)
    if database not in outbox.checked:
        _check(conn, database)
        outbox.checked.append(database)
    return conn, outbox


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Keep the parameters of statements, which are messages, out of what SQLAlchemy's errors say."""
    try:
        yield
    except DBAPIError as error:
        error.hide_parameters = True
        raise


def connection_of(session: SessionLike, database: Database) -> Connection:
    """The Connection that carries the transaction of *session*; raises SessionError if there is none to be had."""
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session):
        return _connection_of_session(session, database)
    given: object = session
    if not isinstance(given, Connection):
        complaint = (
            f"session must be a Session, a scoped_session or a Connection of SQLAlchemy's, not {type(given).__name__}"
            "; AsyncSession and AsyncConnection are for an AsyncProducer."
        )
        raise TypeError(complaint)
    if given.closed:
        message = "This Connection is closed, and nothing was done in it. Publish before you close it."
        raise SessionError(message)
    return given


def _connection_of_session(session: Session, database: Database) -> Connection:
    try:
        try:
            bind: Engine | Connection | None = session.get_bind()
        except UnboundExecutionError:
            bind = None
        if (bind is None or bind.engine is not database.engine) and database.engine in _binds(session):
            return session.connection(bind_arguments={"bind": database.engine})
        return session.connection()
    except InvalidRequestError as error:
        message = f"This Session can't carry a message, and nothing was done in it: {error}"
        raise SessionError(message) from error


def _binds(session: Session) -> Iterable[object]:
    """The engines that a session was given for some of its classes or tables; before SQLAlchemy 2.1 a private matter."""
    binds: Mapping[object, object] = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return binds.values()


def _check(conn: Connection, database: Database) -> None:
    dialect = database.dialect
    if database.one_connection:
        message = (
            "A database in memory has a single connection, on which the MQ's own transactions would end yours. "
            "Use a file for the database."
        )
        raise SessionError(message)
    if conn.dialect.name != dialect.name or not _is_same_database(conn, database):
        message = (
            f"The session is on another database than the MQ ({database.where}), or finds other tables there, so nothing "
            "could commit with it. If it has several, give session= the right one's Connection, "
            "session.connection(bind_arguments=...)."
        )
        raise SessionError(message)
    if dialect.is_autocommit(conn):
        message = (
            "The session is in AUTOCOMMIT, where each statement commits by itself, so nothing could commit with it. "
            "Give it another isolation level, or leave session= out."
        )
        raise SessionError(message)


def _is_same_database(conn: Connection, database: Database) -> bool:
    if conn.engine.pool is database.engine.pool:
        return True
    return any(
        database.dialect.identity(conn, fresh=fresh) == database.identity(fresh=fresh) for fresh in (False, True)
    )
