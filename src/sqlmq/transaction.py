"""Messages, the application's effects, and the group's position in one transaction.

``Block`` has the steps, each a few statements on a connection that is given, so that they can run in a thread or, through
SQLAlchemy's ``run_sync``, in an event loop. ``Transaction`` is what a thread uses: it waits, tries again, and ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlmq.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    ForkedError,
    OutcomeUnknownError,
    TransactionError,
)
from sqlmq.flows import transact
from sqlmq.flows.transact import ENDED, Limits
from sqlmq.store import holds
from sqlmq.timing import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from sqlalchemy import Engine, RootTransaction
    from sqlalchemy.orm import SessionTransaction

    from sqlmq.database import Database
    from sqlmq.message import Message
    from sqlmq.options import Options
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic

    SessionSource: TypeAlias = Session | scoped_session[Session] | Connection | Callable[[], Session]

log = logging.getLogger(__name__)


class Host(NamedTuple):
    """What a transaction needs of its consumer."""

    wakeups: Callable[[], int]
    """Check that it can be used; return how often it was woken."""
    prepare: Callable[[], Group]
    """Give back what was claimed by lease, and return its group."""
    wait: Callable[[int, Deadline, int], bool]
    """Wait after so many attempts that found nothing, until woken once more than so often; return whether."""
    wake: Callable[[], None]
    """Wake the consumers of this process that wait."""


class Transactions:
    """What the transactions of one consumer have in common. May be shared by threads."""

    def __init__(self, database: Database, topic: Topic, options: Options) -> None:
        self.database = database
        self.topic = topic
        self.options = options
        self._lock = threading.Lock()
        self._rolled_back: list[int] = []
        self._known: weakref.WeakSet[Engine] = weakref.WeakSet((database.engine,))

    @property
    def last(self) -> Sequence[int]:
        """The partitions whose turn comes after that of the others, by id: those that were rolled back."""
        with self._lock:
            return tuple(self._rolled_back)

    def committed(self, partition_id: int) -> None:
        """A transaction was committed: the partition that has waited longest for another try gets its turn again."""
        with self._lock:
            if partition_id in self._rolled_back:
                self._rolled_back.remove(partition_id)
            elif self._rolled_back:
                self._rolled_back.pop(0)

    def rolled_back(self, partition_id: int) -> None:
        """A transaction was rolled back: the other partitions are served before this one is tried again."""
        with self._lock:
            if partition_id in self._rolled_back:
                self._rolled_back.remove(partition_id)
            self._rolled_back.append(partition_id)

    def is_known(self, engine: Engine) -> bool:
        """Whether *engine* is known to lead to the database of the MQ."""
        with self._lock:
            return engine in self._known

    def know(self, engine: Engine) -> None:
        """Remember that *engine* leads to the database of the MQ."""
        with self._lock:
            self._known.add(engine)


class Block:
    """One transaction in its steps: ``begin``, ``take``, ``finish``, ``commit``; ``undo`` at any point.

    A Session that is given owns the transaction, as always. On a Connection, ours or one that is given, we begin it, and
    the Session bound to it can't commit it: its own ``commit`` only flushes, its ``rollback`` rolls all back.
    """

    def __init__(self, shared: Transactions, group: Group) -> None:
        self._shared = shared
        self._database = shared.database
        self._group = group
        self._given: Session | Connection | None = None
        self._owner: SessionTransaction | None = None
        self._root: RootTransaction | None = None
        self.is_done = False
        self.taken: transact.Taken | None = None
        self.session: Session
        self.connection: Connection

    def begin(self, given: Session | Connection) -> None:
        """Begin a transaction on what is *given*, which is in none, as one that will write."""
        self._given = given
        with self._database.translating():
            if isinstance(given, Session):
                self.session = given
                self.connection = given.connection()
                self._owner = given.get_transaction()
            else:
                self.session = Session(bind=given, join_transaction_mode="rollback_only")
                self.connection = given
                given.begin()
            self._root = self.connection.get_transaction()
            if self._database.dialect.is_autocommit(self.connection):
                message = "In AUTOCOMMIT there is no transaction to take part in. Use READ COMMITTED."
                raise TransactionError(message)
            self._database.dialect.begin(self.connection)

    def find_identity(self) -> object:
        """What the database of the transaction says the group is; None if it has none like that."""
        return holds.identity(self.connection, self._database.dialect, self._group)

    def take(self, max_messages: int, last: Sequence[int]) -> bool:
        """Lock a partition and read from it; return whether there is something."""
        options = self._shared.options
        limits = Limits(max_messages, options.prefetch_bytes, options.max_poll_seconds, options.lease_seconds)
        with self._database.translating():
            self.taken = transact.take(
                self.connection, self._database.dialect, self._shared.topic, self._group, limits, last
            )
        return self.taken is not None

    def finish(self) -> None:
        """Send what the session has kept, and move the group on: everything but COMMIT.

        Raises TransactionError or FencedError if the transaction, or the partition, is not what it was.
        """
        self._check_same()
        # The application's own statements, whose errors are SQLAlchemy's.
        if self._owner is None:
            self.session.commit()
        else:
            while (nested := self.session.get_nested_transaction()) is not None:
                nested.commit()
            self.session.flush()
        self._check_same()
        with self._database.translating():
            while (savepoint := self.connection.get_nested_transaction()) is not None:
                savepoint.commit()
            if self.taken is not None:
                transact.finish(self.connection, self._database.dialect, self._shared.topic, self._group, self.taken)

    def commit(self) -> None:
        """Commit. Raises OutcomeUnknownError if the connection breaks meanwhile."""
        with self._database.translating(committing=True):
            (self._owner or self._root_transaction).commit()
        self.is_done = True

    def undo(self) -> None:
        """Roll back, unless it was committed, and leave what was given as it was."""
        if self.is_done or self._given is None:
            return
        try:
            if self._owner is None and self._root is not None:
                self.session.close()
            # What was begun, or whatever the application has begun since.
            if self._given.in_transaction():
                self._given.rollback()
        except Exception as error:  # noqa: BLE001 - why the block failed says more, and the server rolls back anyway
            log.debug("Rolling back failed: %s", error)

    @property
    def _root_transaction(self) -> RootTransaction:
        if self._root is None:
            raise TransactionError(ENDED)
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
            raise TransactionError(ENDED)


class Transaction:
    """Messages of one partition, and the transaction in which they are done with. Made by ``consumer.transaction()``.

    Used once, as ``with consumer.transaction() as tx:``, by one thread. Iterating over it gives the messages.
    """

    def __init__(
        self,
        shared: Transactions,
        host: Host,
        max_messages: int,
        timeout: float | None,
        source: SessionSource | None,
    ) -> None:
        self._shared = shared
        self._database = shared.database
        self._host = host
        self._max_messages = max_messages
        self._timeout = timeout
        self._source = source
        self._pid = os.getpid()
        self._is_used = False
        self._block: Block | None = None
        self._ending = contextlib.ExitStack()
        _check_source(source)

    @property
    def messages(self) -> list[Message]:
        """The messages, of one partition, in order; none if none came in time."""
        taken = self._entered.taken
        return [] if taken is None else taken.messages

    @property
    def session(self) -> Session:
        """The session whose changes commit with the group's position."""
        return self._entered.session

    @property
    def connection(self) -> Connection:
        """The connection of ``session``, in the same transaction."""
        return self._entered.connection

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __enter__(self) -> Self:
        if self._is_used:
            message = "A transaction is used once: call consumer.transaction() for another one."
            raise TransactionError(message)
        self._is_used = True
        deadline = Deadline.after(self._timeout, time.monotonic())
        with contextlib.ExitStack() as stack:
            given = self._open(stack)
            attempt = 0
            while True:
                seen = self._host.wakeups()
                if self._attempt(given, deadline, stack):
                    break
                is_woken = self._host.wait(attempt, deadline, seen)
                attempt = 0 if is_woken else attempt + 1
            self._ending = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            # For ever: a connection that is dropped is reset, and this one is the parent's.
            _ABANDONED.append(self)
            what = "This transaction"
            raise ForkedError(what)
        block = self._entered
        try:
            with self._ending:
                if error is None:
                    block.finish()
                    block.commit()
        finally:
            if block.taken is not None and block.is_done:
                self._shared.committed(block.taken.claim.partition_id)
            elif block.taken is not None:
                self._shared.rolled_back(block.taken.claim.partition_id)
                self._host.wake()

    def __repr__(self) -> str:
        state = "not begun" if self._block is None else "ended" if self._block.is_done else "begun"
        return f"<Transaction of a consumer of {self._shared.topic.name!r} ({state})>"

    @property
    def _entered(self) -> Block:
        if self._block is None:
            message = "The transaction has not begun. Use it as `with consumer.transaction() as tx:`."
            raise TransactionError(message)
        return self._block

    def _open(self, stack: contextlib.ExitStack) -> Session | Connection | None:
        """What the application gave to work with, checked; a session that is made now is closed by *stack*."""
        source = self._source
        if source is None:
            return None
        given: Session | Connection
        if isinstance(source, scoped_session):
            given = source()
        elif isinstance(source, Session | Connection):
            given = source
        else:
            made: object = source()
            if not isinstance(made, Session):
                message = f"session= has to make a sqlalchemy.orm.Session; it made {type(made).__name__}."
                raise TypeError(message)
            stack.callback(made.close)
            given = made
        _check_free(given)
        if _engine(given).dialect.name != self._database.dialect.name:
            raise TransactionError(_OTHER_DATABASE)
        return given

    def _check_database(self, group: Group, given: Session | Connection | None) -> None:
        """Raise TransactionError unless what is *given* leads to the group's own tables; asked once for each engine."""
        if given is None or self._shared.is_known(_engine(given)):
            return
        ours = self._database.read(lambda conn: holds.identity(conn, self._database.dialect, group))
        block = Block(self._shared, group)
        with self._database.block(), contextlib.ExitStack() as stack:
            stack.callback(block.undo)
            try:
                block.begin(given)
                with self._database.translating():
                    theirs = block.find_identity()
            except (DatabaseUnavailableError, DatabaseBusyError):
                raise
            except DatabaseError as error:
                raise TransactionError(_OTHER_DATABASE) from error.__cause__
        if theirs is None or theirs != ours:
            raise TransactionError(_OTHER_DATABASE)
        self._shared.know(_engine(given))

    def _attempt(self, given: Session | Connection | None, deadline: Deadline, ending: contextlib.ExitStack) -> bool:
        """Take messages, or begin without any if it is time; return whether the block may begin."""
        is_last = deadline.passed(time.monotonic())
        try:
            group = self._host.prepare()
            self._check_database(group, given)
            if not self._is_worthwhile(group) and not is_last:
                return False
            return self._begin(group, given, ending, is_last=is_last)
        except (DatabaseUnavailableError, DatabaseBusyError, OutcomeUnknownError) as error:
            if is_last:
                raise
            log.warning("A transaction on %r could not begin and is tried again: %s", self._shared.topic.name, error)
            return False

    def _is_worthwhile(self, group: Group) -> bool:
        """Whether there seems to be something to take; asked first, because a transaction that writes has its price."""
        database, topic = self._database, self._shared.topic
        seen = database.read(lambda conn: transact.look(conn, database.dialect, topic, group))
        if not seen.has_dead_owners:
            return seen.has_messages
        database.write(lambda conn: transact.free_dead(conn, database.dialect, group))
        return True

    def _begin(
        self, group: Group, given: Session | Connection | None, ending: contextlib.ExitStack, *, is_last: bool
    ) -> bool:
        block = Block(self._shared, group)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._database.block())
            target = stack.enter_context(self._database.connect()) if given is None else given
            stack.callback(block.undo)
            block.begin(target)
            if not block.take(self._max_messages, self._shared.last) and not is_last:
                return False
            self._block = block
            ending.push(stack.pop_all())
        return True


_ABANDONED: list[Transaction] = []

_OTHER_DATABASE = (
    "session= leads to another database than the MQ, or to other tables. The group's position can only commit together "
    "with effects in the MQ's own database: give a session on that one."
)


def _check_source(source: object) -> None:
    if source is None or isinstance(source, Session | scoped_session | Connection) or callable(source):
        return
    message = (
        "session= takes a sessionmaker, a Session, a scoped_session or a Connection of SQLAlchemy, not "
        f"{type(source).__name__}."
    )
    raise TypeError(message)


def _check_free(given: Session | Connection) -> None:
    if given.in_transaction():
        message = (
            f"The {type(given).__name__} given as session= is in a transaction already, which began before the group's "
            "position was locked. Commit or roll back first, or give a sessionmaker."
        )
        raise TransactionError(message)


def _engine(given: Session | Connection) -> Engine:
    if isinstance(given, Connection):
        return given.engine
    try:
        bind = given.get_bind()
    except UnboundExecutionError as error:
        message = "The session given as session= is bound to no database. Make it with bind=, or a sessionmaker."
        raise TransactionError(message) from error
    if isinstance(bind, Connection):
        _check_free(bind)
        return bind.engine
    return bind
