"""The log: topics, their partitions, and the messages in them; on Postgres with the functions that append."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")
JSON = postgresql.JSONB().with_variant(sa.Text, "sqlite")
FILES = ("0001_storage.sql", "0001_partitioners.sql", "0001_append.sql")


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
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
        for file in FILES:
            run_sql(file)


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    if op.get_context().dialect.name == "postgresql":
        run_sql("0001_down.sql")
    for table in ("sqlmq_message", "sqlmq_partition", "sqlmq_topic"):
        op.drop_table(table, schema=schema)
