"""LISTEN and NOTIFY on Postgres. The meaning of the payloads is not known here.

The channel is named after the oid of ``sqlmq_topic``. So each set of tables in a database has its own, in whatever way
its schema is named and found, and the name needs no quotes. https://www.postgresql.org/docs/current/sql-notify.html
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

_FIRST_WITH_IDLE_TIMEOUT = 140_000
_CHANNEL = "'sqlmq_' || CAST(CAST(to_regclass(%s) AS oid) AS text)"


def notify(conn: Connection, topic_table: str, payloads: Collection[str]) -> None:
    """Send *payloads* in one statement, outside a transaction."""
    # A notification need not be on the disk: after a crash of the server, no connection listens.
    sql = f"""
        SELECT pg_notify({_CHANNEL}, payload) FROM unnest(CAST(%s AS text[])) AS payload
        WHERE set_config('synchronous_commit', 'off', true) IS NOT NULL
    """
    conn.exec_driver_sql(sql, (topic_table, list(payloads)))


class PostgresListening(Listening):
    """A connection that listens, made like those of the engine, but counted by none of its pools."""

    def __init__(
        self, engine: Engine, topic_table: str, awaited: Callable[[object], AbstractContextManager[None]]
    ) -> None:
        self._connection = _connect(engine)
        # A pair of sockets to interrupt the wait: closing a socket does not wake a thread that waits for it.
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        try:
            self._wake_sender.setblocking(False)
            self._selector.register(self._wake_receiver, selectors.EVENT_READ)
            self._selector.register(self._connection.fileno(), selectors.EVENT_READ)
            with awaited(self._connection):
                if self._connection.info.server_version >= _FIRST_WITH_IDLE_TIMEOUT:
                    # It is idle by nature, and has no transaction.
                    self._connection.execute(b"SET idle_session_timeout = 0")
                row = self._connection.execute(f"SELECT {_CHANNEL}".encode(), (topic_table,)).fetchone()
                self._connection.execute(f"LISTEN {row[0] if row else None}".encode())
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> set[str]:
        self._selector.select(seconds)
        # Not Connection.notifies(), which wakes up ten times a second.
        wire = self._connection.pgconn
        wire.consume_input()
        payloads = set()
        while (notice := wire.notifies()) is not None:
            payloads.add(notice.extra.decode(errors="replace"))
        return payloads

    def interrupt(self) -> None:
        try:
            self._wake_sender.send(b"!")
        except OSError:  # closed, or its buffer is full of interrupts
            return

    def close(self) -> None:
        self._selector.close()
        self._connection.close()
        self._wake_receiver.close()
        self._wake_sender.close()


def _connect(engine: Engine) -> psycopg.Connection:
    # A new pool of the same kind, with the same creator and events. So the connection takes no place in a small pool and
    # does not wait for one.
    fairy = engine.pool.recreate().connect()
    connection = fairy.driver_connection
    fairy.detach()
    assert isinstance(connection, psycopg.Connection)  # noqa: S101 - check_engine ensures it
    # End the transaction that the application's events may have begun.
    connection.commit()
    connection.autocommit = True
    return connection
