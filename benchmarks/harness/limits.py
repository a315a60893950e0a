"""What can be had by hand: the fastest form known of each step, with the driver alone and no library around it.

On Postgres, to append is one call of a function that locks the partition's row, looks up the newest offset and inserts
binary arrays; COPY in binary beats that from about 5,000 rows on. To read is a range of the primary key through a
binary cursor, a timestamp as a number. On SQLite, BEGIN IMMEDIATE, the newest offset, executemany, and a range read. The
tables are copies of the library's own, keys and defaults included.
"""

from __future__ import annotations

import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.types.numeric import Int8BinaryLoader

from benchmarks.harness.workload import check

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    import psycopg

    from benchmarks.harness.databases import BenchDatabase

FETCH_ROWS = 3_000
"""So many at a time were the fastest, of 1,000, 3,000 and 10,000."""
PARTITIONS = 8
"""How many a log by hand has; it uses one, unless it is told which."""


class UnlockedLog(NamedTuple):
    """Inserts without a lock, the offset from a sequence for each partition: what dense offsets are measured against."""

    name: str

    def insert(self, connection: psycopg.Connection[Any], partition: int, value: bytes) -> None:
        """One row in a transaction of its own."""
        connection.execute(
            f"INSERT INTO {self.name} (partition_id, msg_offset, value) "
            f"VALUES (%b, nextval('{self.name}_offset_{partition}'), %b)",
            (partition, value),
        )

    def insert_many(self, connection: psycopg.Connection[Any], partition: int, values: Sequence[bytes]) -> None:
        """One transaction, one round trip."""
        connection.execute(
            f"INSERT INTO {self.name} (partition_id, msg_offset, value) "
            f"SELECT %b, nextval('{self.name}_offset_{partition}'), v FROM unnest(%b::bytea[]) AS m (v)",
            (partition, values),
        )


class LockedLog(NamedTuple):
    """One call of a function that locks the partition's row, looks up the newest offset and inserts; one round trip."""

    name: str

    def append(
        self,
        connection: psycopg.Connection[Any],
        partition: int,
        keys: Sequence[bytes] | None,
        values: Sequence[bytes],
    ) -> int:
        """One transaction; returns the offset of the first."""
        row = connection.execute(self.statement, (partition, keys, values), binary=True).fetchone()
        return int(row[0]) if row else -1

    def insert(self, connection: psycopg.Connection[Any], partition: int, value: bytes) -> None:
        self.append(connection, partition, None, [value])

    def insert_many(self, connection: psycopg.Connection[Any], partition: int, values: Sequence[bytes]) -> None:
        self.append(connection, partition, None, values)

    @property
    def statement(self) -> str:
        return f"SELECT {self.name}_append(%b::bigint, %b::bytea[], %b::bytea[])"


class PostgresByHand:
    """A log in tables of its own: of one partition, or of several for eight processes."""

    def __init__(self, database: BenchDatabase) -> None:
        self._database = database
        self.name = f"sqlmq_bench_{uuid.uuid4().hex[:8]}"
        self.count = 0
        self.unlocked = UnlockedLog(self.name)
        self.locked = LockedLog(self.name)

    def make(self) -> None:
        name = self.name
        with self._database.connect() as connection:
            connection.execute(f"CREATE TABLE {name} (LIKE sqlmq_message INCLUDING ALL)")
            connection.execute(f"CREATE TABLE {name}_partition (id bigint PRIMARY KEY)")
            connection.execute(f"INSERT INTO {name}_partition SELECT generate_series(0, {PARTITIONS - 1})")
            for partition in range(PARTITIONS):
                connection.execute(f"CREATE SEQUENCE {name}_offset_{partition} OWNED BY {name}.msg_offset")
            connection.execute(f"""
                CREATE FUNCTION {name}_append(part bigint, keys bytea[], vals bytea[]) RETURNS bigint
                LANGUAGE plpgsql AS $$
                DECLARE
                    base bigint;
                BEGIN
                    PERFORM FROM {name}_partition WHERE id = part FOR NO KEY UPDATE;
                    SELECT coalesce((
                        SELECT msg_offset + 1 FROM {name} WHERE partition_id = part ORDER BY msg_offset DESC LIMIT 1
                    ), 0) INTO base;
                    INSERT INTO {name} (partition_id, msg_offset, key, value)
                    SELECT part, base + m.place - 1, m.key, m.value
                    FROM unnest(keys, vals) WITH ORDINALITY AS m (key, value, place);
                    RETURN base;
                END $$
            """)

    def drop(self) -> None:
        with self._database.connect() as connection:
            connection.execute(f"DROP FUNCTION IF EXISTS {self.name}_append(bigint, bytea[], bytea[])")
            connection.execute(f"DROP TABLE IF EXISTS {self.name}, {self.name}_partition")

    def append(self, connection: psycopg.Connection[Any], keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        """To the one partition, by ``LockedLog``."""
        return self.locked.append(connection, 1, keys, values)

    async def append_async(
        self, connection: psycopg.AsyncConnection[Any], keys: Sequence[bytes], values: Sequence[bytes]
    ) -> None:
        await connection.execute(self.locked.statement, (1, keys, values), binary=True)

    def read(self, connection: psycopg.Connection[Any]) -> int:
        """Read the one partition, as ``read_postgres`` does, and count its rows."""
        return _read_postgres(connection, self.name, [1])

    def copy(self, connection: psycopg.Connection[Any], rows: Sequence[tuple[bytes, bytes]]) -> None:
        """One transaction: lock, newest offset, COPY in binary."""
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(f"SELECT FROM {self.name}_partition WHERE id = 1 FOR NO KEY UPDATE")
            newest = f"SELECT max(msg_offset) FROM {self.name} WHERE partition_id = 1"
            row = cursor.execute(newest).fetchone()
            base = 0 if row is None or row[0] is None else row[0] + 1
            with cursor.copy(
                f"COPY {self.name} (partition_id, msg_offset, key, value) FROM STDIN (FORMAT binary)"
            ) as copy:
                copy.set_types(["int8", "int8", "bytea", "bytea"])
                write = copy.write_row
                for offset, (key, value) in enumerate(rows, base):
                    write((1, offset, key, value))

    def insert(self, connection: psycopg.Connection[Any], offset: int, key: bytes, value: bytes) -> None:
        """One row, its offset given, in a transaction of its own."""
        statement = f"INSERT INTO {self.name} (partition_id, msg_offset, key, value) VALUES (1, %b, %b, %b)"
        connection.execute(statement, (offset, key, value))

    def check_grew(self, count: int) -> None:
        """Check that *count* messages were added, and the offsets from 0 on are dense. The log goes on growing."""
        self.count += count
        with self._database.connect() as connection:
            row = connection.execute(f"SELECT count(*), min(msg_offset), max(msg_offset) FROM {self.name}").fetchone()
        check(row == (self.count, 0, self.count - 1), f"by hand, {row} was written instead of {self.count}")

    def check_added(self, count: int) -> None:
        """Check that *count* messages were added, wherever their offsets are."""
        self.count += count
        with self._database.connect() as connection:
            row = connection.execute(f"SELECT count(*) FROM {self.name}").fetchone()
        check(row == (self.count,), f"by hand, {row} was written instead of {self.count}")


class SqliteByHand:
    """As on Postgres, with sqlite3. Threads of a process take turns by a lock: SQLite's own waiting is by sleeping."""

    def __init__(self, database: BenchDatabase) -> None:
        self._database = database
        self.name = f"sqlmq_bench_{uuid.uuid4().hex[:8]}"
        self.count = 0
        self.turn = threading.Lock()
        self._insert = f"INSERT INTO {self.name} (partition_id, msg_offset, key, value) VALUES (1, ?, ?, ?)"
        self._base = f"SELECT msg_offset + 1 FROM {self.name} WHERE partition_id = 1 ORDER BY msg_offset DESC LIMIT 1"

    def make(self) -> None:
        connection = self._database.open()
        found = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'sqlmq_message'").fetchone()
        connection.execute(found[0].replace("sqlmq_message", self.name))
        connection.close()

    def drop(self) -> None:
        connection = self._database.open()
        connection.execute(f"DROP TABLE IF EXISTS {self.name}")
        connection.close()

    def append(self, connection: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute(self._base).fetchone()
        base = found[0] if found else 0
        connection.executemany(self._insert, [(base + i, key, value) for i, (key, value) in enumerate(rows)])
        connection.execute("COMMIT")

    def read(self, connection: sqlite3.Connection) -> int:
        """Read it as ``read_sqlite`` does, and count its rows."""
        return _read_sqlite(connection, self.name, [1])

    def insert(self, connection: sqlite3.Connection, offset: int, key: bytes, value: bytes) -> None:
        connection.execute(self._insert, (offset, key, value))

    def check_grew(self, count: int) -> None:
        self.count += count
        connection = self._database.open()
        row = connection.execute(f"SELECT count(*), min(msg_offset), max(msg_offset) FROM {self.name}").fetchone()
        connection.close()
        check(row == (self.count, 0, self.count - 1), f"by hand, {row} was written instead of {self.count}")


@contextmanager
def postgres_by_hand(database: BenchDatabase) -> Iterator[PostgresByHand]:
    hand = PostgresByHand(database)
    hand.make()
    try:
        yield hand
    finally:
        hand.drop()


@contextmanager
def sqlite_by_hand(database: BenchDatabase) -> Iterator[SqliteByHand]:
    hand = SqliteByHand(database)
    hand.make()
    try:
        yield hand
    finally:
        hand.drop()


_OF_TOPIC = "FROM sqlmq_partition p JOIN sqlmq_topic t ON t.id = p.topic_id"
_RANGE = """
    SELECT msg_offset, key, value, headers, created_at FROM {table}
    WHERE partition_id = {mark} AND msg_offset >= {mark} ORDER BY msg_offset LIMIT {mark}
"""


def count_rows(connection: psycopg.Connection[Any], topic: str) -> int:
    """How many rows the log of *topic* has, counted one by one."""
    counting = f"SELECT count(*) {_OF_TOPIC} JOIN sqlmq_message m ON m.partition_id = p.id WHERE t.name = %s"
    row = connection.execute(counting, [topic]).fetchone()
    return int(row[0]) if row else 0


def partition_ids(connection: psycopg.Connection[Any] | sqlite3.Connection, topic: str) -> list[int]:
    """The ids of the partitions of *topic*, in their order."""
    # The name is one of ours, and drivers differ in how they mark a parameter.
    rows = connection.execute(f"SELECT p.id {_OF_TOPIC} WHERE t.name = '{topic}' ORDER BY p.number")
    return [row[0] for row in rows.fetchall()]


def read_postgres(connection: psycopg.Connection[Any], topic: str) -> int:
    """Fetch all rows of *topic*, as binary tuples, some at a time, one partition after the other; count them."""
    return _read_postgres(connection, "sqlmq_message", partition_ids(connection, topic))


def read_sqlite(connection: sqlite3.Connection, topic: str) -> int:
    """As ``read_postgres``."""
    return _read_sqlite(connection, "sqlmq_message", partition_ids(connection, topic))


def _read_postgres(connection: psycopg.Connection[Any], table: str, ids: Sequence[int]) -> int:
    with connection.cursor(binary=True) as cursor:
        cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
        statement = _RANGE.format(table=table, mark="%b")
        return sum(_read(lambda *at: cursor.execute(statement, at).fetchall(), id_) for id_ in ids)


def _read_sqlite(connection: sqlite3.Connection, table: str, ids: Sequence[int]) -> int:
    statement = _RANGE.format(table=table, mark="?")
    return sum(_read(lambda *at: connection.execute(statement, at).fetchall(), id_) for id_ in ids)


def _read(fetch: Callable[[int, int, int], list[Any]], partition_id: int) -> int:
    """Read a partition from offset 0 to its end, which is returned."""
    position = 0
    while rows := fetch(partition_id, position, FETCH_ROWS):
        check(rows[0][0] == position, f"nothing was read at {position}")
        check(rows[-1][0] == position + len(rows) - 1, f"the offsets from {position} on are not dense")
        position += len(rows)
    return position
