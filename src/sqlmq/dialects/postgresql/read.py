"""Read the log on Postgres: one statement for all partitions, in binary, through psycopg or a user's driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.numeric import Int8BinaryLoader
from sqlalchemy import text

from sqlmq.dialects.base import Position, most_partitions
from sqlmq.dialects.postgresql.append import array_cursor, bigints

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

    from sqlmq.model.message import LogRow

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01, the origin of Postgres' timestamps, in microseconds after 1970-01-01."""

_PORTABLE_MOMENT = f"CAST(extract(epoch FROM m.created_at) * 1000000 AS bigint) - {POSTGRES_EPOCH_US}"


class ReadStatements:
    """The statements for tables with *prefix*, their schema, in which each percent sign is doubled."""

    def __init__(self, prefix: str) -> None:
        # An idle consumer runs only `ready`. ORDER BY and LIMIT make it an index look-up for each partition. An EXISTS
        # can become, and did become, a join that reads the whole log.
        self._ready_sql = f"""
            SELECT at.id, at.position
            FROM unnest(%b::bigint[], %b::bigint[]) AS at (id, position)
            CROSS JOIN LATERAL (
                SELECT FROM {prefix}sqlmq_partition p WHERE p.id = at.id AND p.topic_id IS NOT NULL LIMIT 1
            ) AS has_topic
            CROSS JOIN LATERAL (
                SELECT FROM {prefix}sqlmq_message m
                WHERE m.partition_id = at.id AND m.msg_offset >= at.position
                ORDER BY m.msg_offset LIMIT 1
            ) AS has_any
        """
        # All lateral, so that it starts at the first position and stops at the last one it needs.
        ready = f"WITH ready AS MATERIALIZED ({self._ready_sql} LIMIT %b::bigint)"
        # One index scan after the other, one for each partition, in the order of the scan. Sorting the rows again would
        # copy them all.
        self._small_sql = f"""
            {ready}
            SELECT m.* FROM ready r CROSS JOIN LATERAL (
                SELECT m.partition_id, m.msg_offset, m.key,
                    CASE WHEN octet_length(m.value) <= %b::bigint THEN m.value END AS value,
                    CAST(m.headers AS text), m.created_at
                FROM {prefix}sqlmq_message m
                WHERE m.partition_id = r.id AND m.msg_offset >= r.position
                ORDER BY m.msg_offset
                LIMIT (SELECT greatest(1, %b::bigint / count(*)) FROM ready)
            ) m
        """
        # The window adds up sizes without reading values that are stored out of line.
        self._within_sql = f"""
            {ready}
            SELECT r.id, m.msg_offset, m.key, m.value, CAST(m.headers AS text), m.created_at
            FROM ready r CROSS JOIN LATERAL (
                SELECT m.*, sum(octet_length(m.value)) OVER (ORDER BY m.msg_offset ROWS UNBOUNDED PRECEDING)
                    - octet_length(m.value) AS before
                FROM {prefix}sqlmq_message m
                WHERE m.partition_id = r.id AND m.msg_offset >= r.position
                ORDER BY m.msg_offset
                LIMIT (SELECT greatest(1, %b::bigint / count(*)) FROM ready)
            ) m
            WHERE m.before = 0 OR m.before + octet_length(m.value) <= (SELECT %b::bigint / count(*) FROM ready)
            ORDER BY r.id, m.msg_offset
        """

        # As text() of SQLAlchemy, where a colon begins a parameter.
        pieces = self._within_sql.replace("m.created_at", _PORTABLE_MOMENT).replace("%%", "%").split("%b::")
        names = ["ids", "offsets", "partitions", "at_most", "max_bytes"]
        kinds = ["bigint[]", "bigint[]", "bigint", "bigint", "bigint"]
        self._portable_sql = pieces[0].replace(":", "\\:") + "".join(
            f"CAST(:{name} AS {kind})" + piece.removeprefix(kind).replace(":", "\\:")
            for name, kind, piece in zip(names, kinds, pieces[1:], strict=True)
        )

    def ready(self, conn: Connection, positions: Collection[Position]) -> set[Position]:
        """Find positions as ``Dialect.ready``."""
        return {Position(id_, offset) for id_, offset in conn.exec_driver_sql(self._ready_sql, _columns(positions))}

    def small(self, conn: Connection, positions: Sequence[Position], limit: int, small: int) -> list[LogRow]:
        """Read as ``Dialect.read_small``."""
        connection = conn.connection.driver_connection
        if not isinstance(connection, psycopg.Connection):
            return self.within(conn, positions, limit, small * limit)
        ids, offsets = map(bigints, _columns(positions))
        return _fetch(connection, self._small_sql, (ids, offsets, most_partitions(limit), small, limit))

    def within(self, conn: Connection, positions: Sequence[Position], limit: int, max_bytes: int) -> list[LogRow]:
        """Read as ``Dialect.read_within``."""
        connection = conn.connection.driver_connection
        ids, offsets = _columns(positions)
        if isinstance(connection, psycopg.Connection):
            arrays = bigints(ids), bigints(offsets)
            return _fetch(connection, self._within_sql, (*arrays, most_partitions(limit), limit, max_bytes))
        # In a user's session, whose driver is not psycopg.
        parameters = {
            "ids": ids,
            "offsets": offsets,
            "partitions": most_partitions(limit),
            "at_most": limit,
            "max_bytes": max_bytes,
        }
        return [
            (id_, offset, key, value, headers, moment)
            for id_, offset, key, value, headers, moment in conn.execute(text(self._portable_sql), parameters)
        ]


def _columns(positions: Collection[Position]) -> tuple[list[int], list[int]]:
    return [position.partition_id for position in positions], [position.offset for position in positions]


def _fetch(connection: psycopg.Connection[Any], sql: str, parameters: tuple[object, ...]) -> list[LogRow]:
    with array_cursor(connection) as cursor:
        # Raw timestamps: a datetime for each would double the cost of a read.
        cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
        rows: list[LogRow] = cursor.execute(sql.encode(), parameters).fetchall()
        return rows
