"""Topics that get more partitions: how many there are is told with each append, and what has to be read before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    for table in ("sqlmq_partition", "sqlmq_staged"):
        column = sa.Column("topic_partitions", sa.Integer, nullable=False, server_default=sa.text("0"))
        op.add_column(table, column, schema=schema)
    partition = sa.table(
        "sqlmq_partition", sa.column("id"), sa.column("topic_id"), sa.column("topic_partitions"), schema=schema
    )
    staged = sa.table("sqlmq_staged", sa.column("partition_id"), sa.column("topic_partitions"), schema=schema)
    topic = sa.table("sqlmq_topic", sa.column("id"), sa.column("partitions"), schema=schema)
    partitions = sa.select(topic.c.partitions).where(topic.c.id == partition.c.topic_id).scalar_subquery()
    op.execute(partition.update().where(partition.c.topic_id.is_not(None)).values(topic_partitions=partitions))
    known = sa.select(partition.c.topic_partitions).where(partition.c.id == staged.c.partition_id).scalar_subquery()
    op.execute(staged.update().values(topic_partitions=sa.func.coalesce(known, sa.text("0"))))
    op.create_table(
        "sqlmq_origin",
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("origin_id", sa.BigInteger, nullable=False),
        sa.Column("barrier_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "origin_id", name="sqlmq_origin_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )
    run_sql("0009_views.sql")
    if op.get_context().dialect.name == "postgresql":
        run_sql("0009_growth.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    if op.get_context().dialect.name == "postgresql":
        run_sql("0009_down.sql")
        run_sql("0005_append.sql")
    run_sql("0009_views_down.sql")
    op.drop_table("sqlmq_origin", schema=schema)
    # Not altered in batches: SQLite would copy the tables, and has been able to drop a column since 3.35.
    for table in ("sqlmq_staged", "sqlmq_partition"):
        op.drop_column(table, "topic_partitions", schema=schema)
