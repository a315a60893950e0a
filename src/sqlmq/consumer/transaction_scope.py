"""The steps of a transaction that holds messages, the application's effects and the group's position.

Each is a few statements on a connection that is given, so that they can run in a thread or, through SQLAlchemy's
``run_sync``, in an event loop. The callers wait, retry and end the transaction.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session

from sqlmq.database.retrying import roll_back_in_driver
from sqlmq.errors import DatabaseError, DatabaseUnavailableError, SessionError, TransactionEndedError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.hooks.log_events import log_fields
from sqlmq.hooks.log_hold import LogHold
from sqlmq.operations import transaction
from sqlmq.operations.transaction import BatchLimits
from sqlmq.schema import own_names
from sqlmq.store import claims

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine, RootTransaction
    from sqlalchemy.orm import SessionTransaction
    from sqlalchemy.orm.session import JoinTransactionMode

    from sqlmq.database.database import Database
    from sqlmq.model.config import MQConfig, OnEvicted
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic

log = logging.getLogger("sqlmq.consumer")

JOIN_MODE: JoinTransactionMode = "rollback_only"
"""How a session joins the transaction of its connection: its commit only flushes, its rollback rolls everything back."""


class TransactionContext:
    """What the transactions of one consumer share: the database, and which partitions were rolled back. Thread-safe."""

    def __init__(self, database: Database, topic: Topic, options: MQConfig, on_evicted: OnEvicted) -> None:
        self.database = database
        self.topic = topic
        self.options = options
        self.on_evicted = on_evicted
        self._lock = threading.RLock()  # a finalizer may end a transaction in the middle of these steps
        self._rolled_back: list[int] = []
        self._known: weakref.WeakSet[Engine] = weakref.WeakSet((database.engine,))

    @property
    def last(self) -> Sequence[int]:
        """Ids of the partitions to take last, because a transaction on them was rolled back."""
        with self._lock:
            return tuple(self._rolled_back)

    def is_known(self, given: Session | Connection) -> bool:
        """Whether *given* is known to use the database of the MQ."""
        with self._lock:
            return _engine(given) in self._known

    def own_identity(self, group: Group) -> object:
        """What distinguishes *group* from all groups in other databases."""
        return self.database.read(claims.identity, group)

    def check_identity(self, group: Group, given: Session | Connection, ours: object) -> None:
        """Raise SessionError unless what is *given* uses the group's own tables; remember its engine if it does."""
        block = TransactionScope(self, group)
        try:
            block.begin(given)
            with block.own_statements():
                self.database.dialect.check_session(block.connection)
                theirs = claims.identity(block.connection, self.database.dialect, group)
        except DatabaseError as error:
            if type(error) is not DatabaseError:
                raise  # has a name of its own: it says nothing of the tables
            raise SessionError(_OTHER_DATABASE) from error.__cause__
        finally:
            block.roll_back()
        if theirs is None or theirs != ours:
            raise SessionError(_OTHER_DATABASE)
        self.database.dialect.release_invalidated(_engine(given))
        with self._lock:
            self._known.add(_engine(given))

    def check_free(self, given: Session | Connection) -> None:
        """Raise SessionError unless what is *given* is in no transaction and on the same kind of database."""
        _check_free(given)
        if _engine(given).dialect.name != self.database.dialect.name:
            raise SessionError(_OTHER_DATABASE)

    def is_worthwhile(self, group: Group) -> bool:
        """Whether there may be messages to take. Asked first, because a transaction that writes costs more."""
        database = self.database
        seen = database.read(transaction.find_free, self.topic, group)
        if not seen.has_dead_owners:
            return seen.has_messages
        database.write(transaction.free_dead, group)
        return True

    def attempt(
        self,
        group: Group,
        given: Session | Connection,
        max_messages: int,
        *,
        is_last: bool,
        bound: Session | None = None,
    ) -> TransactionScope | None:
        """Begin a transaction on what is *given* and take messages; None, and no transaction, if there were none.

        The one that *is_last* is begun without any, too. *bound*, if not made here, is a session on a *given* connection
        that can't commit it.
        """
        block = TransactionScope(self, group)
        try:
            block.begin(given, bound)
            if block.take_messages(max_messages, self.last) or is_last:
                return block
        except BaseException:
            block.roll_back()
            raise
        block.roll_back()
        return None

    def ended(self, block: TransactionScope) -> bool:
        """Note how *block* ended; return whether its messages are to be delivered again."""
        if block.taken is None:
            return False
        if block.is_done:
            self._committed(block.taken.claim.partition_id)
        else:
            self._rolled_back_once(block.taken.claim.partition_id)
        return not block.is_done

    def _committed(self, partition_id: int) -> None:
        """Restore the turn of the partition that was rolled back longest ago: a transaction was committed."""
        with self._lock:
            if partition_id in self._rolled_back:
                self._rolled_back.remove(partition_id)
            elif self._rolled_back:
                self._rolled_back.pop(0)

    def _rolled_back_once(self, partition_id: int) -> None:
        """Move the partition behind the others: a transaction on it was rolled back."""
        with self._lock:
            if partition_id in self._rolled_back:
                self._rolled_back.remove(partition_id)
            self._rolled_back.append(partition_id)


class TransactionScope:
    """One transaction in its steps: ``begin``, ``take``, ``finish``, ``commit``; ``undo`` at any point.

    A given Session owns the transaction, as always. On a Connection, given or our own, the scope begins it. The Session bound
    to that Connection can't commit: its ``commit`` only flushes, its ``rollback`` rolls everything back.
    """

    def __init__(self, shared: TransactionContext, group: Group) -> None:
        self._shared = shared
        self._database = shared.database
        self._group = group
        self._given: Session | Connection | None = None
        self._owner: SessionTransaction | None = None
        self._root: RootTransaction | None = None
        self.is_done = False
        self.taken: transaction.TransactionBatch | None = None
        self._guard: transaction.Guard | None = None
        self._awaiting = contextlib.ExitStack()
        self.session: Session
        self.connection: Connection

    def begin(self, given: Session | Connection, bound: Session | None = None) -> None:
        """Begin a transaction on what is *given*, which is in none, as a transaction that will write.

        *bound* is the session for a *given* connection; by default the scope makes it.
        """
        self._given = given
        with self._database.translating():
            if isinstance(given, Session):
                self.session = given
                if not given.in_transaction():
                    given.begin()
                self.connection = given.connection()
                self._owner = given.get_transaction()
            else:
                self.session = bound or Session(bind=given, join_transaction_mode=JOIN_MODE)
                self.connection = given
                given.begin()
            self._root = self.connection.get_transaction()
            # As long as the server would wait for us. The application's own statements may take long.
            limit = self._shared.options.max_poll_seconds
            self._awaiting.enter_context(self._database.limit_silence(self.connection, limit))
            if self._database.dialect.is_autocommit(self.connection):
                message = "In AUTOCOMMIT there is no transaction to take part in. Use READ COMMITTED."
                raise SessionError(message)
            failpoint("begin.before")
            self._database.dialect.begin(self.connection)
            failpoint("begin.after")

    def take_messages(self, max_messages: int, last: Sequence[int]) -> bool:
        """Lock a partition and read from it; return whether there are messages. Partitions in *last* come last."""
        options = self._shared.options
        limits = BatchLimits(
            max_messages,
            options.prefetch_bytes,
            options.max_poll_seconds,
            options.lease_seconds,
            self._shared.on_evicted,
        )
        with self.own_statements():
            self.taken = transaction.lock_and_fetch(
                self.connection, self._database.dialect, self._shared.topic, self._group, limits, last
            )
        if self.taken is not None and self.taken.evicted is not None:
            log.warning(
                "%s It goes on at offset %d.",
                self.taken.evicted.fact,
                self.taken.evicted.end,
                extra=log_fields(
                    "evicted passed over", topic=self._shared.topic.name, end_offset=self.taken.evicted.end
                ),
            )
        return self.taken is not None

    @contextlib.contextmanager
    def own_statements(self) -> Iterator[None]:
        """Run statements of ours in the transaction, for a block: by our names, with our errors, and a limited silence."""
        with self._database.translating(), self._database.limit_silence(self.connection), own_names(self.connection):
            yield

    def watch(self) -> None:
        """Take nothing, but detect in ``finish`` whether the transaction was ended in between."""
        with self.own_statements():
            lease_seconds = self._shared.options.lease_seconds
            self._guard = transaction.enter(self.connection, self._database.dialect, vanished_seconds=lease_seconds)

    def finish(self, settle: Callable[[Connection], None] | None = None) -> None:
        """Flush the session and move the group's position: everything but COMMIT.

        *settle* does that where nothing was taken here. Raises TransactionEndedError or FencedError if the transaction, or
        the partition, is not what it was.
        """
        failpoint("effect.after")
        self._check_same()
        # The application's own statements, whose errors are SQLAlchemy's.
        if self._owner is None:
            self.session.commit()
        else:
            while (nested := self.session.get_nested_transaction()) is not None:
                nested.commit()
            self.session.flush()
        self._check_same()
        with self.own_statements():
            while (savepoint := self.connection.get_nested_transaction()) is not None:
                savepoint.commit()
            if self.taken is not None:
                transaction.finish(self.connection, self._database.dialect, self._shared.topic, self._group, self.taken)
            if settle is not None:
                settle(self.connection)
            if self._guard is not None:
                transaction.leave(self.connection, self._database.dialect, self._guard)

    def commit(self) -> None:
        """Commit. Raises OutcomeUnknownError if the connection breaks meanwhile."""
        failpoint("commit.before")
        # The outbox locks partitions now, and a log handler may send to them. In an event loop, other tasks log as well.
        hold = contextlib.nullcontext() if self.connection.dialect.is_async else LogHold()
        with (
            hold,
            self._database.translating(committing=True),
            self._database.limit_silence(self.connection, committing=True),
        ):
            try:
                (self._owner or self._root_transaction).commit()
            except BaseException:
                roll_back_in_driver(self.connection)
                raise
            self.is_done = True
        failpoint("commit.after")

    def roll_back(self) -> None:
        """Roll back unless it was committed, and leave the given session or connection as it was."""
        self._awaiting.close()
        if self.is_done or self._given is None:
            return
        try:
            if self._owner is None and self._root is not None:
                self.session.close()
            # The transaction of this scope, one that the application has begun since, or one whose commit failed.
            if self._given.get_transaction() is not None:
                self._given.rollback()
        except Exception as error:  # noqa: BLE001 - the error that ended the block says more, and the server rolls back anyway
            log.debug("Rolling back failed: %s", error, extra=log_fields("rollback failed", error=error))

    @property
    def _root_transaction(self) -> RootTransaction:
        if self._root is None:
            raise TransactionEndedError
        return self._root

    def _check_same(self) -> None:
        if self.connection.invalidated:
            message = f"{self._database.where}: the connection was lost inside the block. Nothing was written."
            raise DatabaseUnavailableError(message)
        root = self._root_transaction
        is_same = root.is_active and self.connection.get_transaction() is root
        if self._owner is not None:
            is_same = is_same and self._owner.is_active and self.session.get_transaction() is self._owner
        if not is_same:
            raise TransactionEndedError


_OTHER_DATABASE = (
    "session= leads to another database than the MQ, or to other tables. The group's position can only commit together "
    "with effects in the MQ's own database: give a session on that one."
)


def _check_free(given: Session | Connection) -> None:
    if given.in_transaction():
        message = (
            f"The {type(given).__name__} given as session= is in a transaction already, which began before the group's "
            "position was locked. Commit or roll back first, or give a sessionmaker."
        )
        raise SessionError(message)


def _engine(given: Session | Connection) -> Engine:
    if isinstance(given, Connection):
        return given.engine
    try:
        bind = given.get_bind()
    except UnboundExecutionError as error:
        message = "The session given as session= is bound to no database. Make it with bind=, or a sessionmaker."
        raise SessionError(message) from error
    if isinstance(bind, Connection):
        _check_free(bind)
        return bind.engine
    return bind
