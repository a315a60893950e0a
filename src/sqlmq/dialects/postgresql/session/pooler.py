"""Detect a pooler between us and Postgres, and prepare no statements on sessions that it shares.

A pooler in transaction mode gives each transaction another session of the server, so a statement that was prepared on
one is missing, or already there, on the next. https://www.psycopg.org/psycopg3/docs/advanced/prepare.html#pgbouncer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import event

from sqlmq.dialects.base import closed_on_error

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    Driven = psycopg.Connection | psycopg.AsyncConnection


def detect_pooler(engine: Engine) -> Engine:
    """Prepare no statements on *engine*, of psycopg, if its first connection finds a pooler at the other end."""
    found = False

    def compare_processes(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        nonlocal found
        with closed_on_error(connection):
            found = _answering_pid(connection) != _driven(record).info.backend_pid

    def prepare_nothing(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        if found:
            _driven(record).prepare_threshold = None

    event.listen(engine, "first_connect", compare_processes)
    event.listen(engine, "connect", prepare_nothing)
    return engine


def _driven(record: ConnectionPoolEntry) -> Driven:
    connection = record.driver_connection
    assert isinstance(connection, psycopg.Connection | psycopg.AsyncConnection)  # noqa: S101 - detect_pooler takes only such engines
    return connection


def _answering_pid(connection: DBAPIConnection) -> int:
    """Return the process that answers. libpq reports the one that accepted the connection; a pooler makes that up."""
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT pg_backend_pid()")
        row = cursor.fetchone()
    finally:
        cursor.close()
        connection.rollback()
    return int(row[0]) if row else 0
