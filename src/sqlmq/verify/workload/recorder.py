"""What a process of a run writes down: each operation before it is tried and when it is over, and how certain that is."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from sqlalchemy import exc as sa_exc

from sqlmq.errors import (
    ClosedError,
    DatabaseError,
    FencedError,
    OutcomeUnknownError,
    SessionError,
    SqlmqError,
    TransactionEndedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq.verify.history import Recorder

_SURVIVED = (
    DatabaseError,
    FencedError,
    SessionError,
    TransactionEndedError,
    ClosedError,
    TimeoutError,
    sa_exc.SQLAlchemyError,
)
"""What an application under faults has to live with. Whatever else is raised ends the process, and is told."""

_ROLLED_BACK = ("40", "55", "23")
"""Classes of SQLSTATEs that say that COMMIT was refused."""


class AbortedError(Exception):
    """The application wanted its transaction rolled back, or its handler to fail."""


class Attempt:
    """An operation that is under way."""

    def __init__(self, recorder: Recorder, f: str, fields: dict[str, object]) -> None:
        self._recorder = recorder
        self._f = f
        self._client = {"client": fields["client"]} if "client" in fields else {}
        self._of = recorder.invoke(f, **fields)
        self._told: dict[str, object] = {}
        self.is_committing = False
        """Whether a COMMIT of the application's own is on its way, or was."""
        self.is_ok = False
        """Whether it has happened."""

    def tell(self, **fields: object) -> None:
        """Have *fields* told when it is over."""
        self._told |= fields

    def succeeded(self) -> None:
        """It happened."""
        self.is_ok = True
        self._recorder.ok(self._f, self._of, **self._client, **self._told)

    def failed(self, error: BaseException) -> None:
        """It was ended by *error*."""
        write = self._recorder.fail if is_certain(error, is_committing=self.is_committing) else self._recorder.info
        write(self._f, self._of, type(error).__name__, **self._client, **_sqlstate(error))


@contextlib.contextmanager
def attempted(recorder: Recorder, f: str, **fields: object) -> Iterator[Attempt]:
    """Write that *f* is about to be tried, and how it went; an error that an application lives with goes no further."""
    attempt = Attempt(recorder, f, fields)
    try:
        yield attempt
    except BaseException as error:
        attempt.failed(error)
        if not is_survived(error):
            raise
    else:
        attempt.succeeded()


@contextlib.contextmanager
def surviving() -> Iterator[None]:
    """Let errors that an application lives with go no further."""
    try:
        yield
    except Exception as error:
        if not is_survived(error):
            raise


def is_certain(error: BaseException, *, is_committing: bool) -> bool:
    """Whether *error* says that nothing has happened and never will."""
    if isinstance(error, SqlmqError):
        # The promise of every error but one: nothing was written.
        return not isinstance(error, OutcomeUnknownError)
    if isinstance(error, AbortedError | TimeoutError):
        return True
    if not is_committing:
        # The server rolls back what no COMMIT was sent for.
        return isinstance(error, sa_exc.SQLAlchemyError)
    return str(_sqlstate(error).get("sqlstate", "")).startswith(_ROLLED_BACK)


def is_survived(error: BaseException) -> bool:
    """Whether an application goes on after *error*."""
    return isinstance(error, (*_SURVIVED, AbortedError))


def _sqlstate(error: BaseException) -> dict[str, object]:
    origin = error.orig if isinstance(error, sa_exc.DBAPIError) else error.__cause__
    sqlstate = getattr(origin, "sqlstate", None)
    return {} if sqlstate is None else {"sqlstate": sqlstate}


class Listening(logging.Handler):
    """Has *hear* called with the event, and the facts, of each record of the library's log."""

    def __init__(self, hear: Callable[[str, dict[str, object]], None]) -> None:
        super().__init__(logging.INFO)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on what the record tells programs."""
        facts = {name[6:]: fact for name, fact in vars(record).items() if name.startswith("sqlmq_")}
        event = facts.pop("event", None)
        if isinstance(event, str):
            self._hear(event, facts)
