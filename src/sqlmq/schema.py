"""The tables. The revisions in ``migrations/`` create them; a test compares both.

``partition_id`` leads every key of the hot tables and stands in every hot statement. The hot tables are append-only,
and the rows that are locked (``sqlmq_partition``, ``sqlmq_claim``) are rewritten only when they change hands: with an
old snapshot held somewhere, a counter updated per append falls to a twentieth of its rate within 100,000 updates, a
locked unchanging row stays level. There are no foreign keys, because each row would have to lock and check them.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    cast,
    extract,
    false,
    literal_column,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement

from sqlmq.model.message import moment_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from decimal import Decimal

    from sqlalchemy import Connection, Engine
    from sqlalchemy.sql.compiler import SQLCompiler

REVISION = "0001"
"""The newest revision in ``migrations/``, which this version works with."""

VERSION_TABLE = "sqlmq_version"
"""Where alembic keeps the revision; apart from the application's own."""

PREFIX = "sqlmq_"
"""The prefix of the names of all our tables."""

VIEWS_WITHOUT_CONTENT = (
    "sqlmq_lag",
    "sqlmq_partition_stats",
    "sqlmq_topic_stats",
    "sqlmq_member_stats",
    "sqlmq_partition_barrier",
)
"""Views without keys, error texts or any other part of a message."""
DETAILED_VIEWS = ("sqlmq_parked_message", "sqlmq_dead_letter", "sqlmq_blocked_key")

# SQLite generates a primary key only if its type is called INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")


def epoch_microseconds(moment: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the microseconds since 1970 of *moment* on Postgres."""
    return cast(extract("epoch", moment) * literal_column("1000000"), BigInteger)


class _Moment(TypeDecorator[datetime]):
    """A moment on Postgres, which is read as microseconds: its text depends on the session's DateStyle and TimeZone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return type_coerce(epoch_microseconds(column), self)

    def process_result_value(self, value: int | None, dialect: object) -> datetime | None:
        del dialect
        return None if value is None else moment_at(value)


class _Number(TypeDecorator[float]):
    """A float on Postgres, which is read as numeric: its text depends on the session's extra_float_digits."""

    impl = Float
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return type_coerce(cast(column, Numeric), self)

    def process_result_value(self, value: Decimal | None, dialect: object) -> float | None:
        del dialect
        return None if value is None else float(value)


# Microseconds since 1970 on SQLite, which has no type for a moment.
Moment = _Moment().with_variant(BigInteger, "sqlite")
Number = _Number().with_variant(Float, "sqlite")
Json = postgresql.JSONB().with_variant(Text, "sqlite")


_TRANSLATION = "schema_translate_map"


def own_names(conn: Connection) -> AbstractContextManager[None]:
    """Ignore the ``schema_translate_map`` of *conn*, an application's connection, for a block of statements of ours.

    The map is meant for the application's tables. Each place that runs our statements on its connection uses this.
    """
    theirs = conn.get_execution_options().get(_TRANSLATION)
    return _without(conn, theirs) if theirs else _NOTHING


_NOTHING = nullcontext()


@contextmanager
def _without(conn: Connection, theirs: Mapping[str | None, str | None]) -> Iterator[None]:
    conn.execution_options(schema_translate_map=None)
    try:
        yield
    finally:
        if not conn.closed:
            conn.execution_options(schema_translate_map=theirs)


def with_own_names(engine: Engine) -> Engine:
    """Return *engine*, with the same pool, without its ``schema_translate_map``."""
    has_map = engine.get_execution_options().get(_TRANSLATION)
    return engine.execution_options(schema_translate_map=None) if has_map else engine


def quoted(name: str) -> str:
    """Return *name* as an identifier of SQL, in quotes."""
    return '"' + name.replace('"', '""') + '"'


class _DefaultByDialect(ColumnElement[object]):
    """A server default that each database writes in its own way."""

    inherit_cache = False

    def __init__(self, *, on_postgresql: str, on_sqlite: str) -> None:
        self.sql = {"postgresql": on_postgresql, "sqlite": on_sqlite}


@compiles(_DefaultByDialect)
def _compile_default(default: _DefaultByDialect, compiler: SQLCompiler, **_: object) -> str:
    return default.sql[compiler.dialect.name]


_NOW = _DefaultByDialect(
    on_postgresql="now()", on_sqlite="(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))"
)
# The moment of the append, not of the transaction's beginning. The partition is locked by then, so moments are sorted as
# offsets are, unless the clock is set back.
_APPENDED = _DefaultByDialect(on_postgresql="clock_timestamp()", on_sqlite=_NOW.sql["sqlite"])
# 1970 for messages that are due at their commit: the id decides their order, and not a clock.
_AT_ONCE = _DefaultByDialect(on_postgresql="to_timestamp(0)", on_sqlite="0")
# Told apart by it, two rows that had the same id, before and after the tables were emptied.
_TOKEN = _DefaultByDialect(on_postgresql="floor(random() * 16777216)::integer", on_sqlite="(random() & 16777215)")
_ZERO = text("0")
_WEEK = text("604800")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables in one schema."""

    metadata: MetaData
    topic: Table
    partition: Table
    partition_parent: Table
    message: Table
    group: Table
    member: Table
    claim: Table
    group_offset: Table
    staged: Table
    parked: Table
    eviction: Table


@lru_cache
def tables(schema: str | None) -> Tables:
    """The tables in *schema*; None is the connection's default schema."""
    metadata = MetaData(schema=schema, naming_convention={"pk": "%(table_name)s_pkey"})
    return Tables(
        metadata,
        topic=Table(
            "sqlmq_topic",
            metadata,
            Column("id", Id, primary_key=True, autoincrement=False),
            Column("name", String(50), nullable=False),
            Column("partitions", Integer, nullable=False),
            Column("partitioner", String(20), nullable=False),
            Column("retention_max_age_seconds", Number),
            Column("retention_max_bytes", BigInteger),
            Column("retention_max_messages", BigInteger),
            Column("retention_protect_groups", Boolean, nullable=False, server_default=true()),
            Column("retention_protect_max_seconds", Number),
            Column("retention_group_expiry_seconds", Number, nullable=False, server_default=_WEEK),
            Column("created_at", Moment, nullable=False, server_default=_NOW),
            UniqueConstraint("name", name="sqlmq_topic_name_key"),
        ),
        # A partition without a topic belonged to a deleted one, and stays until its messages are deleted.
        partition=Table(
            "sqlmq_partition",
            metadata,
            Column("id", Id, primary_key=True, autoincrement=False),
            Column("topic_id", BigInteger),
            Column("number", Integer, nullable=False),
            Column("topic_partitions", Integer, nullable=False, server_default=_ZERO),
            Column("start_offset", BigInteger, nullable=False, server_default=_ZERO),
            Column("purged_to", BigInteger, nullable=False, server_default=_ZERO),
            Column("measured_to", BigInteger),
            Column("measured_bytes", BigInteger),
            UniqueConstraint("topic_id", "number", name="sqlmq_partition_topic_id_number_key"),
        ),
        # The partitions whose keys an added partition took over, and the offset below which they must be read first.
        partition_parent=Table(
            "sqlmq_partition_parent",
            metadata,
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("parent_id", BigInteger, primary_key=True, autoincrement=False),
            Column("barrier_offset", BigInteger, nullable=False),
            sqlite_with_rowid=False,
        ),
        message=Table(
            "sqlmq_message",
            metadata,
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("msg_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("key", LargeBinary),
            Column("value", LargeBinary, nullable=False),
            Column("headers", Json),
            Column("created_at", Moment, nullable=False, server_default=_APPENDED),
            sqlite_with_rowid=False,
        ),
        group=Table(
            "sqlmq_group",
            metadata,
            Column("id", Id, primary_key=True, autoincrement=False),
            Column("topic_id", BigInteger, nullable=False),
            Column("name", String(100), nullable=False),
            Column("start_from", String(20), nullable=False),
            Column("created_at", Moment, nullable=False, server_default=_NOW),
            UniqueConstraint("topic_id", "name", name="sqlmq_group_topic_id_name_key"),
        ),
        member=Table(
            "sqlmq_member",
            metadata,
            Column("id", Id, primary_key=True, autoincrement=False),
            Column("group_id", BigInteger, nullable=False),
            Column("name", String(200), nullable=False),
            Column("lease_seconds", Number, nullable=False),
            Column("wants_partitions", Boolean, nullable=False, server_default=false()),
            Column("joined_at", Moment, nullable=False, server_default=_NOW),
            Column("heartbeat_at", Moment, nullable=False, server_default=_NOW),
            Index("sqlmq_member_group_id_idx", "group_id"),
        ),
        claim=Table(
            "sqlmq_claim",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("member_id", BigInteger),
            Column("epoch", BigInteger, nullable=False, server_default=_ZERO),
            Column("changed_at", Moment, nullable=False, server_default=_NOW),
            sqlite_with_rowid=False,
        ),
        group_offset=Table(
            "sqlmq_group_offset",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("committed_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("committed_at", Moment, nullable=False, server_default=_NOW),
            Column("in_flight_to", BigInteger),
            sqlite_with_rowid=False,
        ),
        staged=Table(
            "sqlmq_staged",
            metadata,
            Column("id", Id, Identity(), primary_key=True),
            Column("partition_id", BigInteger, nullable=False),
            Column("topic_partitions", Integer, nullable=False, server_default=_ZERO),
            Column("key", LargeBinary),
            Column("value", LargeBinary, nullable=False),
            Column("headers", Json),
            Column("deliver_at", Moment, nullable=False, server_default=_AT_ONCE),
            Column("created_at", Moment, nullable=False, server_default=_NOW),
            Column("token", Integer, nullable=False, server_default=_TOKEN),
            Index("sqlmq_staged_partition_id_deliver_at_id_idx", "partition_id", "deliver_at", "id"),
            Index("sqlmq_staged_deliver_at_idx", "deliver_at"),
            sqlite_autoincrement=True,
        ),
        parked=Table(
            "sqlmq_parked",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("msg_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("key", LargeBinary),
            Column("state", String(10), nullable=False),
            Column("attempts", Integer, nullable=False, server_default=_ZERO),
            Column("attempt_started_at", Moment),
            Column("due_at", Moment, nullable=False, server_default=_NOW),
            Column("error_type", Text),
            Column("last_error", Text),
            Column("traceback", Text),
            Column("first_failed_at", Moment),
            Column("last_failed_at", Moment),
            Column("parked_at", Moment, nullable=False, server_default=_NOW),
        ),
        eviction=Table(
            "sqlmq_eviction",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("kind", String(10), primary_key=True),
            Column("from_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("to_offset", BigInteger, nullable=False),
            Column("evicted_at", Moment, nullable=False, server_default=_NOW),
            sqlite_with_rowid=False,
        ),
    )
