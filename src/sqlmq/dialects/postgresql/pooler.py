"""A pooler between us and Postgres: noticed by itself, and nothing prepared on sessions that change hands.

PgBouncer, in transaction mode, gives each transaction whatever session of the server is free. A statement that psycopg has
prepared on one is missing on the next, or there already. https://www.psycopg.org/psycopg3/docs/advanced/prepare.html#pgbouncer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    Driven = psycopg.Connection | psycopg.AsyncConnection


def heed_pooler(engine: Engine) -> Engine:
    """Have *engine*, for psycopg, prepare no statements where its first connection finds a pooler at the other end."""
    found = False

    def look(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        nonlocal found
        found = _answering_pid(connection) != _driven(record).info.backend_pid

    def heed(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        if found:
            _driven(record).prepare_threshold = None

    event.listen(engine, "first_connect", look)
    event.listen(engine, "connect", heed)
    return engine


def _driven(record: ConnectionPoolEntry) -> Driven:
    connection = record.driver_connection
    assert isinstance(connection, psycopg.Connection | psycopg.AsyncConnection)  # noqa: S101 - what engines are made for
    return connection


def _answering_pid(connection: DBAPIConnection) -> int:
    """The process that answers; libpq knows the one that took the connection, and a pooler, which has none, makes that up."""
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT pg_backend_pid()")
        row = cursor.fetchone()
    finally:
        cursor.close()
        connection.rollback()
    return int(row[0]) if row else 0
