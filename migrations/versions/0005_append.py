"""Appending faster on Postgres: one INSERT whatever the number of partitions, and functions for a single message.

The tables stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del schema
    if op.get_context().dialect.name == "postgresql":
        run_sql("0005_append.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del schema
    if op.get_context().dialect.name == "postgresql":
        run_sql("0005_down.sql")
        run_sql("0004_down.sql")
        run_sql("0004_publish.sql")
