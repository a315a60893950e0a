"""What a group needs to set messages aside: attempts that are counted first, reasons, and views for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    op.add_column("sqlmq_group_offset", sa.Column("in_hand_to", sa.BigInteger), schema=schema)
    for column in (
        sa.Column("error_type", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("first_failed_at", MOMENT),
        sa.Column("last_failed_at", MOMENT),
        sa.Column("trying_since", MOMENT),
    ):
        op.add_column("sqlmq_parked", column, schema=schema)
    # Nobody looks for what is due but the owner of a partition, who has read its rows.
    op.drop_index("sqlmq_parked_due_at_idx", "sqlmq_parked", schema=schema)
    run_sql("0006_views.sql" if op.get_context().dialect.name == "postgresql" else "0006_views_sqlite.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    run_sql("0006_down.sql")
    op.create_index("sqlmq_parked_due_at_idx", "sqlmq_parked", ["due_at"], schema=schema)
    # Not altered in batches: SQLite would copy the tables, and has been able to drop a column since 3.35.
    for column in ("trying_since", "last_failed_at", "first_failed_at", "traceback", "error_type"):
        op.drop_column("sqlmq_parked", column, schema=schema)
    op.drop_column("sqlmq_group_offset", "in_hand_to", schema=schema)
