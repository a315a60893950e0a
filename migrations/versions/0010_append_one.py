"""A single message is appended by one function, which calls no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del schema
    if op.get_context().dialect.name == "postgresql":
        run_sql("0010_append_one.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    del schema
    if op.get_context().dialect.name == "postgresql":
        run_sql("0010_down.sql")
