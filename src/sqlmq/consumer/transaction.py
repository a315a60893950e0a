"""`consumer.transaction()` for threads: messages, the application's effects and the group's position in one transaction."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Self, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from sqlmq.errors import DatabaseBusyError, DatabaseUnavailableError, ForkedError, OutcomeUnknownError, SessionError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.timing import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.transaction_scope import TransactionScope
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.store.groups import Group

    SessionSource: TypeAlias = Session | scoped_session[Session] | Connection | Callable[[], Session]
    """The session of a transaction, or what makes one, for example a sessionmaker."""

log = logging.getLogger("sqlmq.consumer")


class Transaction:
    """Messages of one partition, and the transaction in which they are handled. Made by ``consumer.transaction()``.

    Used once, as ``with consumer.transaction() as tx:``, by one thread. Iteration gives the messages.
    """

    def __init__(
        self,
        core: ConsumerCore,
        in_use: object,
        max_messages: int,
        timeout: float | None,
        source: SessionSource | None,
    ) -> None:
        self._core = core
        self._in_use = in_use
        self._context = core.transactions
        self._database = core.database
        self._clock = core.clock
        self._max_messages = max_messages
        self._timeout = timeout
        self._source = source
        self._pid = os.getpid()
        self._is_used = False
        self._block: TransactionScope | None = None
        self._ending = contextlib.ExitStack()
        _check_source(source)

    @property
    def messages(self) -> list[ReceivedMessage]:
        """The messages of one partition, in order; empty if none came in time."""
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

    def __iter__(self) -> Iterator[ReceivedMessage]:
        return iter(self.messages)

    def __enter__(self) -> Self:
        if self._is_used:
            message = "A transaction is used once: call consumer.transaction() for another one."
            raise SessionError(message)
        self._is_used = True
        deadline = Deadline.after(self._timeout, self._clock.monotonic())
        with contextlib.ExitStack() as stack:
            given = self._open(stack)
            attempt = 0
            while True:
                self._core.check_usable()
                seen = self._core.wakeups.count
                if self._attempt(given, deadline, stack):
                    break
                is_woken = self._core.wait(attempt, deadline, seen)
                attempt = 0 if is_woken else attempt + 1
            self._ending = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            # Kept for ever: a dropped connection is reset, and this one belongs to the parent process.
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
            if self._context.ended(block):
                self._core.wake_topic()

    def __repr__(self) -> str:
        state = "not begun" if self._block is None else "ended" if self._block.is_done else "begun"
        return f"<Transaction of a consumer of {self._core.topic!r} ({state})>"

    @property
    def _entered(self) -> TransactionScope:
        if self._block is None:
            message = "The transaction has not begun. Use it as `with consumer.transaction() as tx:`."
            raise SessionError(message)
        return self._block

    def _open(self, stack: contextlib.ExitStack) -> Session | Connection | None:
        """The application's session or connection, checked. *stack* closes a session that is made here."""
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
        self._context.check_free(given)
        return given

    def _attempt(self, given: Session | Connection | None, deadline: Deadline, ending: contextlib.ExitStack) -> bool:
        """Take messages, or begin without any after the deadline; return whether the block may begin."""
        is_last = deadline.passed(self._clock.monotonic())
        try:
            group = self._core.release_for_transaction(threading.current_thread())
            if given is not None and not self._context.is_known(given):
                ours = self._context.own_identity(group)
                with self._database.reserve_writer():
                    self._context.check_identity(group, given, ours)
            if not self._context.is_worthwhile(group) and not is_last:
                return False
            return self._begin(group, given, ending, is_last=is_last)
        except (DatabaseUnavailableError, DatabaseBusyError, OutcomeUnknownError) as error:
            if is_last:
                raise
            topic = self._core.topic
            fields = log_fields("retry", topic=topic, error=error)
            log.warning("A transaction on %r could not begin and is tried again: %s", topic, error, extra=fields)
            return False

    def _begin(
        self, group: Group, given: Session | Connection | None, ending: contextlib.ExitStack, *, is_last: bool
    ) -> bool:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._database.reserve_writer())
            target = stack.enter_context(self._database.connect()) if given is None else given
            self._block = self._context.attempt(group, target, self._max_messages, is_last=is_last)
            if self._block is None:
                return False
            stack.callback(self._block.roll_back)
            ending.push(stack.pop_all())
        return True


_ABANDONED: list[Transaction] = []


def _check_source(source: object) -> None:
    if source is None or isinstance(source, Session | scoped_session | Connection) or callable(source):
        return
    message = (
        "session= takes a sessionmaker, a Session, a scoped_session or a Connection of SQLAlchemy, not "
        f"{type(source).__name__}."
    )
    raise TypeError(message)
