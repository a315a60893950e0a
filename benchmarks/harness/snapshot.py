"""Another session that holds an old snapshot, so the rows that it sees cannot be vacuumed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.harness.databases import BenchDatabase


@contextmanager
def old_snapshot(database: BenchDatabase) -> Iterator[None]:
    """Hold a snapshot, or on SQLite a read transaction, in a session of its own."""
    if database.is_postgres:
        with database.connect() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SELECT count(*) FROM sqlmq_partition")
            yield
            connection.execute("ROLLBACK")
        return
    file = database.open()
    file.execute("BEGIN")
    file.execute("SELECT count(*) FROM sqlmq_partition").fetchone()
    yield
    file.execute("ROLLBACK")
    file.close()
