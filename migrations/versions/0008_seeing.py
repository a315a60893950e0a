"""Views for whoever looks: lag, what topics hold and how fast they grow, members."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del schema
    run_sql("0008_views.sql" if op.get_context().dialect.name == "postgresql" else "0008_views_sqlite.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del op, schema
    run_sql("0008_down.sql")
