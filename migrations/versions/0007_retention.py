"""What retention needs: its terms on the topic, how far each partition is deleted and measured, what groups have lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")
TOPIC = {
    "retention_protects": (sa.Boolean(create_constraint=False), sa.true()),
    "retention_max_seconds": (sa.Float, None),
    "group_expiry_seconds": (sa.Float, sa.text("604800")),
}


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del run_sql
    on_postgres = op.get_context().dialect.name == "postgresql"
    now = sa.text("now()" if on_postgres else "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    for name, (kind, default) in TOPIC.items():
        column = sa.Column(name, kind, nullable=default is None, server_default=default)
        op.add_column("sqlmq_topic", column, schema=schema)
    for column in (
        sa.Column("purged_to", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("sized_to", sa.BigInteger),
        sa.Column("sized_bytes", sa.BigInteger),
    ):
        op.add_column("sqlmq_partition", column, schema=schema)
    # A topic whose deletion was interrupted has counted on start_offset how far it is.
    partition = sa.table("sqlmq_partition", sa.column("start_offset"), sa.column("purged_to"), schema=schema)
    op.execute(partition.update().values(purged_to=partition.c.start_offset))
    op.create_table(
        "sqlmq_eviction",
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("from_offset", sa.BigInteger, nullable=False),
        sa.Column("to_offset", sa.BigInteger, nullable=False),
        sa.Column("evicted_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("group_id", "partition_id", "kind", "from_offset", name="sqlmq_eviction_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del run_sql
    # What is below start_offset and still there would never be deleted: earlier versions search from there on.
    message = sa.table("sqlmq_message", sa.column("partition_id"), sa.column("msg_offset"), schema=schema)
    partition = sa.table("sqlmq_partition", sa.column("id"), sa.column("start_offset"), schema=schema)
    start = sa.select(partition.c.start_offset).where(partition.c.id == message.c.partition_id).scalar_subquery()
    op.execute(message.delete().where(message.c.msg_offset < start))
    op.drop_table("sqlmq_eviction", schema=schema)
    # Not altered in batches: SQLite would copy the tables, and has been able to drop a column since 3.35.
    for column in ("sized_bytes", "sized_to", "purged_to"):
        op.drop_column("sqlmq_partition", column, schema=schema)
    for column in reversed(TOPIC):
        op.drop_column("sqlmq_topic", column, schema=schema)
