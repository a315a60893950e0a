"""Records each operation of a process before it starts and when it has ended, and whether its outcome is certain."""

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

_TOLERABLE = (
    DatabaseError,
    FencedError,
    SessionError,
    TransactionEndedError,
    ClosedError,
    TimeoutError,
    sa_exc.SQLAlchemyError,
)
"""The errors that an application must expect under faults. Any other error ends the process and makes the run invalid."""

_ROLLED_BACK = ("40", "55", "23")
"""Classes of SQLSTATEs that mean that COMMIT was refused."""


class AbortedError(Exception):
    """The application rolls its transaction back, or its handler fails, on purpose."""


class RecordedOperation:
    """An operation in progress. Its start is recorded when this object is created."""

    def __init__(self, recorder: Recorder, f: str, fields: dict[str, object]) -> None:
        self._recorder = recorder
        self._f = f
        self._client = {"client": fields["client"]} if "client" in fields else {}
        self._of = recorder.invoke(f, **fields)
        self._result: dict[str, object] = {}
        self.is_committing = False
        """Whether the application has sent its own COMMIT."""
        self.is_ok = False
        """Whether the operation succeeded."""

    def add(self, **fields: object) -> None:
        """Add *fields* to the line that is written when the operation ends."""
        self._result |= fields

    def succeeded(self) -> None:
        """Record success."""
        self.is_ok = True
        self._recorder.ok(self._f, self._of, **self._client, **self._result)

    def failed(self, error: BaseException) -> None:
        """Record *error*: as a failure if nothing was written for certain, else as unknown."""
        write = self._recorder.fail if is_certain(error, is_committing=self.is_committing) else self._recorder.info
        write(self._f, self._of, type(error).__name__, **self._client, **_sqlstate(error))


@contextlib.contextmanager
def recorded(recorder: Recorder, f: str, **fields: object) -> Iterator[RecordedOperation]:
    """Record *f* around the block. Suppresses the errors that an application must expect."""
    operation = RecordedOperation(recorder, f, fields)
    try:
        yield operation
    except BaseException as error:
        operation.failed(error)
        if not is_tolerable(error):
            raise
    else:
        operation.succeeded()


@contextlib.contextmanager
def tolerating_errors() -> Iterator[None]:
    """Suppress the errors that an application must expect."""
    try:
        yield
    except Exception as error:
        if not is_tolerable(error):
            raise


def is_certain(error: BaseException, *, is_committing: bool) -> bool:
    """Whether *error* means for certain that nothing was written."""
    if isinstance(error, SqlmqError):
        # The library promises it for every error but this one.
        return not isinstance(error, OutcomeUnknownError)
    if isinstance(error, AbortedError | TimeoutError):
        return True
    if not is_committing:
        # Without a COMMIT the server rolls the transaction back.
        return isinstance(error, sa_exc.SQLAlchemyError)
    return str(_sqlstate(error).get("sqlstate", "")).startswith(_ROLLED_BACK)


def is_tolerable(error: BaseException) -> bool:
    """Whether an application must expect *error* and go on."""
    return isinstance(error, (*_TOLERABLE, AbortedError))


def _sqlstate(error: BaseException) -> dict[str, object]:
    origin = error.orig if isinstance(error, sa_exc.DBAPIError) else error.__cause__
    sqlstate = getattr(origin, "sqlstate", None)
    return {} if sqlstate is None else {"sqlstate": sqlstate}


class LogEventHandler(logging.Handler):
    """Calls *on_event* with the event name and the fields of each log record of the library."""

    def __init__(self, on_event: Callable[[str, dict[str, object]], None]) -> None:
        super().__init__(logging.INFO)
        self._on_event = on_event

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the structured part of *record* on."""
        fields = {name[6:]: value for name, value in vars(record).items() if name.startswith("sqlmq_")}
        event = fields.pop("event", None)
        if isinstance(event, str):
            self._on_event(event, fields)
