"""LISTEN and NOTIFY, on Postgres. What the payloads mean is not known here.

The channel is named after the oid of ``sqlmq_topic``: one for each set of tables in a database, whatever the schema is
called and however it was found, and nothing to be quoted. https://www.postgresql.org/docs/current/sql-notify.html
"""

from __future__ import annotations

import selectors
import socket
from typing import TYPE_CHECKING

import psycopg

from sqlmq.dialects.base import Listening

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine

_CHANNEL = "'sqlmq_' || CAST(CAST(to_regclass(%s) AS oid) AS text)"


def notify(conn: Connection, topic_table: str, payloads: Collection[str]) -> None:
    """Send *payloads* in one statement, outside a transaction."""
    # To be heard it has to be committed, but not to be on the disk: a server that crashes has nobody who listens.
    sql = f"""
        SELECT pg_notify({_CHANNEL}, payload) FROM unnest(CAST(%s AS text[])) AS payload
        WHERE set_config('synchronous_commit', 'off', true) IS NOT NULL
    """
    conn.exec_driver_sql(sql, (topic_table, list(payloads)))


class PostgresListening(Listening):
    """A connection that listens, made as the engine makes its own, and counted by none of its pools."""

    def __init__(
        self, engine: Engine, topic_table: str, awaited: Callable[[object], AbstractContextManager[None]]
    ) -> None:
        self._connection = _connect(engine)
        # To be interrupted by: closing a socket that somebody waits for wakes nobody.
        self._told, self._teller = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        try:
            self._teller.setblocking(False)
            self._selector.register(self._told, selectors.EVENT_READ)
            self._selector.register(self._connection.fileno(), selectors.EVENT_READ)
            with awaited(self._connection):
                row = self._connection.execute(f"SELECT {_CHANNEL}".encode(), (topic_table,)).fetchone()
                self._connection.execute(f"LISTEN {row[0] if row else None}".encode())
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> set[str]:
        self._selector.select(seconds)
        # Not Connection.notifies(): that wakes up ten times a second.
        wire = self._connection.pgconn
        wire.consume_input()
        payloads = set()
        while (notice := wire.notifies()) is not None:
            payloads.add(notice.extra.decode(errors="replace"))
        return payloads

    def interrupt(self) -> None:
        try:
            self._teller.send(b"!")
        except OSError:  # closed, or interrupted often enough
            return

    def close(self) -> None:
        self._selector.close()
        self._connection.close()
        self._told.close()
        self._teller.close()


def _connect(engine: Engine) -> psycopg.Connection:
    # A pool of the same kind, with the same creator and events, of which nobody else uses anything: so it takes no
    # place in a small pool, and waits for nobody who has the only connection of one.
    fairy = engine.pool.recreate().connect()
    connection = fairy.driver_connection
    fairy.detach()
    assert isinstance(connection, psycopg.Connection)  # noqa: S101 - what check_engine made sure of
    # What the application's events have begun.
    connection.commit()
    connection.autocommit = True
    return connection
