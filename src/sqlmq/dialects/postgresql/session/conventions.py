"""What a session has agreed on with the server, and how we do not depend on it.

On connections of our own engines we set the encoding (``SETTINGS``). On an application's, ``check`` refuses what nothing of
ours could work with, and ``encoded`` follows the rest. Values whose text depends on other settings are not read as text
(docs/design/conventions.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sqlmq.errors import IsolationError, SessionError
from sqlmq.model.message import has_any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from sqlmq.model.message import RecordBatch

SETTINGS: Mapping[str, str] = {"client_encoding": "utf8"}
"""Parameters of libpq, which win over those of a URL, of the environment and of the database. Poolers know them, too."""

_UTF8 = b"UTF8"


def check(conn: Connection) -> None:
    """Raise SessionError if the driver returns bytes for texts on *conn*. It asks no server: the driver knows."""
    driver = conn.connection.driver_connection
    if isinstance(driver, psycopg.Connection | psycopg.AsyncConnection) and _encoding(driver) == b"SQL_ASCII":
        message = (
            "The client_encoding of the connection is SQL_ASCII, so texts arrive as bytes. Create the engine with "
            "connect_args={'client_encoding': 'utf8'}."
        )
        raise SessionError(message)


def encoded(connection: psycopg.Connection[Any], contents: RecordBatch) -> RecordBatch:
    """Return *contents* with headers in the client_encoding of *connection*, for fields that are packed by us.

    Raises SessionError if it does not have all their characters.
    """
    if _encoding(connection) == _UTF8 or not has_any(contents.headers):
        return contents
    encoding = connection.info.encoding
    try:
        headers = [None if raw is None else raw.decode().encode(encoding) for raw in contents.headers]
    except UnicodeEncodeError as error:
        raise cannot_encode(error) from None
    return contents._replace(headers=headers)


def cannot_encode(error: UnicodeEncodeError) -> SessionError:
    """Return the error for a text that the client_encoding of a session does not have."""
    characters = error.object[error.start : error.end]
    message = (
        f"The client_encoding of the connection ({error.encoding}) does not have the characters {characters!r}. Create the "
        "engine with connect_args={'client_encoding': 'utf8'}."
    )
    return SessionError(message)


def is_idle(conn: Connection) -> bool:
    """Whether no statement ran yet in the transaction of *conn*. False if the driver does not tell."""
    driver: Any = conn.connection.driver_connection
    if isinstance(driver, psycopg.Connection | psycopg.AsyncConnection):
        return driver.info.transaction_status is TransactionStatus.IDLE
    if conn.dialect.driver == "psycopg2":
        return bool(driver.info.transaction_status == TransactionStatus.IDLE)  # both are libpq's number
    return conn.dialect.driver == "asyncpg" and not driver.is_in_transaction()


def check_snapshot(conn: Connection, version_table: str) -> None:
    """Raise IsolationError if *conn*, above READ COMMITTED, does not see what another migration has committed.

    Functions look a name up in the newest catalog, queries in that of the snapshot. A row that is locked must be the newest.
    """
    sql = """
        SELECT to_regclass(CAST(:name AS text)) IS NOT NULL AS is_there,
            EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass(CAST(:name AS text))) AS is_seen
    """
    is_there, is_seen = conn.execute(text(sql), {"name": version_table}).one()
    if is_there and not is_seen:
        raise IsolationError(_OLD_SNAPSHOT)
    if is_there:
        try:
            conn.execute(text("SELECT FROM {} FOR UPDATE".format(version_table.replace(":", "\\:"))))
        except DBAPIError as error:
            if "40001" in (getattr(error.orig, "sqlstate", None), getattr(error.orig, "pgcode", None)):
                raise IsolationError(_OLD_SNAPSHOT) from error
            raise


_OLD_SNAPSHOT = (
    "Another migration has changed the tables since this transaction began, which its isolation level hides. Run it again, or "
    "begin it with SET TRANSACTION ISOLATION LEVEL READ COMMITTED."
)


def _encoding(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bytes | None:
    return connection.pgconn.parameter_status(b"client_encoding")
