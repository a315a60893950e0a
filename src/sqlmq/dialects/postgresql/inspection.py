"""Inspection of Postgres: settings, open transactions, the state of our tables, locks on claims, and permissions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import text

from sqlmq.dialects.base import ClaimHolder
from sqlmq.reports.doctor import DatabaseStatus, IdleSlot, OpenTransaction, TableHealth

if TYPE_CHECKING:
    from sqlalchemy import Connection, TextClause

_SETTINGS = text("""
    SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean,
        current_setting('default_transaction_isolation'),
        ARRAY(SELECT name || ' is ' || setting FROM pg_settings
            WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name),
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
        current_setting('max_connections')::integer, pg_backend_pid(), pg_has_role('pg_read_all_stats', 'USAGE')
""")
# Only members of pg_monitor see the state, and its time, of another user's session.
# Seconds are numeric, because the text of a float depends on extra_float_digits.
_TRANSACTIONS = text("""
    SELECT concat_ws(', ', 'process ' || pid, nullif(application_name, ''), state),
        CAST(date_part('epoch', clock_timestamp() - xact_start) AS numeric)
    FROM pg_stat_activity
    WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
        AND backend_type = 'client backend'
    ORDER BY xact_start
""")
# Before Postgres 16, the oldest snapshot of the whole server decides whether an empty index page can be reused.
_ELSEWHERE = text("""
    SELECT concat_ws(', ', 'process ' || pid || ' in database ' || datname, nullif(application_name, ''), state),
        CAST(date_part('epoch', clock_timestamp() - xact_start) AS numeric)
    FROM pg_stat_activity
    WHERE datname <> current_database() AND xact_start IS NOT NULL AND backend_type = 'client backend'
        AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        AND current_setting('server_version_num')::integer < 160000
    ORDER BY xact_start
""")
_IDLE_SLOTS = text("""
    SELECT slot_name, pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn
    )::bigint
    FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL ORDER BY slot_name
""")
_PREPARED = text("""
    SELECT gid, CAST(date_part('epoch', clock_timestamp() - prepared) AS numeric) FROM pg_prepared_xacts
    WHERE database = current_database() ORDER BY prepared
""")
_TABLES = text("""
    SELECT c.oid::regclass::text, coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0),
        -- Options are kept as they were written: off, 0, no, f, ...
        current_setting('autovacuum')::boolean AND coalesce((
            SELECT option_value::boolean FROM pg_options_to_table(c.reloptions) WHERE option_name = 'autovacuum_enabled'
        ), true),
        age(c.relfrozenxid)
    FROM pg_class c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
    WHERE c.relkind = 'r' AND starts_with(c.relname, 'sqlmq_')
        AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(:topic))
    ORDER BY c.relname
""")
# pg_locks has no row locks, but a transaction that took one has this lock on the table until it ends.
_HOLDERS_SQL = text("""
    SELECT DISTINCT a.pid, coalesce(a.application_name, '') AS application, coalesce(a.state, '') AS state,
        CAST(coalesce(date_part('epoch', clock_timestamp() - a.xact_start), 0) AS numeric) AS seconds
    FROM pg_locks l
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.mode = 'RowShareLock' AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.relation = to_regclass(:claim) AND a.pid <> pg_backend_pid()
    ORDER BY seconds DESC
""")


def database_status(conn: Connection, topic_table: str) -> DatabaseStatus:
    """Read what a role without further rights can see."""
    standby, read_only, isolation, off, used, most, pid, sees_sessions = conn.execute(_SETTINGS).one()
    why = "default_transaction_read_only is on" if read_only else None
    return DatabaseStatus(
        read_only="the server is a standby" if standby else why,
        isolation=isolation,
        is_pooled=pid != _connected_pid(conn),
        off=tuple(off),
        transactions=_open_transactions(conn, _TRANSACTIONS),
        prepared=_open_transactions(conn, _PREPARED),
        transactions_elsewhere=_open_transactions(conn, _ELSEWHERE),
        idle_slots=tuple(IdleSlot(*row) for row in conn.execute(_IDLE_SLOTS)),
        tables=tuple(TableHealth(*row) for row in conn.execute(_TABLES, {"topic": topic_table})),
        connections=(used, most),
        hides_sessions=not sees_sessions,
    )


def may_read(conn: Connection, table: str, column: str) -> bool:
    """Whether the session may read *column* of *table*."""
    sql = text("SELECT has_column_privilege(to_regclass(:table), :column, 'SELECT')")
    return bool(conn.scalar(sql, {"table": table, "column": column}))


def claim_holders(conn: Connection, claim_table: str) -> list[ClaimHolder]:
    """Return the transactions of other sessions that hold row locks on *claim_table*, the oldest first.

    Only members of ``pg_monitor`` see what another user's session does. Others see that it exists.
    """
    return [
        ClaimHolder(pid, application, state, float(seconds))
        for pid, application, state, seconds in conn.execute(_HOLDERS_SQL, {"claim": claim_table})
    ]


def _open_transactions(conn: Connection, statement: TextClause) -> tuple[OpenTransaction, ...]:
    return tuple(OpenTransaction(what, float(seconds)) for what, seconds in conn.execute(statement))


def _connected_pid(conn: Connection) -> int:
    driver = conn.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - check_engine ensures it
    return driver.info.backend_pid
