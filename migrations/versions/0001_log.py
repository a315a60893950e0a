"""The log: topics, their partitions, and the messages in them; on Postgres with the functions that append."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from alembic.operations import Operations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")
JSON = postgresql.JSONB().with_variant(sa.Text, "sqlite")
FUNCTIONS = ("0001_partitioners.sql", "0001_append.sql")


def upgrade(op: Operations, schema: str | None) -> None:
    on_postgres = op.get_context().dialect.name == "postgresql"
    now = sa.text("now()" if on_postgres else "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    op.create_table(
        "sqlmq_topic",
        sa.Column("id", ID, sa.Identity() if on_postgres else None, nullable=False),
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("partitions", sa.Integer, nullable=False),
        sa.Column("partitioner", sa.String(20), nullable=False),
        sa.Column("retention_seconds", sa.Float),
        sa.Column("retention_bytes", sa.BigInteger),
        sa.Column("retention_messages", sa.BigInteger),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_topic_pkey"),
        sa.UniqueConstraint("name", name="sqlmq_topic_name_key"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sqlmq_partition",
        sa.Column("id", ID, sa.Identity() if on_postgres else None, nullable=False),
        sa.Column("topic_id", sa.BigInteger),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("start_offset", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("id", name="sqlmq_partition_pkey"),
        sa.UniqueConstraint("topic_id", "number", name="sqlmq_partition_topic_id_number_key"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sqlmq_message",
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("msg_offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSON),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("partition_id", "msg_offset", name="sqlmq_message_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )
    if on_postgres:
        _tune_messages(op, schema)
        _create_functions(op, schema)


def downgrade(op: Operations, schema: str | None) -> None:
    if op.get_context().dialect.name == "postgresql":
        prefix = _prefix(schema)
        for signature in (
            "sqlmq_produce(text, text, text, jsonb, integer)",
            "sqlmq_produce(text, bytea, bytea, jsonb, integer)",
            "sqlmq_append(bigint[], integer[], bytea[], bytea[], text[])",
            "sqlmq_partition_for_key(text, bytea, integer)",
            "sqlmq_crc32(bytea)",
            "sqlmq_fnv1a(bytea)",
            "sqlmq_murmur2(bytea)",
        ):
            _execute(op, f"DROP FUNCTION {prefix}{signature}")
    for table in ("sqlmq_message", "sqlmq_partition", "sqlmq_topic"):
        op.drop_table(table, schema=schema)


def _tune_messages(op: Operations, schema: str | None) -> None:
    table = f"{_prefix(schema)}sqlmq_message"
    # Truncating the end of the table takes a lock that stops everybody, and cancels queries on standbys.
    _execute(op, f"ALTER TABLE {table} SET (vacuum_truncate = off, toast.vacuum_truncate = off)")
    # Writes JSON of 10 kB and more at two to three times the rate of the default. Not every server is built with it.
    _execute(
        op,
        f"""DO $sqlmq$ BEGIN
    ALTER TABLE {table} ALTER COLUMN value SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value OR syntax_error THEN NULL;
END $sqlmq$""",
    )


def _create_functions(op: Operations, schema: str | None) -> None:
    # Without a schema of their own, the functions look for their tables where they were made, whoever calls them.
    search_path = "" if schema else " SET search_path FROM CURRENT"
    for file in FUNCTIONS:
        text = (Path(__file__).parent.parent / "sql" / file).read_text(encoding="utf-8")
        text = text.replace("{schema}", _prefix(schema)).replace("{search_path}", search_path)
        for statement in text.split("$sqlmq$;\n"):
            if "CREATE FUNCTION" in statement:
                _execute(op, statement + "$sqlmq$")


def _execute(op: Operations, statement: str) -> None:
    op.execute(sa.DDL(statement.replace("%", "%%")))


def _prefix(schema: str | None) -> str:
    return '"{}".'.format(schema.replace('"', '""')) if schema else ""
