"""No queue at all: what is written and read by hand, to see how far ahead of another queue anything could be.

A log of one partition with dense offsets, and its rows as tuples; no groups, no positions, no objects.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from benchmarks.harness.databases import POSTGRES, SQLITE, database_at
from benchmarks.harness.limits import postgres_by_hand, sqlite_by_hand
from benchmarks.harness.workload import keys_and_values
from benchmarks.peers import Peer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from typing import Any

    import psycopg

    from benchmarks.harness.limits import PostgresByHand, SqliteByHand

BATCH = 1_000


class PostgresLog:
    def __init__(self, hand: PostgresByHand, connection: psycopg.Connection[Any]) -> None:
        self._hand = hand
        self._connection = connection

    def produce(self, count: int) -> None:
        rows = keys_and_values(min(count, BATCH))
        keys, values = [key for key, _ in rows], [value for _, value in rows]
        for _ in range(count // len(rows)):
            self._hand.append(self._connection, keys, values)

    def drain(self, _count: int) -> int:
        return self._hand.read(self._connection)


class SqliteLog:
    def __init__(self, hand: SqliteByHand, connection: sqlite3.Connection) -> None:
        self._hand = hand
        self._connection = connection

    def produce(self, count: int) -> None:
        rows = keys_and_values(min(count, BATCH))
        for _ in range(count // len(rows)):
            self._hand.append(self._connection, rows)

    def drain(self, _count: int) -> int:
        return self._hand.read(self._connection)


@contextmanager
def open_postgres(target: str) -> Iterator[PostgresLog]:
    database = database_at(POSTGRES, target)
    with postgres_by_hand(database) as hand, database.connect() as connection:
        yield PostgresLog(hand, connection)


@contextmanager
def open_sqlite(target: str) -> Iterator[SqliteLog]:
    database = database_at(SQLITE, target)
    with sqlite_by_hand(database) as hand, closing(database.open()) as connection:
        yield SqliteLog(hand, connection)


PEERS = (
    Peer("by hand", "psycopg", (POSTGRES,), 100_000, "1,000 a call, 3,000 rows at a time, as tuples", open_postgres),
    Peer("by hand", "", (SQLITE,), 100_000, "sqlite3, 1,000 a transaction, 3,000 rows at a time", open_sqlite),
)
