"""Errors of SQLite, by their primary result code: the error of ours they become, and whether a retry can succeed."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from sqlmq.errors import (
    DatabaseBusyError,
    DatabaseDamagedError,
    DatabaseError,
    DatabaseFullError,
    DatabaseUnavailableError,
    PermissionDeniedError,
    ReadOnlyDatabaseError,
    SqlmqError,
)

_BUSY_ADVICE = (
    "Another transaction has been writing for too long. If this thread has begun it, join it with session=; otherwise keep "
    "transactions short."
)
_MOVED_ADVICE = "Nothing was written. The next call opens the file that is there then: restore it first if it was removed by mistake."
_PERMISSION_ADVICE = "Allow the process to read and write the file."
_TRANSLATIONS: dict[int, tuple[type[DatabaseError], str]] = {
    sqlite3.SQLITE_BUSY: (DatabaseBusyError, _BUSY_ADVICE),
    sqlite3.SQLITE_LOCKED: (DatabaseBusyError, _BUSY_ADVICE),
    sqlite3.SQLITE_FULL: (DatabaseFullError, "Free space on the disk."),
    sqlite3.SQLITE_READONLY: (ReadOnlyDatabaseError, "Allow the process to write the file and its directory."),
    sqlite3.SQLITE_CANTOPEN: (DatabaseUnavailableError, "Does the directory exist, and may this process write to it?"),
    sqlite3.SQLITE_PERM: (PermissionDeniedError, _PERMISSION_ADVICE),
    sqlite3.SQLITE_AUTH: (PermissionDeniedError, _PERMISSION_ADVICE),
    sqlite3.SQLITE_IOERR: (DatabaseUnavailableError, "The disk or file system failed."),
    sqlite3.SQLITE_NOTADB: (DatabaseDamagedError, "The file is not a SQLite database."),
    sqlite3.SQLITE_CORRUPT: (DatabaseDamagedError, "The file is damaged: see https://www.sqlite.org/recovery.html"),
}


def translate(error: Exception, where: str) -> SqlmqError | None:
    """Return the error to raise for *error* of the database *where*, or None if it is not an error of SQLite."""
    driver_error = _driver_error(error)
    if isinstance(error, UnicodeDecodeError):
        # SQLite quotes what it can't read, and the driver fails to decode that before it makes an error of its own.
        driver_error = sqlite3.DatabaseError("the schema is not text")
        driver_error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    if driver_error is None:
        return None
    kind, advice = _TRANSLATIONS.get(_primary_code(driver_error), (DatabaseError, ""))
    if is_moved(error):
        kind, advice = DatabaseUnavailableError, _MOVED_ADVICE
    return kind(f"{where}: {driver_error}. {advice}".strip())


def is_transient(error: Exception) -> bool:
    """Whether a retry of the transaction can succeed: another one held the lock."""
    driver_error = _driver_error(error)
    return driver_error is not None and _primary_code(driver_error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_moved(error: Exception) -> bool:
    """Whether the file was removed or replaced while it was open."""
    driver_error = _driver_error(error)
    return driver_error is not None and getattr(driver_error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_DBMOVED


def is_busy(error: Exception) -> bool:
    """Whether another connection held the writer's lock."""
    driver_error = _driver_error(error)
    return driver_error is not None and _primary_code(driver_error) == sqlite3.SQLITE_BUSY


def _driver_error(error: Exception) -> sqlite3.Error | None:
    origin = error.orig if isinstance(error, DBAPIError) else error
    return origin if isinstance(origin, sqlite3.Error) else None


def _primary_code(error: sqlite3.Error) -> int:
    """Return the error's code without its extension. https://www.sqlite.org/rescode.html."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
