"""Postgres, through psycopg 3.

The hot statements go to the driver as they are: an array in binary form costs a third of the text form from 1,000
messages on. Append, read, errors, listening and inspection have modules of their own.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Interval,
    Numeric,
    String,
    cast,
    create_engine,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects import postgresql

from sqlmq.dialects.base import (
    ClaimedPosition,
    ClaimHolder,
    ConnectionSocket,
    Dialect,
    Listening,
    LockedRow,
    PartitionSlice,
    Position,
)
from sqlmq.dialects.postgresql import errors, inspection
from sqlmq.dialects.postgresql import listen as postgresql_listen
from sqlmq.dialects.postgresql.append import AppendStatements, array_cursor, begun, bigints, fits_arrays
from sqlmq.dialects.postgresql.read import POSTGRES_EPOCH_US, ReadStatements
from sqlmq.dialects.postgresql.session import conventions, socket
from sqlmq.dialects.postgresql.session.pooler import detect_pooler
from sqlmq.errors import InvalidURLError, IsolationError
from sqlmq.model.validation import check_postgresql_name
from sqlmq.schema import Moment, Number, epoch_microseconds, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import URL, Connection, Engine, Insert, Select, Table
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq.errors import SqlmqError
    from sqlmq.model.message import LogRow, RecordBatch
    from sqlmq.reports.doctor import DatabaseStatus

_CONNECT_TIMEOUT_SECONDS = 10
_FALLBACK_NAME = "fallback_application_name"
"""The name of connections in ``pg_stat_activity``, unless ``application_name`` or PGAPPNAME gives one.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-FALLBACK-APPLICATION-NAME
"""
_TCP_USER_TIMEOUT_MS = 30_000


class Postgresql(Dialect):
    """Postgres 13 and later."""

    name: ClassVar[str] = "postgresql"
    has_functions: ClassVar[bool] = True
    can_notify: ClassVar[bool] = True
    has_socket: ClassVar[bool] = True
    reads_in_parallel: ClassVar[bool] = True
    moments_from_us: ClassVar[int] = POSTGRES_EPOCH_US

    def __init__(self, schema: str | None) -> None:
        super().__init__(schema)
        if schema == "":
            message = "schema must be a name; leave it out for the connection's default schema."
            raise InvalidURLError(message)
        if schema is not None:
            check_postgresql_name(schema)
        self._prefix = f"{quoted(schema)}." if schema else ""
        self._topic_table = f"{self._prefix}sqlmq_topic"
        self._appending = AppendStatements(self._prefix)
        prefix = self._prefix.replace("%", "%%")
        self._reading = ReadStatements(prefix)
        # If another member took the claim over while this statement waited for the lock, Postgres evaluates the
        # conditions again on the new row, and the claim is not ours.
        # https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
        commit_sql = f"""
            WITH new AS (
                SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[])
                AS new (partition_id, epoch, position, in_flight_to)
            ), held AS MATERIALIZED (
                SELECT c.group_id, c.partition_id, new.position, new.in_flight_to
                FROM new JOIN {prefix}sqlmq_claim c ON c.partition_id = new.partition_id AND c.epoch = new.epoch
                WHERE c.group_id = %b::bigint AND c.member_id = %b::bigint
                ORDER BY c.partition_id
                FOR NO KEY UPDATE OF c
            ), written AS (
                INSERT INTO {prefix}sqlmq_group_offset (group_id, partition_id, committed_offset, in_flight_to)
                SELECT * FROM held ON CONFLICT
            )
            SELECT partition_id FROM held
            WHERE %b OR set_config('synchronous_commit', 'off', true) IS NOT NULL
        """
        self._commit_sql = commit_sql.replace("ON CONFLICT", "ON CONFLICT DO NOTHING")
        self._commit_in_flight_sql = commit_sql.replace(
            "ON CONFLICT",
            "ON CONFLICT (group_id, partition_id, committed_offset) DO UPDATE SET in_flight_to = excluded.in_flight_to",
        )

    def create_engine(self, url: URL) -> Engine:
        driver = url.drivername.partition("+")[2] or "psycopg"
        if driver != "psycopg":
            raise InvalidURLError(_wrong_driver(driver))
        return detect_pooler(create_engine(url.set(drivername="postgresql+psycopg"), **_engine_options(url)))

    def create_async_engine(self, url: URL) -> AsyncEngine:
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(url.set(drivername="postgresql+psycopg"), **_engine_options(url))
        detect_pooler(engine.sync_engine)
        return engine

    def blocking_url(self, url: URL) -> URL:
        driver = url.drivername.partition("+")[2]
        if driver in {"psycopg_async", "psycopg2"}:  # the options are libpq's
            return url.set(drivername="postgresql+psycopg")
        if driver != "asyncpg":
            return url
        query = {_ASYNCPG_SPELLINGS.get(name, name): value for name, value in url.query.items()}
        return url.set(
            drivername="postgresql+psycopg",
            query={name: value for name, value in query.items() if not name.startswith("prepared_statement_")},
        )

    def with_application_name(self, url: URL, name: str) -> URL:
        return url if _FALLBACK_NAME in url.query else url.update_query_dict({_FALLBACK_NAME: name})

    def check_engine(self, engine: Engine) -> None:
        if engine.dialect.driver != "psycopg":
            raise InvalidURLError(_wrong_driver(engine.dialect.driver))

    def check_session(self, conn: Connection) -> None:
        conventions.check(conn)

    def for_transactions(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="READ COMMITTED")

    def for_single_statements(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    def is_autocommit(self, conn: Connection) -> bool:
        connection = conn.connection.dbapi_connection
        return connection is not None and conn.dialect.detect_autocommit_setting(connection)

    def lock_and_watch(
        self, conn: Connection, wanted: Select[Any], *, quiet_seconds: float, vanished_seconds: float
    ) -> LockedRow:
        first = wanted.lateral("first")
        nothing = select(literal_column("1").label("one")).subquery("nothing")
        limits = _limits(quiet_seconds, vanished_seconds, conn.dialect.server_version_info or ())
        row = conn.execute(
            select(
                literal_column("current_setting('transaction_isolation')", String).label("isolation"),
                literal_column("CAST(pg_current_xact_id() AS text)", String).label("token"),
                first,
                *(literal_column(limit, String) for limit in limits),
            ).select_from(nothing.outerjoin(first, true()))
        ).one()
        if row.isolation not in ("read committed", "read uncommitted"):
            message = (
                f"The transaction is {row.isolation.upper()}, so it would see an old position of the group. Use READ "
                "COMMITTED: sessionmaker(engine.execution_options(isolation_level='READ COMMITTED'))."
            )
            raise IsolationError(message)
        # Without a row, all columns of *wanted* are null. Its first column is a key, which is never null.
        return LockedRow(None if row[2] is None else row, row.token)

    def is_same_transaction(self, token: str | None) -> ColumnElement[bool]:
        return literal_column(_TRANSACTION_ID, String) == token

    def can_append_in_one_statement(self, conn: Connection) -> bool:
        default: str = conn.exec_driver_sql("SHOW default_transaction_isolation").scalar_one()
        return default == "read committed"

    @contextlib.contextmanager
    def autocommitting(self, conn: Connection) -> Iterator[None]:
        connection = conn.connection.driver_connection
        assert isinstance(connection, psycopg.Connection)  # noqa: S101 - check_engine ensures it
        before = connection.autocommit
        connection.autocommit = True
        try:
            yield
        finally:
            if not connection.closed:
                connection.autocommit = before

    def takes_one_statement(self, contents: RecordBatch) -> bool:
        return fits_arrays(contents)

    def limit_lock_wait(self, conn: Connection, seconds: float) -> None:
        conn.exec_driver_sql(f"SET LOCAL lock_timeout = {int(seconds * 1000)}")

    def lock_schema(self, conn: Connection, version_table: str) -> None:
        # Asked before the first statement, which would change the answer.
        is_idle = conventions.is_idle(conn)
        # SHOW and SET take no snapshot.
        sees_newest = conn.exec_driver_sql("SHOW transaction_isolation").scalar_one() == "read committed"
        if not sees_newest and is_idle:
            conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            sees_newest = True
        # The number is "sqlmq" in ASCII. The lock ends with the transaction, so it is safe behind a pooler.
        conn.exec_driver_sql("SELECT pg_advisory_xact_lock(495874403697)")
        if not sees_newest:
            conventions.check_snapshot(conn, f"{self._prefix}{version_table}")

    def now(self) -> ColumnElement[object]:
        return func.clock_timestamp(type_=Moment)

    def began_at(self) -> ColumnElement[object]:
        return func.transaction_timestamp(type_=Moment)

    def seconds_from_now(self, seconds: float) -> ColumnElement[object]:
        later = func.clock_timestamp() + literal(seconds, Float) * literal_column("interval '1 second'", Interval)
        return type_coerce(later, Moment)

    def moment(self, at: datetime) -> ColumnElement[object]:
        return literal(at, Moment)

    def microseconds(self, moment: ColumnElement[object]) -> ColumnElement[int]:
        return epoch_microseconds(moment)

    def moment_of(self, stored: datetime) -> datetime:
        return stored

    def moment_shown(self, shown: datetime | None) -> datetime | None:
        return shown

    def database_status(self, conn: Connection) -> DatabaseStatus:
        return inspection.database_status(conn, self._topic_table)

    def may_read(self, conn: Connection, table: str, column: str) -> bool:
        return inspection.may_read(conn, f"{self._prefix}{table}", column)

    def claim_holders(self, conn: Connection) -> list[ClaimHolder]:
        return inspection.claim_holders(conn, f"{self._prefix}sqlmq_claim")

    def random_bits(self, bits: int) -> ColumnElement[int]:
        # Not random(): an application or a test suite may have called setseed(), and the same numbers would come again.
        return literal_column(f"(uuid_hash_extended(gen_random_uuid(), 0) & {(1 << bits) - 1})", BigInteger)

    def age_seconds(self, moment: ColumnElement[object]) -> ColumnElement[float]:
        # Numeric, because the text of a float depends on extra_float_digits.
        seconds = cast(func.date_part("epoch", func.clock_timestamp() - moment), Numeric)
        return type_coerce(seconds, Number)

    def insert_new(self, table: Table, unique: Sequence[str]) -> Insert:
        return postgresql.insert(table).on_conflict_do_nothing(index_elements=unique)

    def insert_or_update(
        self, table: Table, unique: Sequence[str], changed: Sequence[str], kept: Sequence[str] = ()
    ) -> Insert:
        new = postgresql.insert(table)
        columns: dict[str, ColumnElement[Any]] = {name: new.excluded[name] for name in changed}
        columns |= {name: func.coalesce(table.c[name], new.excluded[name]) for name in kept}
        return new.on_conflict_do_update(index_elements=unique, set_=columns)

    def commit_claimed(
        self,
        conn: Connection,
        group_id: int,
        member_id: int,
        positions: Sequence[ClaimedPosition],
        *,
        durably: bool,
        updating_in_flight: bool,
    ) -> set[int] | None:
        parameters = (*map(bigints, zip(*positions, strict=True)), group_id, member_id, durably)
        sql = self._commit_in_flight_sql if updating_in_flight else self._commit_sql
        with array_cursor(begun(conn)) as cursor:
            return {partition_id for (partition_id,) in cursor.execute(sql.encode(), parameters)}

    def append(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        return self._appending.append(conn, parts, contents)

    def append_to_any(
        self, conn: Connection, part: PartitionSlice, others: Sequence[int], contents: RecordBatch
    ) -> tuple[int, int]:
        if not fits_arrays(contents):
            return super().append_to_any(conn, part, others, contents)
        return self._appending.append_to_any(conn, part, others, contents)

    def publish(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int] | None:
        return self._appending.publish(conn, parts, contents)

    def identify(self, conn: Connection) -> tuple[object, ...]:
        # Includes the table: without a schema, the search path finds it, and that can differ inside one database.
        query = text(
            "SELECT CAST(current_database() AS text),"
            " CAST(CAST(date_part('epoch', pg_postmaster_start_time()) * 1000000 AS bigint) AS text),"
            " CAST(CAST(to_regclass(CAST(:topics AS text)) AS oid) AS text)"
        )
        return tuple(conn.execute(query, {"topics": self._topic_table}).one())

    def read_small(self, conn: Connection, positions: Sequence[Position], limit: int, small: int) -> list[LogRow]:
        return self._reading.small(conn, positions, limit, small)

    def read_within(self, conn: Connection, positions: Sequence[Position], limit: int, max_bytes: int) -> list[LogRow]:
        return self._reading.within(conn, positions, limit, max_bytes)

    def ready(self, conn: Connection, positions: Collection[Position]) -> set[Position]:
        return self._reading.ready(conn, positions)

    def notify(self, conn: Connection, payloads: Collection[str]) -> None:
        postgresql_listen.notify(conn, self._topic_table, payloads)

    def listen(self, engine: Engine, awaited: Callable[[object], contextlib.AbstractContextManager[None]]) -> Listening:
        return postgresql_listen.PostgresListening(engine, self._topic_table, awaited)

    def connection_socket(self, connection: object) -> ConnectionSocket | None:
        return socket.socket_of(connection)

    def translate(self, error: Exception, where: str) -> SqlmqError | None:
        return errors.translate(error, where)

    def quotes_rows(self, error: Exception) -> bool:
        return errors.quotes_rows(error)

    def is_transient(self, error: Exception) -> bool:
        return errors.is_transient(error)

    def is_disconnect(self, error: Exception) -> bool:
        return errors.is_disconnect(error)


# Options that asyncpg, or SQLAlchemy's dialect for it, names differently from libpq.
_ASYNCPG_SPELLINGS = {"ssl": "sslmode", "timeout": "connect_timeout"}

# The id of the outermost transaction. A later transaction has another id, or none.
_TRANSACTION_ID = "CAST(pg_current_xact_id_if_assigned() AS text)"

_MOST_MS = 2**31 - 1


def _limits(quiet_seconds: float, vanished_seconds: float, version: tuple[Any, ...]) -> list[str]:
    """Return the SQL that limits, for one transaction, how long the server waits for a silent or unreachable client.

    Without it, a server that gets no sign from a host that is gone keeps the transaction and its lock for two hours.
    https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-TCP-KEEPALIVES-IDLE
    """
    quiet_ms = min(_MOST_MS, max(1, int(quiet_seconds * 1000)))
    vanished_ms = min(_MOST_MS, max(1000, int(vanished_seconds * 1000)))
    probes = 3
    idle_seconds = max(1, vanished_ms // 2000)
    # Postgres shows the first two with a unit, such as 5min, and the others as bare numbers.
    limits = [
        ("idle_in_transaction_session_timeout", quiet_ms, "ms"),
        ("transaction_timeout", quiet_ms, "ms"),
        ("tcp_keepalives_idle", idle_seconds, ""),
        ("tcp_keepalives_interval", max(1, vanished_ms // 2000 // probes), ""),
        ("tcp_keepalives_count", probes, ""),
        ("tcp_user_timeout", vanished_ms, ""),
    ]
    return [_lower(*limit) for limit in limits if version >= (17,) or limit[0] != "transaction_timeout"]


def _lower(setting: str, value: int, unit: str) -> str:
    """Return the SQL that lowers *setting* to *value* until the transaction ends. 0 means no limit, so it is raised."""
    now = f"current_setting('{setting}')"
    if unit:
        number, off, most = f"CAST({now} AS interval)", "interval '0'", f"interval '{value}{unit}'"
    else:
        number, off, most = f"CAST({now} AS bigint)", "0", str(value)
    is_lower = f"{number} > {off} AND {number} <= {most}"
    return f"set_config('{setting}', CASE WHEN {is_lower} THEN {now} ELSE '{value}' END, true)"


def _engine_options(url: URL) -> dict[str, Any]:
    options = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": _TCP_USER_TIMEOUT_MS,
        _FALLBACK_NAME: "sqlmq",
    }
    # A value in the user's URL wins over ours.
    asked_for = {name: url.query[name] for name in options if name in url.query}
    connect_args = {**options, **asked_for, **conventions.SETTINGS}
    return {"hide_parameters": True, "max_overflow": 15, "connect_args": connect_args}


def _wrong_driver(driver: str) -> str:
    return f"On Postgres, sqlmq works with the driver psycopg (version 3), not {driver!r}: use postgresql+psycopg://"
