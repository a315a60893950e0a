"""Make the orders, what the groups write, and the queue, in one transaction."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sqlmq import migrate

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "fastapi_order",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer", sa.String, nullable=False),
        sa.Column("item", sa.String, nullable=False),
        sa.Column("cents", sa.Integer, nullable=False),
    )
    op.create_table(
        "fastapi_mail",
        sa.Column("order_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("recipient", sa.String, nullable=False),
    )
    op.create_table(
        "fastapi_search_entry",
        sa.Column("index", sa.String, primary_key=True),
        sa.Column("word", sa.String, primary_key=True),
        sa.Column("order_id", sa.Integer, primary_key=True),
    )
    op.create_table(
        "fastapi_sale",
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("offset", sa.Integer, primary_key=True),
        sa.Column("cents", sa.Integer, nullable=False),
    )
    # Named, so that this revision never changes its meaning.
    migrate.upgrade(op.get_bind(), revision="0001")


def downgrade() -> None:
    migrate.downgrade(op.get_bind())
    for table in ("fastapi_sale", "fastapi_search_entry", "fastapi_mail", "fastapi_order"):
        op.drop_table(table)
