"""Calling a handler in the worker's own thread, as it is or in a transaction."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from sqlmq.consumer.transaction_scope import TransactionScope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.message import Message


class ExecutionStep(NamedTuple):
    """What there is to do with one attempt, for whoever calls the handler."""

    batches: Iterator[list[Message]]
    """What to give to the handler, one after the other; asking for the next one says that the one before is done."""
    settle: Callable[[Connection], None]
    """To be called in the handler's transaction, as its last act."""
    committed: Callable[[], None]
    """To be called when that has committed."""


class NotBegunError(Exception):
    """The handler was not called: what it needs could not be had. The cause tells why."""


class Executor(Protocol):
    """Calls the handler: in this thread or in an event loop, in a transaction or in none."""

    is_settling: bool
    """Whether it calls ``settle`` and ``settled`` for each batch."""

    def __call__(self, step: ExecutionStep) -> None:
        """Give each batch to the handler; raise what that raises, or NotBegunError."""

    def abandon(self, worker: Receiver) -> None:
        """Do what can be done to end the handler that *worker* waits for."""


class DirectExecutor:
    """Calls a handler with one argument: a message, or a list of them."""

    is_settling = False

    def __init__(self, handler: Callable[..., object], *, in_batches: bool) -> None:
        self._handler = handler
        self._in_batches = in_batches

    def __call__(self, step: ExecutionStep) -> None:
        """Give each batch to the handler."""
        for batch in step.batches:
            self._handler(batch if self._in_batches else batch[0])

    def abandon(self, worker: Receiver) -> None:
        """A thread can't be ended from outside."""


class TransactionalExecutor:
    """Calls a handler with a session too, whose changes commit with the group's position, or not at all."""

    is_settling = True

    def __init__(
        self,
        handler: Callable[..., object],
        core: ConsumerCore,
        make_session: Callable[[], Session] | None,
        *,
        in_batches: bool,
    ) -> None:
        self._handler = handler
        self._core = core
        self._context = core.transactions
        self._make_session = make_session
        self._in_batches = in_batches

    def __call__(self, step: ExecutionStep) -> None:
        """Give each batch to the handler."""
        for batch in step.batches:
            self._transact(step, batch)

    def abandon(self, worker: Receiver) -> None:
        """A thread can't be ended from outside; what it does is rolled back when it wants to commit."""

    def _transact(self, step: ExecutionStep, batch: list[Message]) -> None:
        with contextlib.ExitStack() as stack:
            try:
                block = self._begin(stack)
            except Exception as error:
                raise NotBegunError from error
            self._handler(batch if self._in_batches else batch[0], block.session)
            block.finish(step.settle)
            block.commit()
        step.committed()

    def _begin(self, stack: contextlib.ExitStack) -> TransactionScope:
        database = self._context.database
        given = None if self._make_session is None else self._open(stack, self._make_session)
        stack.enter_context(database.block())
        target = stack.enter_context(database.connect()) if given is None else given
        block = TransactionScope(self._context, self._core.group)
        stack.callback(block.roll_back)
        block.begin(target)
        block.watch()
        return block

    def _open(self, stack: contextlib.ExitStack, make_session: Callable[[], Session]) -> Session:
        session: object = make_session()
        if not isinstance(session, Session):
            message = f"session= has to make a sqlalchemy.orm.Session; it made {type(session).__name__}."
            raise TypeError(message)
        stack.callback(session.close)
        self._context.check_free(session)
        if not self._context.is_known(session):
            ours = self._context.own_identity(self._core.group)
            with self._context.database.block():
                self._context.check_identity(self._core.group, session, ours)
        return session


def direct_executor(
    core: ConsumerCore, handler: Callable[..., object], session: object, *, in_batches: bool, transaction: bool
) -> Executor:
    """The executor that calls *handler* in the worker's thread. Raises TypeError or ValueError for a wrong *session*."""
    handler = observed(handler, core.database.observer, core.group.name)
    if transaction:
        return TransactionalExecutor(handler, core, session_maker(session), in_batches=in_batches)
    check_no_session(session)
    return DirectExecutor(handler, in_batches=in_batches)


def observed(handler: Callable[..., object], observer: Observer | None, group: str) -> Callable[..., object]:
    """*handler*, with *observer* around each of its calls, if there is one."""
    if observer is None:
        return handler

    def call(given: Message | list[Message], *session: Session) -> object:
        with observer.handle(group, given if isinstance(given, list) else [given]):
            return handler(given, *session)

    return call


def session_maker(source: object) -> Callable[[], Session] | None:
    """What makes a session for each transaction; *source* is None for one of ours. Raises TypeError.

    A single Session or Connection is refused: workers run in threads of their own, and may not share it.
    """
    if source is None or (callable(source) and not isinstance(source, Session | Connection | scoped_session)):
        return source
    if isinstance(source, scoped_session):
        return source
    message = f"session= of run() takes a sessionmaker or a scoped_session, not {type(source).__name__}."
    raise TypeError(message)


def check_handler(handler: object) -> None:
    """Raise TypeError unless *handler* can be called here."""
    if not callable(handler):
        message = f"A handler is a function, not {type(handler).__name__}."
        raise TypeError(message)
    if is_awaited(handler):
        message = "This handler is a coroutine function: run it with the consumer of an AsyncMQ."
        raise TypeError(message)


def is_awaited(handler: object) -> bool:
    """Whether what *handler* returns has to be awaited."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - what it is, not whether


def check_no_session(source: object) -> None:
    """Raise ValueError for a session where there is no transaction."""
    if source is not None:
        message = "session= is for transaction=True; without that, nothing would commit what the session holds."
        raise ValueError(message)
