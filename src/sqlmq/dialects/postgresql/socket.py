"""The wire to a Postgres server, seen from a thread that is not the one which waits for an answer.

A socket that is shut down wakes whoever waits for it, who then finds the connection broken. Closing it would not.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import TYPE_CHECKING

import psycopg

from sqlmq.dialects.base import ConnectionSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of Linux' struct tcp_info: the third byte is how often what was sent last has been sent again; behind eight bytes are
# numbers of four, of which the tenth and the twelfth are milliseconds since data was last sent, and last received.
# https://man7.org/linux/man-pages/man7/tcp.7.html
_TCP_INFO = socket.TCP_INFO if sys.platform == "linux" else None
_FIELDS = struct.Struct("=2xB41xI4xI")
_TCP_INFO_BYTES = 104


def line_of(connection: object) -> ConnectionSocket | None:
    """The line of psycopg's *connection*; None of any other driver's."""
    return PostgresSocket(connection) if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection) else None


class PostgresSocket(ConnectionSocket):
    """The line of one connection of psycopg's."""

    def __init__(self, connection: psycopg.Connection | psycopg.AsyncConnection) -> None:
        self._connection = connection

    def silent_seconds(self) -> float | None:
        if _TCP_INFO is None:
            return None
        with contextlib.suppress(OSError, psycopg.Error, struct.error), self._socket() as wire:
            told = wire.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_BYTES)
            repeats, sent_ms, received_ms = _FIELDS.unpack_from(told)
            # What is sent again and again arrives nowhere.
            silent_ms: int = received_ms if repeats else min(sent_ms, received_ms)
            return silent_ms / 1000
        return None

    def request_cancel(self, seconds: float) -> None:
        # Without libpq 17 psycopg asks in a way that has no end where the network swallows it.
        if isinstance(self._connection, psycopg.Connection) and psycopg.capabilities.has_cancel_safe():
            with contextlib.suppress(psycopg.Error):
                self._connection.cancel_safe(timeout=seconds)

    def shut_down(self) -> None:
        with contextlib.suppress(OSError, psycopg.Error), self._socket() as wire:
            wire.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        number = self._connection.pgconn.socket
        with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as wire:
            # Or it was closed meanwhile, and somebody else has got the number.
            if self._connection.pgconn.socket == number:
                yield wire
            else:
                raise OSError
