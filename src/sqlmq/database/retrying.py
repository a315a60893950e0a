"""Trying: what it is called when a transaction of ours fails, and whether it is tried again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import exc as sa_exc
from tenacity import Retrying, retry_if_exception, wait_exponential

from sqlmq.errors import DatabaseBusyError, DatabaseUnavailableError, OutcomeUnknownError, SqlmqError
from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.hooks.clock import Clock

T = TypeVar("T")
log = logging.getLogger("sqlmq.database")

_RETRY_SECONDS = 5.0
"""For how long a transaction is tried again. A server that restarts is back within that, usually."""
_LONGER = wait_exponential(multiplier=0.05, max=1.0)
"""How long to wait at the most before the next try."""


class TranslateErrors:
    """Blocks in which our errors are raised for those of SQLAlchemy and of the driver; *where* is the database.

    One serves all threads. A connection that breaks while *committing* has an unknown outcome.
    """

    __slots__ = ("_committing", "_dialect", "_where")

    def __init__(self, dialect: Dialect, where: str, *, committing: bool) -> None:
        self._dialect = dialect
        self._where = where
        self._committing = committing

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, SqlmqError):
            _raise_translated(error, self._dialect, self._where, committing=self._committing)


def _raise_translated(error: Exception, dialect: Dialect, where: str, *, committing: bool) -> None:
    """Raise our error for *error*, if there is one. The driver's is the cause, unless it quotes rows."""
    origin = error.orig if isinstance(error, sa_exc.DBAPIError) else None
    # SQLAlchemy's can carry statement and parameters.
    cause = origin or error
    if committing and dialect.is_disconnect(error):
        message = (
            f"{where}: the connection was lost while COMMIT was on its way; it may have taken effect or not. "
            "Nothing is sent again: look in the log before you do."
        )
        raise OutcomeUnknownError(message) from cause
    translated = dialect.translate(error, where)
    if translated is None and isinstance(error, sa_exc.TimeoutError):
        message = f"{where}: no connection of the pool came free in time. Give the engine a larger pool."
        translated = DatabaseUnavailableError(message)
    if translated is not None:
        raise translated from (None if dialect.quotes_rows(cause) else cause)


def retry(attempt: Callable[[], T], is_transient: Callable[[BaseException], bool], clock: Clock) -> T:
    """What *attempt* returns; it is tried again for some seconds, as long as what it raises *is_passing*."""
    began = clock.monotonic()
    # The first goes without tenacity, which takes 20 us.
    try:
        return attempt()
    except SqlmqError as error:
        # A lock that was waited for so long already would be waited for as long again.
        is_enough = isinstance(error, DatabaseBusyError) and clock.monotonic() - began >= _RETRY_SECONDS
        if is_enough or not is_transient(error):
            raise
        log.warning("%s (trying again for %.0f seconds)", error, _RETRY_SECONDS, extra=log_fields("retry", error=error))
    give_up_at = clock.monotonic() + _RETRY_SECONDS
    return Retrying(
        retry=retry_if_exception(is_transient),
        wait=lambda tries: _LONGER(tries) * clock.random.random(),
        stop=lambda _: clock.monotonic() >= give_up_at,
        sleep=clock.sleep,
        reraise=True,
    )(attempt)


def roll_back_in_driver(conn: Connection) -> None:
    """Roll back what is on *conn*, whose commit has failed: SQLAlchemy does not.

    RootTransaction takes itself to be over then, after an exception in the event `commit` too, so whoever has the
    connection next would commit the application's rows.
    """
    if conn.closed or conn.invalidated:
        return
    try:
        conn.connection.rollback()
    except Exception:  # noqa: BLE001 - the connection is broken, which the error being raised tells
        conn.invalidate()
