"""Publishing in transactions of every isolation level: ``sqlmq_publish``, and staged messages that know their partition.

Nothing has written to ``sqlmq_staged`` before this revision, so it is made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")
JSON = postgresql.JSONB().with_variant(sa.Text, "sqlite")


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    on_postgres = op.get_context().dialect.name == "postgresql"
    now = sa.text("now()" if on_postgres else "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    op.drop_table("sqlmq_staged", schema=schema)
    op.create_table(
        "sqlmq_staged",
        sa.Column("id", ID, sa.Identity() if on_postgres else None, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSON),
        # 1970 for what is due as soon as it is committed: among those, the id decides the order, not a clock.
        sa.Column(
            "deliver_at", MOMENT, nullable=False, server_default=sa.text("to_timestamp(0)" if on_postgres else "0")
        ),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_staged_pkey"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    columns = ["partition_id", "deliver_at", "id"]
    op.create_index("sqlmq_staged_partition_id_deliver_at_id_idx", "sqlmq_staged", columns, schema=schema)
    op.create_index("sqlmq_staged_deliver_at_idx", "sqlmq_staged", ["deliver_at"], schema=schema)
    if on_postgres:
        run_sql("0004_publish.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    on_postgres = op.get_context().dialect.name == "postgresql"
    now = sa.text("now()" if on_postgres else "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    if not op.get_context().as_sql:
        staged = sa.table("sqlmq_staged", sa.column("id"), schema=schema)
        if op.get_bind().execute(sa.select(staged.c.id).limit(1)).first() is not None:
            message = "sqlmq_staged has messages that are not in the log yet. Let a consumer run until it is empty."
            raise RuntimeError(message)
    op.drop_table("sqlmq_staged", schema=schema)
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
    if on_postgres:
        run_sql("0001_append.sql")
        run_sql("0004_down.sql")
