"""The application's transactions: which Connection carries one, and whether a message can commit with it.

A Session, an AsyncSession and a Connection all lead to a ``Connection`` of SQLAlchemy. What makes it unusable raises
SessionError before anything is done.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import Connection, Transaction, TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError, InvalidRequestError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlmq.errors import SessionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.engine import RootTransaction

    from sqlmq.database.database import Database

SessionLike: TypeAlias = "Session | scoped_session[Session] | Connection"
"""What carries a transaction of the application."""

TOO_LATE = "The transaction is already being committed or prepared. Nothing was done. Publish before the commit."

_COMMIT, _PREPARE = Transaction.commit.__code__, TwoPhaseTransaction.prepare.__code__


def connection_of(session: SessionLike, database: Database) -> Connection:
    """The Connection that carries the transaction of *session*. Raises SessionError if there is none."""
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session):
        return _connection_of_session(session, database)
    given: object = session
    if not isinstance(given, Connection):
        complaint = (
            "session= must be a Session, a scoped_session or a Connection of SQLAlchemy, not "
            f"{type(given).__name__}. AsyncSession and AsyncConnection go to an AsyncProducer."
        )
        raise TypeError(complaint)
    if given.closed:
        message = "This Connection is closed. Nothing was done. Publish before you close it."
        raise SessionError(message)
    return given


def active_transaction(conn: Connection) -> RootTransaction:
    """The transaction of *conn*, begun now if there is none. Raises SessionError if it has failed."""
    transaction = conn.get_transaction() or conn.begin()
    if conn.invalidated or not transaction.is_active:
        message = "The transaction of this Connection has failed. Nothing was done. First roll it back."
        raise SessionError(message)
    return transaction


def check_before_commit(transaction: RootTransaction) -> None:
    """Raise SessionError if *transaction*, which carries no message yet, is prepared, or is committing or preparing.

    At that moment the application's listeners run, and one of them may publish. Listeners of ours would be called too
    late. SQLAlchemy has no attribute for that state, so this looks for the call on the stack: 4 us for 60 frames, once
    for each transaction that publishes.
    """
    is_late = isinstance(transaction, TwoPhaseTransaction) and transaction._is_prepared  # noqa: SLF001 - no public way
    frame = inspect.currentframe()
    while frame is not None and not is_late:
        code = frame.f_code
        # Not `in`: comparing by hash reads all that the code object holds, which costs twenty times as much.
        is_late = (code is _COMMIT or code is _PREPARE) and frame.f_locals.get("self") is transaction
        frame = frame.f_back
    if is_late:
        raise SessionError(TOO_LATE)


def check_database(conn: Connection, database: Database) -> None:
    """Raise SessionError unless what is done on *conn* can commit together with rows of *database*."""
    dialect = database.dialect
    if database.one_connection:
        message = (
            "A database in memory has a single connection, on which the MQ's own transactions would end yours. "
            "Use a file for the database."
        )
        raise SessionError(message)
    is_same = False
    if conn.dialect.name == dialect.name:
        with database.translating():
            dialect.check_session(conn)
            is_same = _is_same_database(conn, database)
    if not is_same:
        message = (
            f"The session is on another database than the MQ ({database.where}), or finds other tables there, so the "
            "message could not commit with it. If the session has several databases, give session= the Connection of "
            "the right one: session.connection(bind_arguments=...)."
        )
        raise SessionError(message)
    dialect.release_invalidated(conn.engine)
    if dialect.is_autocommit(conn):
        message = (
            "The session is in AUTOCOMMIT, where each statement commits by itself, so the message could not commit with "
            "it. Use another isolation level, or leave session= out."
        )
        raise SessionError(message)


@contextmanager
def hidden_parameters() -> Iterator[None]:
    """Keep the parameters of statements, which are messages, out of the text of SQLAlchemy's errors."""
    try:
        yield
    except DBAPIError as error:
        error.hide_parameters = True
        raise


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
        message = f"This Session can't carry a message. Nothing was done. {error}"
        raise SessionError(message) from error


def _binds(session: Session) -> Iterable[object]:
    """The engines that a session uses for some of its classes or tables; before SQLAlchemy 2.1 the name is private."""
    binds: Mapping[object, object] = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    return binds.values()


def _is_same_database(conn: Connection, database: Database) -> bool:
    if conn.engine.pool is database.engine.pool:
        return True
    # First what is known of both; an answer that is asked anew costs a round trip, and tells a restarted server.
    return any(
        database.dialect.identity(conn, fresh=fresh) == database.identity(fresh=fresh) for fresh in (False, True)
    )
