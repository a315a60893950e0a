"""The socket of a connection to Postgres, used by a thread that is not the one waiting for an answer.

Shutting a socket down wakes the thread that waits on it, which then finds the connection broken. Closing it would not.
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

# In Linux' struct tcp_info, the third byte counts how often the last segment was sent again. After eight bytes come
# 4-byte numbers; the tenth and the twelfth are the milliseconds since data was last sent and last received.
# https://man7.org/linux/man-pages/man7/tcp.7.html
_TCP_INFO = socket.TCP_INFO if sys.platform == "linux" else None
_FIELDS = struct.Struct("=2xB41xI4xI")
_TCP_INFO_BYTES = 104


def socket_of(connection: object) -> ConnectionSocket | None:
    """Return the socket of psycopg's *connection*; None for other drivers."""
    return PostgresSocket(connection) if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection) else None


class PostgresSocket(ConnectionSocket):
    """The socket of one connection of psycopg."""

    def __init__(self, connection: psycopg.Connection | psycopg.AsyncConnection) -> None:
        self._connection = connection

    def silent_seconds(self) -> float | None:
        if _TCP_INFO is None:
            return None
        with contextlib.suppress(OSError, psycopg.Error, struct.error), self._socket() as wire:
            tcp_info = wire.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_BYTES)
            repeats, sent_ms, received_ms = _FIELDS.unpack_from(tcp_info)
            # A segment that is sent again and again does not arrive.
            silent_ms: int = received_ms if repeats else min(sent_ms, received_ms)
            return silent_ms / 1000
        return None

    def request_cancel(self, seconds: float) -> None:
        # Before libpq 17, psycopg's request has no timeout if the network drops it.
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
            # Otherwise the descriptor was closed meanwhile, and its number may belong to another file.
            if self._connection.pgconn.socket == number:
                yield wire
            else:
                raise OSError
