"""Calling a handler in the worker's own thread, with or without a transaction, and what may come of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from sqlmq.consumer.transaction_scope import TransactionScope
from sqlmq.consumer.worker.results import ResultCheck
from sqlmq.errors import DatabaseBusyError, DatabaseUnavailableError, FencedError, OutcomeUnknownError
from sqlmq.hooks.observer import ObservedHandling

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.config import RunConfig
    from sqlmq.consumer.worker.results import Finisher
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.message import ReceivedMessage

TRANSIENT = (DatabaseUnavailableError, DatabaseBusyError, OutcomeUnknownError)
"""Errors that may be over at the next attempt."""


class Execution(Protocol):
    """One attempt, for the executor that calls the handler."""

    @property
    def has_begun(self) -> bool:
        """Whether the handler has got any messages."""

    @property
    def is_settling(self) -> bool:
        """Whether the handler has returned, and its transaction is being committed."""

    def next_batch(self) -> list[ReceivedMessage]:
        """The next messages for the handler; empty at the end. The messages before are done."""

    def settle(self, conn: Connection) -> None:
        """Commit the group's position in the handler's transaction, as the last statement before its COMMIT."""

    def committed(self) -> None:
        """Note that this transaction has committed."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler has returned for all messages."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler has raised *error*, or returned unfinished work: the attempt counts."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The handler was not called, because its transaction could not begin: the attempt does not count."""

    cause: Exception


@dataclass(frozen=True, slots=True)
class NotCommitted:
    """The handler has returned, but its transaction was not committed, or it is unknown whether it was."""

    cause: Exception


@dataclass(frozen=True, slots=True)
class Aborted:
    """*cause* ends the run: the attempt does not count."""

    cause: BaseException


Outcome: TypeAlias = Succeeded | Failed | NotStarted | NotCommitted | Aborted


def outcome_of(error: BaseException, execution: Execution) -> Outcome:
    """What an *error* that ended *execution* says about the attempt."""
    if ends_run(error):
        return Aborted(error)
    if execution.is_settling and issubclass(type(error), (FencedError, *TRANSIENT)):
        return NotCommitted(cast("Exception", error))
    return Failed(error) if execution.has_begun else Aborted(error)


def ends_run(error: BaseException) -> bool:
    """Whether *error* is meant for the program: SystemExit, KeyboardInterrupt, or a group with one of these.

    All others say that an attempt has failed, also those that are not an Exception: the CancelledError of a task that the
    handler has awaited, GeneratorExit, or the time-out of a library. Otherwise one message could end each run.
    """
    kind = type(error)  # isinstance() would ask the exception itself, by __class__
    if issubclass(kind, (SystemExit, KeyboardInterrupt)):
        return True
    if issubclass(kind, Exception) or not issubclass(kind, BaseExceptionGroup):
        return False
    try:
        return cast("BaseExceptionGroup", error).subgroup((SystemExit, KeyboardInterrupt)) is not None
    except Exception:  # noqa: BLE001 - a class of the application
        return False


class Executor(Protocol):
    """Calls the handler: in this thread or in an event loop, with or without a transaction."""

    commits_positions: bool
    """Whether the handler's transactions commit the group's position."""

    def execute(self, execution: Execution) -> Outcome:
        """Call the handler with each batch, until one fails."""

    def abandon(self, worker: Receiver) -> None:
        """Do what is possible to end the handler that *worker* waits for."""


class DirectExecutor:
    """Calls a handler with one argument: a message, or a list of them."""

    commits_positions = False

    def __init__(self, handler: Callable[..., object], finisher: Finisher, *, in_batches: bool) -> None:
        self._handler = handler
        self._finisher = finisher
        self._in_batches = in_batches

    def execute(self, execution: Execution) -> Outcome:
        """Call the handler with each batch."""
        try:
            while batch := execution.next_batch():
                result = self._handler(batch if self._in_batches else batch[0])
                if result is not None:
                    self._finisher.finish(result)
        except BaseException as error:  # noqa: BLE001 - the pool raises what is not the handler's
            return outcome_of(error, execution)
        return Succeeded()

    def abandon(self, worker: Receiver) -> None:
        """Cancel what the handler returned. A thread can't be ended from outside."""
        self._finisher.cancel(worker)


class TransactionalExecutor:
    """Calls a handler with a session, whose changes commit with the group's position, or not at all."""

    commits_positions = True

    def __init__(
        self,
        handler: Callable[..., object],
        finisher: Finisher,
        core: ConsumerCore,
        make_session: Callable[[], Session] | None,
        *,
        in_batches: bool,
    ) -> None:
        self._handler = handler
        self._finisher = finisher
        self._core = core
        self._context = core.transactions
        self._make_session = make_session
        self._in_batches = in_batches

    def execute(self, execution: Execution) -> Outcome:
        """Call the handler with each batch, in a transaction each."""
        try:
            while batch := execution.next_batch():
                if (not_started := self._transact(execution, batch)) is not None:
                    return not_started
        except BaseException as error:  # noqa: BLE001 - the pool raises what is not the handler's
            return outcome_of(error, execution)
        return Succeeded()

    def abandon(self, worker: Receiver) -> None:
        """Do nothing: a thread can't be ended from outside. Its transaction is rolled back when it tries to commit."""

    def _transact(self, execution: Execution, batch: list[ReceivedMessage]) -> NotStarted | None:
        with contextlib.ExitStack() as stack:
            try:
                scope = self._begin(stack)
            except Exception as error:  # noqa: BLE001 - the pool raises it
                return NotStarted(error)
            result = self._handler(batch if self._in_batches else batch[0], scope.session)
            if result is not None:
                self._finisher.finish(result)
            scope.finish(execution.settle)
            scope.commit()
        execution.committed()
        return None

    def _begin(self, stack: contextlib.ExitStack) -> TransactionScope:
        database = self._context.database
        given = None if self._make_session is None else self._open(stack, self._make_session)
        stack.enter_context(database.reserve_writer())
        target = stack.enter_context(database.connect()) if given is None else given
        scope = TransactionScope(self._context, self._core.group)
        stack.callback(scope.roll_back)
        scope.begin(target)
        scope.watch()
        return scope

    def _open(self, stack: contextlib.ExitStack, make_session: Callable[[], Session]) -> Session:
        """Make the application's session and check that it leads to the database of the MQ."""
        session: object = make_session()
        if not isinstance(session, Session):
            message = f"session= has to make a sqlalchemy.orm.Session; it made {type(session).__name__}."
            raise TypeError(message)
        stack.callback(session.close)
        self._context.check_free(session)
        if not self._context.is_known(session):
            ours = self._context.own_identity(self._core.group)
            with self._context.database.reserve_writer():
                self._context.check_identity(self._core.group, session, ours)
        return session


def direct_executor(
    core: ConsumerCore,
    handler: Callable[..., object],
    session: object,
    config: RunConfig,
    finisher: Finisher | None = None,
) -> Executor:
    """The executor that calls *handler* in the worker's thread. Raises TypeError or ValueError for a wrong argument."""
    check_handler(handler)
    finisher = finisher or ResultCheck()
    handler = observed(handler, core.database.observer, core.group.name, finisher)
    if config.transaction:
        make_session = session_maker(session)
        if make_session is None:
            core.database.provide_for_handlers(config.concurrency)
        elif isinstance(bind := bind_of(make_session), Engine):
            core.database.provide_for_handlers(config.concurrency, beside=bind)
        return TransactionalExecutor(handler, finisher, core, make_session, in_batches=config.has_batches)
    check_no_session(session)
    return DirectExecutor(handler, finisher, in_batches=config.has_batches)


def observed(
    handler: Callable[..., object], observer: Observer | None, group: str, finisher: Finisher
) -> Callable[..., object]:
    """Wrap *handler* so that *observer*, if there is one, sees each of its calls until its result is finished."""
    if observer is None:
        return handler

    def call(given: ReceivedMessage | list[ReceivedMessage], *session: Session) -> None:
        with ObservedHandling(observer, group, given if isinstance(given, list) else [given]):
            result = handler(given, *session)
            if result is not None:
                finisher.finish(result)

    return call


def bind_of(make_session: Callable[[], object]) -> object:
    """Return what the sessions of a sessionmaker are bound to; None if that is not known before there is one."""
    return getattr(make_session, "kw", {}).get("bind")


def session_maker(source: object) -> Callable[[], Session] | None:
    """Return what makes a session for each transaction; None is the MQ's own. Raises TypeError.

    A single Session or Connection is refused: each worker runs in a thread of its own, and threads can't share one.
    """
    if source is None or (callable(source) and not isinstance(source, Session | Connection | scoped_session)):
        return source
    if isinstance(source, scoped_session):
        return source
    message = f"session= of run() takes a sessionmaker or a scoped_session, not {type(source).__name__}."
    raise TypeError(message)


def check_handler(handler: object) -> None:
    """Raise TypeError unless *handler* is a function that does its work when it is called, as far as that can be seen."""
    check_function(handler)
    if is_awaited(handler):
        message = "This handler is a coroutine function: run it with the consumer of an AsyncMQ."
        raise TypeError(message)


def check_function(handler: object) -> None:
    """Raise TypeError unless *handler* is a function, perhaps a coroutine function, and not one that yields."""
    if not callable(handler):
        message = f"A handler is a function, not {type(handler).__name__}."
        raise TypeError(message)
    if _is_any(handler, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        message = "This handler is a generator function, so calling it runs nothing: a handler must not `yield`."
        raise TypeError(message)


def is_awaited(handler: object) -> bool:
    """Whether *handler* looks as if what it returns has to be awaited. What it does return is checked as well."""
    return _is_any(handler, inspect.iscoroutinefunction)


def _is_any(handler: object, *tests: Callable[[object], bool]) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return any(test(handler) or test(getattr(handler, "__call__", None)) for test in tests)  # noqa: B004 - what it is, not whether


def check_no_session(source: object) -> None:
    """Raise ValueError for a session without transaction=True."""
    if source is not None:
        message = "session= is for transaction=True; without that, nothing would commit what the session holds."
        raise ValueError(message)
