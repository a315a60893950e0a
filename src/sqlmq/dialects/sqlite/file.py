"""Whether the path of a connection still leads to its file.

SQLite opens a path once. If the file is removed, or another one gets its name, the connection goes on with a file that
has no name any more, and what it commits there is lost. https://www.sqlite.org/howtocorrupt.html#_unlinking_or_renaming_a_database_file_while_in_use
SQLite looks for that only in some journal modes. So the numbers of the files are compared when a write begins: three calls
of stat(), 1 us each. An open file keeps its number, which no other file gets meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import DBAPICursor

    FileNumber = tuple[int, int] | None

MOVED = sqlite3.SQLITE_READONLY_DBMOVED
"""The code of the error, which SQLite itself raises where it looks."""

_KEY = "sqlmq_file"


class OpenFile:
    """The file of a connection, and those beside it, with the numbers they had when they were first seen."""

    __slots__ = ("_beside", "number", "opened", "path")

    def __init__(self, path: str, opened: str) -> None:
        self.path = path
        """As the application named it, perhaps through a symbolic link."""
        self.opened = opened
        """As SQLite resolved it."""
        self.number = _number(path)
        self._beside: dict[str, FileNumber] = {f"{opened}-wal": None, f"{opened}-shm": None}

    def has_moved(self) -> bool:
        """Whether the path leads to another file, or to none."""
        return self.number is None or _number(self.path) != self.number

    def has_lost_log(self) -> bool:
        """Whether the write-ahead log is not the one of before. Asked only when the connection has read.

        SQLite makes the log when a connection first reads, and removes it with the last connection that has read.
        """
        for path, known in self._beside.items():
            now = _number(path)
            if known is None:
                self._beside[path] = now
            elif now != known:
                return True
        return False


def remember(info: dict[str, object], cursor: DBAPICursor, named: str | None) -> OpenFile | None:
    """Store in *info*, of a connection, which file *cursor* works on. None for a database in memory.

    *named* is the path in the engine's URL. It counts if it is absolute: the working directory may have changed.
    """
    cursor.execute("PRAGMA database_list")
    opened = next((row[2] for row in cursor.fetchall() if row[1] == "main"), "")
    file = None
    if opened:
        is_named = named is not None and Path(named).is_absolute() and _number(named) == _number(opened)
        file = OpenFile(named if is_named and named else opened, opened)
    info[_KEY] = file
    return file


def of(conn: Connection) -> OpenFile | None:
    """Return the file of *conn*, as it was when the connection was opened, or first used by us; None in memory."""
    info = conn.info
    try:
        file: OpenFile | None = info[_KEY]
    except KeyError:
        with closing(conn.connection.cursor()) as cursor:
            file = remember(info, cursor, conn.engine.url.database)
    return file


def check(conn: Connection, *, has_read: bool) -> None:
    """Raise the error that SQLite has for it if the path of *conn* no longer leads to its file.

    Also if the write-ahead log was removed or replaced, which can be told if the connection *has_read* by now.
    """
    file = of(conn)
    if file is not None and (file.has_moved() or (has_read and file.has_lost_log())):
        error = sqlite3.OperationalError("the file, or its write-ahead log, was removed or replaced while it was open")
        error.sqlite_errorcode = MOVED
        raise error


def _number(path: str) -> FileNumber:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path would double the time
    except OSError:
        return None
    return found.st_dev, found.st_ino
