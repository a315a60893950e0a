"""Writing transactions in threads of their own, which a test moves on step by step."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine, text

from sqlmq import Message
from sqlmq.dialects import Position, dialect_named
from sqlmq.model.partitioner import Rotation
from sqlmq.operations import produce
from sqlmq.operations.admin import topics
from sqlmq.operations.produce import RoutedMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from sqlmq import ProducerResult
    from tests.conftest import DatabaseUnderTest

PATIENCE_SECONDS = 20.0


class Raw:
    """The queue's verbs on connections that the test itself begins and commits."""

    def __init__(self, database: DatabaseUnderTest, topic: str) -> None:
        self.is_postgres = database.is_postgres
        self.engine = create_engine(
            database.url,
            poolclass=NullPool,
            # On SQLite a refused BEGIN is tried again by the test, which so learns that it was refused.
            connect_args={} if database.is_postgres else {"timeout": 0, "check_same_thread": False},
        )
        self.dialect = dialect_named(self.engine.dialect.name, database.schema)
        with self.engine.connect() as connection:
            self.topic = topics.find_topic(connection, self.dialect, topic)

    def begin(self, connection: Connection, refused: threading.Event | None = None) -> None:
        """Begin as the library does; on SQLite, until it succeeds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        pause = threading.Event()
        while True:
            try:
                self.dialect.begin(connection)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                if refused is not None:
                    refused.set()
                pause.wait(0.001)
            else:
                return

    def append(self, connection: Connection, values: Sequence[tuple[int, bytes]]) -> list[ProducerResult]:
        """Append *values* to the partitions they come with, and leave the transaction open."""
        routed = [RoutedMessage(Message(value), partition) for partition, value in values]
        return produce.append(
            connection, self.dialect, produce.make_batch(produce.place(self.topic, routed, Rotation(0)))
        )

    def read(self, connection: Connection, partition: int, start: int = 0) -> list[tuple[int, bytes]]:
        """Everything of *partition* that can be read now, as the consumer reads it."""
        position = Position(self.topic.partition_ids[partition], start)
        rows = self.dialect.read(connection, [position], 100_000, 1 << 30)
        # A snapshot ends with its transaction.
        connection.rollback()
        return [(offset, value) for _, offset, _, value, _, _ in rows]


class Writer:
    """One transaction after the other, on one connection and in one thread; each step may block."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._thread = ThreadPoolExecutor(1)
        self._connection = self._thread.submit(raw.engine.connect).result()
        self._refused = threading.Event()
        self._running: Future[None] = Future()
        self._running.set_result(None)
        self._pid = 0
        if raw.is_postgres:
            self._pid = self._thread.submit(self._find_pid).result()

    def _find_pid(self) -> int:
        pid: int = self._connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        self._connection.rollback()
        return pid

    def begin(self) -> None:
        self._start(lambda: self._raw.begin(self._connection, self._refused))

    def append(self, values: Sequence[tuple[int, bytes]]) -> None:
        self._start(lambda: self._raw.append(self._connection, values))

    def commit(self) -> None:
        self._start(self._connection.commit)

    def rollback(self) -> None:
        self._start(self._connection.rollback)

    def close(self) -> None:
        self._thread.submit(self._connection.close).result(PATIENCE_SECONDS)
        self._thread.shutdown()

    def is_blocked(self, observer: Connection) -> bool:
        """Whether its step waits for another transaction. Returns as soon as that, or the end of the step, is certain."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._running.done():
            if self._raw.is_postgres:
                query = text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")
                blocked = bool(observer.execute(query, {"pid": self._pid}).scalar_one())
                observer.rollback()
            else:
                blocked = self._refused.wait(0.001)
            if blocked and not self._running.done():
                return True
            assert time.monotonic() < deadline, "a step neither ended nor waited for anybody"
        self._running.result()
        return False

    def forget_refusals(self) -> None:
        """Let only refusals count that come after this, and after the one that may be on its way at this moment."""
        self._refused.clear()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._running.done() and not self._refused.wait(0.001):
            assert time.monotonic() < deadline, "a step neither ended nor waited for anybody"
        self._refused.clear()

    def wait(self) -> None:
        """Until the step that was blocked has ended."""
        self._running.result(PATIENCE_SECONDS)

    def _start(self, step: Callable[[], object]) -> None:
        assert self._running.done()
        self._refused.clear()

        def run() -> None:
            step()

        self._running = self._thread.submit(run)
