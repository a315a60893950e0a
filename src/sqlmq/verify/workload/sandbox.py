"""Where a run keeps its queue: a schema of its own on Postgres, a file of its own on SQLite.

The tables of the queue, and two of the application's, are made before and removed after.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, inspect, make_url, select, table, text
from sqlalchemy.schema import DropSchema

from sqlmq import migrate
from sqlmq.database.database import Database
from sqlmq.errors import SqlmqError
from sqlmq.model.retention import Retention
from sqlmq.mq import MQ
from sqlmq.verify.databases import connected
from sqlmq.verify.plan import COPIES, KEEP_MESSAGES, ORDERS, TRIMMED
from sqlmq.verify.workload.application_tables import EFFECT, ROW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.plan import Plan


class PlaceTakenError(SqlmqError):
    """The schema or file has a queue that is not the run's, and stays as it is."""


class Place:
    """The database of one run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.schema = plan.schema
        self._is_schema_ours = self._is_file_ours = False

    @contextmanager
    def made(self, *, keep: bool) -> Iterator[None]:
        """Make it, and remove it in the end unless told to *keep* it. Raises PlaceTakenError, and DatabaseError."""
        self._make()
        try:
            yield
        finally:
            if not keep:
                self._remove()

    def _make(self) -> None:
        path = file_of(self._plan)
        self._is_file_ours = path is not None and (not path.exists() or path.stat().st_size == 0)
        database = Database(self._plan.url, self.schema)
        try:
            database.write_unprepared(self._make_tables)
        finally:
            database.close()
        with MQ(self._plan.url, schema=self.schema) as mq:
            mq.create_topic(ORDERS, self._plan.partitions)
            mq.create_topic(TRIMMED, 2, retention=Retention(max_messages=KEEP_MESSAGES))
            mq.create_topic(COPIES, 2)

    def _make_tables(self, conn: Connection) -> None:
        self._is_schema_ours = self.schema is not None and not inspect(conn).has_schema(self.schema)
        self._check_free(conn)
        migrate.upgrade(conn, schema=self.schema)
        for name in (EFFECT, ROW):
            conn.execute(text(f"CREATE TABLE {self._named(conn, name)} (group_name text, m text NOT NULL)"))

    def _check_free(self, conn: Connection) -> None:
        where = f"schema {self.schema!r}" if self.schema else "the file" if file_of(self._plan) else "the database"
        taken = [name for name in (EFFECT, ROW) if inspect(conn).has_table(name, schema=self.schema)]
        if inspect(conn).has_table("sqlmq_topic", schema=self.schema):
            taken += conn.execute(
                select(column("name")).select_from(table("sqlmq_topic", schema=self.schema))
            ).scalars()
        if taken:
            message = (
                f"Verifying needs a place of its own, and {where} has {', '.join(map(repr, sorted(taken)[:5]))} already. "
                "Nothing was changed. Leave --schema out, or name another schema or file."
            )
            raise PlaceTakenError(message)

    def _remove(self) -> None:
        if self._is_file_ours:
            path = file_of(self._plan)
            for end in ("", "-wal", "-shm", "-journal"):
                Path(f"{path}{end}").unlink(missing_ok=True)
            return
        if not self._is_schema_ours:
            with MQ(self._plan.url, schema=self.schema) as mq:
                mq.delete_topics(ORDERS, TRIMMED, COPIES)
        with connected(self._plan.url) as conn:
            if self._is_schema_ours:
                conn.execute(DropSchema(self.schema or "", cascade=True))
            else:
                for name in (EFFECT, ROW):
                    conn.execute(text(f"DROP TABLE {self._named(conn, name)}"))
            conn.commit()

    def _named(self, conn: Connection, table: str) -> str:
        return named(conn, self.schema, table)


def named(conn: Connection, schema: str | None, table: str) -> str:
    """*table* as it stands in a statement."""
    quote = conn.dialect.identifier_preparer.quote
    return quote(table) if schema is None else f"{quote(schema)}.{quote(table)}"


def file_of(plan: Plan) -> Path | None:
    """The file of the database; None on a server."""
    return None if plan.is_postgres else Path(make_url(plan.url).database or "").absolute()
