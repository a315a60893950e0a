"""Consumer groups: their members, who has claimed which partition, and how far each group has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from alembic.operations import Operations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")


def upgrade(op: Operations, schema: str | None, **_: object) -> None:
    on_postgres = op.get_context().dialect.name == "postgresql"
    now = sa.text("now()" if on_postgres else "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    op.create_table(
        "sqlmq_group",
        sa.Column("id", ID, sa.Identity() if on_postgres else None, nullable=False),
        sa.Column("topic_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("start_from", sa.String(20), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_group_pkey"),
        sa.UniqueConstraint("topic_id", "name", name="sqlmq_group_topic_id_name_key"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sqlmq_member",
        sa.Column("id", ID, sa.Identity() if on_postgres else None, nullable=False),
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("lease_seconds", sa.Float, nullable=False),
        sa.Column("is_waiting", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("joined_at", MOMENT, nullable=False, server_default=now),
        sa.Column("heartbeat_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_member_pkey"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_index("sqlmq_member_group_id_idx", "sqlmq_member", ["group_id"], schema=schema)
    op.create_table(
        "sqlmq_claim",
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("member_id", sa.BigInteger),
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("changed_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("group_id", "partition_id", name="sqlmq_claim_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sqlmq_group_offset",
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("committed_offset", sa.BigInteger, nullable=False),
        sa.Column("committed_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("group_id", "partition_id", "committed_offset", name="sqlmq_group_offset_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )


def downgrade(op: Operations, schema: str | None, **_: object) -> None:
    for table in ("sqlmq_group_offset", "sqlmq_claim", "sqlmq_member", "sqlmq_group"):
        op.drop_table(table, schema=schema)
