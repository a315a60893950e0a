"""What stands beside the log: messages that are not in it yet, and messages a group has set aside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from alembic.operations import Operations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")
JSON = postgresql.JSONB().with_variant(sa.Text, "sqlite")


def upgrade(op: Operations, schema: str | None, **_: object) -> None:
    on_postgres = op.get_context().dialect.name == "postgresql"
    now = sa.text("now()" if on_postgres else "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    op.create_table(
        "sqlmq_staged",
        sa.Column("id", ID, sa.Identity() if on_postgres else None, nullable=False),
        sa.Column("topic_id", sa.BigInteger, nullable=False),
        sa.Column("partition_number", sa.Integer),
        sa.Column("key", sa.LargeBinary),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSON),
        sa.Column("deliver_at", MOMENT, nullable=False, server_default=now),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_staged_pkey"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_index("sqlmq_staged_deliver_at_idx", "sqlmq_staged", ["deliver_at"], schema=schema)
    op.create_table(
        "sqlmq_parked",
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("msg_offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("due_at", MOMENT, nullable=False, server_default=now),
        sa.Column("last_error", sa.Text),
        sa.Column("parked_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("group_id", "partition_id", "msg_offset", name="sqlmq_parked_pkey"),
        schema=schema,
    )
    op.create_index("sqlmq_parked_due_at_idx", "sqlmq_parked", ["due_at"], schema=schema)


def downgrade(op: Operations, schema: str | None, **_: object) -> None:
    for table in ("sqlmq_parked", "sqlmq_staged"):
        op.drop_table(table, schema=schema)
