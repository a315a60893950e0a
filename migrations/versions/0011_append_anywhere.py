"""Messages without a key go to a partition that is free, by one function."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del schema
    if op.get_context().dialect.name == "postgresql":
        run_sql("0011_append_anywhere.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del schema
    if op.get_context().dialect.name == "postgresql":
        run_sql("0011_down.sql")
