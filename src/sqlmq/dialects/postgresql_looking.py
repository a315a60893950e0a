"""What Postgres tells of sessions: what this one may read, and which others hold claims of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from sqlmq.dialects.base import Holder

if TYPE_CHECKING:
    from sqlalchemy import Connection

# A row's lock does not stand in pg_locks, but whoever has taken one has this lock on the table until the transaction ends.
_HOLDERS_SQL = text("""
    SELECT DISTINCT a.pid, coalesce(a.application_name, '') AS application, coalesce(a.state, '') AS state,
        coalesce(date_part('epoch', clock_timestamp() - a.xact_start), 0) AS seconds
    FROM pg_locks l
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.mode = 'RowShareLock' AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.relation = to_regclass(:claim) AND a.pid <> pg_backend_pid()
    ORDER BY seconds DESC
""")


def may_read(conn: Connection, table: str, column: str) -> bool:
    """Whether the session may read *column* of *table*."""
    sql = text("SELECT has_column_privilege(to_regclass(:table), :column, 'SELECT')")
    return bool(conn.scalar(sql, {"table": table, "column": column}))


def claim_holders(conn: Connection, claim_table: str) -> list[Holder]:
    """The transactions of other sessions that have rows of *claim_table* locked, the oldest first.

    What a session of another user does is told to members of ``pg_monitor`` alone; others see that it is there.
    """
    return [Holder(*row) for row in conn.execute(_HOLDERS_SQL, {"claim": claim_table})]
