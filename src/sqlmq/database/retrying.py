"""Retries: which error of ours a failed transaction raises, and whether it runs again."""

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
"""How long a transaction is retried. A server that restarts is usually back within that time."""
_LONGER = wait_exponential(multiplier=0.05, max=1.0)
"""The longest pause before the next attempt."""


class TranslateErrors:
    """Context managers that raise our errors for those of SQLAlchemy and the driver; *where* names the database.

    One serves all threads. A connection that is lost while *committing* has an unknown outcome.
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
    # SQLAlchemy's error can contain the statement and its parameters.
    cause = origin or error
    if committing and dialect.is_disconnect(error):
        message = (
            f"{where}: the connection was lost during COMMIT, which may have taken effect or not. Nothing is sent again. "
            "Check the log before you send it again."
        )
        raise OutcomeUnknownError(message) from cause
    translated = dialect.translate(error, where)
    if translated is None and isinstance(error, sa_exc.TimeoutError):
        message = f"{where}: no connection of the pool became free in time. Give the engine a larger pool."
        translated = DatabaseUnavailableError(message)
    if translated is not None:
        raise translated from (None if dialect.quotes_rows(cause) else cause)


def retry(attempt: Callable[[], T], is_transient: Callable[[BaseException], bool], clock: Clock) -> T:
    """Call *attempt* and return its result; retry for some seconds while its error *is_transient*."""
    began = clock.monotonic()
    # The first attempt runs without tenacity, which takes 20 us.
    try:
        return attempt()
    except SqlmqError as error:
        # An attempt that waited this long for a lock would wait as long again.
        is_enough = isinstance(error, DatabaseBusyError) and clock.monotonic() - began >= _RETRY_SECONDS
        if is_enough or not is_transient(error):
            raise
        log.warning("%s (retrying for %.0f seconds)", error, _RETRY_SECONDS, extra=log_fields("retry", error=error))
    give_up_at = clock.monotonic() + _RETRY_SECONDS
    return Retrying(
        retry=retry_if_exception(is_transient),
        wait=lambda tries: _LONGER(tries) * clock.random.random(),
        stop=lambda _: clock.monotonic() >= give_up_at,
        sleep=clock.sleep,
        reraise=True,
    )(attempt)


def roll_back_in_driver(conn: Connection) -> None:
    """Roll back what is on *conn*, whose commit has failed. SQLAlchemy does not do it.

    After an exception in its ``commit`` event too, RootTransaction believes it has ended. Then the next user of the
    connection would commit the application's rows.
    """
    if conn.closed or conn.invalidated:
        return
    try:
        conn.connection.rollback()
    except Exception:  # noqa: BLE001 - the connection is broken, as the error that is being raised says
        conn.invalidate()
