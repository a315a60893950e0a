"""Errors of Postgres, by SQLSTATE: the error of ours they become, and whether a retry can succeed."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError

from sqlmq.dialects.postgresql.session.login import state_of_refusal
from sqlmq.errors import (
    DatabaseBusyError,
    DatabaseDamagedError,
    DatabaseError,
    DatabaseFullError,
    DatabaseUnavailableError,
    IsolationError,
    PermissionDeniedError,
    ReadOnlyDatabaseError,
    SqlmqError,
)

# Errors of our own functions.
_ISOLATION = "MQ001"

# Also after the server was demoted: the next connection, by the same URL, may reach the new primary.
_PASSING = ("25006", "40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "08")

# Errors of which libpq, or psycopg before 3.2.4, has only the text: refused logins, and sessions that were idle for too long.
_STATES_OF_TEXTS = (
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("authentication failed", "28000"),
    ("is not permitted to log in", "28000"),
    ("permission denied for database", "42501"),
    ("too many connections", "53300"),
    ("remaining connection slots", "53300"),
    ("sorry, too many clients", "53300"),
    ("the database system is", "57P03"),
    ("idle-in-transaction timeout", "25P03"),
    ("due to transaction timeout", "25P04"),
)
_NO_DATABASE_TEXT = ('database "', "does not exist")

_CUT_OFF = (DatabaseUnavailableError, "Is the server running, and reachable from here?")
_TOO_LONG = "The transaction took too long, or was quiet for too long: nothing of it was written. See max_poll_seconds."
_OTHER = (DatabaseError, "")
_DAMAGED = "A table or an index is damaged: see pg_amcheck, and restore from a backup or a standby."
_PREPARES = (
    "A pooler such as PgBouncer shares the server's sessions. Create the engine with "
    "connect_args={'prepare_threshold': None}, or give MQ the URL."
)
_VERDICTS: tuple[tuple[str, tuple[type[DatabaseError], str]], ...] = (
    (_ISOLATION, (IsolationError, "Use READ COMMITTED for transactions that produce.")),
    ("25P03", (DatabaseUnavailableError, _TOO_LONG)),
    ("25P04", (DatabaseUnavailableError, _TOO_LONG)),
    ("26000", (DatabaseError, _PREPARES)),
    ("42P05", (DatabaseError, _PREPARES)),
    ("28", (PermissionDeniedError, "Check user and password of the URL, and the server's pg_hba.conf.")),
    ("3D000", (DatabaseUnavailableError, "Create the database, or correct its name in the URL.")),
    ("42501", (PermissionDeniedError, "Grant the role the right, or connect as another one.")),
    ("25006", (ReadOnlyDatabaseError, "Connect to the primary server.")),
    ("53100", (DatabaseFullError, "Free space on the server's disk.")),
    ("53300", (DatabaseUnavailableError, "All connections are taken: raise max_connections, or use a pooler.")),
    ("XX001", (DatabaseDamagedError, _DAMAGED)),
    ("XX002", (DatabaseDamagedError, _DAMAGED)),
    ("53", (DatabaseUnavailableError, "The server is out of resources.")),
    ("57P", (DatabaseUnavailableError, "The server is going down or coming up; try again.")),
    ("08", _CUT_OFF),
    ("40", (DatabaseBusyError, "Try again.")),
    ("55P03", (DatabaseBusyError, "Try again; another transaction holds the lock.")),
    (
        "57014",
        (DatabaseBusyError, "A statement_timeout of the role or database, or response_timeout_seconds, ended it."),
    ),
)


def translate(error: Exception, where: str) -> SqlmqError | None:
    """Return the error of ours for an error of a driver or of SQLAlchemy at the database *where*, or None."""
    driver_error = _driver_error(error) or _asyncpg_error(error)
    if driver_error is None:
        return None
    said = _first_line(driver_error)
    state = _state(driver_error)
    kind, advice = next(
        (verdict for prefix, verdict in _VERDICTS if state.startswith(prefix)),
        _CUT_OFF if is_disconnect(error) or not state else _OTHER,
    )
    return kind(f"{where}: {said}. {advice}".strip())


def quotes_rows(error: Exception) -> bool:
    """Whether the text of *error* may quote parts of a row."""
    # "Failing row contains (...)" of a constraint, "Token ... is invalid" of a value.
    driver_error = _driver_error(error) or _asyncpg_error(error)
    return driver_error is not None and _state(driver_error).startswith(("22", "23"))


def is_transient(error: Exception) -> bool:
    """Whether a retry can succeed."""
    driver_error = _driver_error(error)
    if driver_error is None:
        return False
    return is_disconnect(error) or _state(driver_error).startswith(_PASSING)


def is_disconnect(error: Exception) -> bool:
    """Whether the connection is lost."""
    driver_error = _driver_error(error)
    if driver_error is None:
        # SQLAlchemy knows it for other drivers, in a session of the application.
        return isinstance(error, DBAPIError) and error.connection_invalidated
    # 08: from a pooler that lost its server.
    return isinstance(driver_error, psycopg.OperationalError) and _state(driver_error)[:2] in ("", "08")


def _driver_error(error: Exception) -> psycopg.Error | None:
    origin = error.orig if isinstance(error, DBAPIError) else error
    return origin if isinstance(origin, psycopg.Error) else None


def _asyncpg_error(error: Exception) -> psycopg.Error | None:
    """Return an error of asyncpg, from a session of the application, as psycopg's with the same SQLSTATE."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return None
    same = psycopg.OperationalError(str(error.orig).rpartition(">: ")[2])
    same.sqlstate = getattr(error.orig, "sqlstate", None)
    return same


def _state(error: psycopg.Error) -> str:
    """Return the SQLSTATE, or "" if unknown. Where the driver has only a text, it is derived from that."""
    if error.sqlstate:
        return error.sqlstate
    said = str(error)
    if all(words in said for words in _NO_DATABASE_TEXT):
        return "3D000"
    state = next((state for words, state in _STATES_OF_TEXTS if words in said), "")
    if not state and (state := state_of_refusal(error)):
        error.sqlstate = state
    return state


def _first_line(error: psycopg.Error) -> str:
    """Return the server's message without the details, which can quote parts of a row."""
    said = error.diag.message_primary or (str(error).strip().splitlines() or ["no reason given"])[0]
    return said.rstrip(".")
