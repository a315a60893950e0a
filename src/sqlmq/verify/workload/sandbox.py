"""The schema (Postgres) or file (SQLite) that belongs to one run.

It is created with the tables of the queue and two tables of the application, and removed after the run.
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


class SandboxTakenError(SqlmqError):
    """The schema or file already contains a queue. Nothing was changed."""


class Sandbox:
    """The schema or file of one run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.schema = plan.schema
        self._owns_schema = self._owns_file = False

    @contextmanager
    def created(self, *, keep: bool) -> Iterator[None]:
        """Create the tables, and remove them in the end unless *keep*. Raises SandboxTakenError or DatabaseError."""
        self._create()
        try:
            yield
        finally:
            if not keep:
                self._remove()

    def _create(self) -> None:
        path = database_file(self._plan)
        self._owns_file = path is not None and (not path.exists() or path.stat().st_size == 0)
        database = Database(self._plan.url, self.schema)
        try:
            database.write_unprepared(self._create_tables)
        finally:
            database.close()
        with MQ(self._plan.url, schema=self.schema) as mq:
            mq.create_topic(ORDERS, self._plan.partitions)
            mq.create_topic(TRIMMED, 2, retention=Retention(max_messages=KEEP_MESSAGES))
            mq.create_topic(COPIES, 2)

    def _create_tables(self, conn: Connection) -> None:
        self._owns_schema = self.schema is not None and not inspect(conn).has_schema(self.schema)
        self._check_free(conn)
        migrate.upgrade(conn, schema=self.schema)
        for name in (EFFECT, ROW):
            conn.execute(text(f"CREATE TABLE {self._named(conn, name)} (group_name text, m text NOT NULL)"))

    def _check_free(self, conn: Connection) -> None:
        where = (
            f"schema {self.schema!r}" if self.schema else "the file" if database_file(self._plan) else "the database"
        )
        taken = [name for name in (EFFECT, ROW) if inspect(conn).has_table(name, schema=self.schema)]
        if inspect(conn).has_table("sqlmq_topic", schema=self.schema):
            taken += conn.execute(
                select(column("name")).select_from(table("sqlmq_topic", schema=self.schema))
            ).scalars()
        if taken:
            message = (
                f"A run needs a schema or file of its own, but {where} already has {', '.join(map(repr, sorted(taken)[:5]))}. "
                "Nothing was changed. Omit --schema, or name another schema or file."
            )
            raise SandboxTakenError(message)

    def _remove(self) -> None:
        if self._owns_file:
            path = database_file(self._plan)
            for end in ("", "-wal", "-shm", "-journal"):
                Path(f"{path}{end}").unlink(missing_ok=True)
            return
        if not self._owns_schema:
            with MQ(self._plan.url, schema=self.schema) as mq:
                mq.delete_topics(ORDERS, TRIMMED, COPIES)
        with connected(self._plan.url) as conn:
            if self._owns_schema:
                conn.execute(DropSchema(self.schema or "", cascade=True))
            else:
                for name in (EFFECT, ROW):
                    conn.execute(text(f"DROP TABLE {self._named(conn, name)}"))
            conn.commit()

    def _named(self, conn: Connection, table: str) -> str:
        return qualified_name(conn, self.schema, table)


def qualified_name(conn: Connection, schema: str | None, table: str) -> str:
    """Return *table* quoted and with its schema, for use in SQL."""
    quote = conn.dialect.identifier_preparer.quote
    return quote(table) if schema is None else f"{quote(schema)}.{quote(table)}"


def database_file(plan: Plan) -> Path | None:
    """Return the SQLite file of the run; None on Postgres."""
    return None if plan.is_postgres else Path(make_url(plan.url).database or "").absolute()
