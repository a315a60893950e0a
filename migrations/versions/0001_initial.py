"""All tables, indexes and views, and on Postgres the functions that append.

Written out here and not taken from ``sqlmq.schema``, because a released revision never changes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite")
JSON = postgresql.JSONB().with_variant(sa.Text, "sqlite")
ZERO = sa.text("0")
TABLES = (
    "sqlmq_topic",
    "sqlmq_partition",
    "sqlmq_partition_parent",
    "sqlmq_message",
    "sqlmq_group",
    "sqlmq_member",
    "sqlmq_claim",
    "sqlmq_group_offset",
    "sqlmq_staged",
    "sqlmq_parked",
    "sqlmq_eviction",
)


def upgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    on_postgres = op.get_context().dialect.name == "postgresql"
    now = sa.text("now()" if on_postgres else "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    # The moment of the append, not of the transaction's beginning: moments are sorted as offsets are, but for clocks set back.
    appended = sa.text("clock_timestamp()") if on_postgres else now
    # 1970 for messages that are due at their commit: the id decides their order, and not a clock.
    at_once = sa.text("to_timestamp(0)" if on_postgres else "0")
    token = sa.text("floor(random() * 16777216)::integer" if on_postgres else "(random() & 16777215)")

    def given_id() -> sa.Column[int]:
        return sa.Column("id", ID, nullable=False, autoincrement=False)

    op.create_table(
        "sqlmq_topic",
        given_id(),
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("partitions", sa.Integer, nullable=False),
        sa.Column("partitioner", sa.String(20), nullable=False),
        sa.Column("retention_max_age_seconds", sa.Float),
        sa.Column("retention_max_bytes", sa.BigInteger),
        sa.Column("retention_max_messages", sa.BigInteger),
        sa.Column("retention_protect_groups", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("retention_protect_max_seconds", sa.Float),
        sa.Column("retention_group_expiry_seconds", sa.Float, nullable=False, server_default=sa.text("604800")),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_topic_pkey"),
        sa.UniqueConstraint("name", name="sqlmq_topic_name_key"),
        schema=schema,
    )
    op.create_table(
        "sqlmq_partition",
        given_id(),
        sa.Column("topic_id", sa.BigInteger),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("topic_partitions", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("start_offset", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("purged_to", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("measured_to", sa.BigInteger),
        sa.Column("measured_bytes", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="sqlmq_partition_pkey"),
        sa.UniqueConstraint("topic_id", "number", name="sqlmq_partition_topic_id_number_key"),
        schema=schema,
    )
    op.create_table(
        "sqlmq_partition_parent",
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("parent_id", sa.BigInteger, nullable=False),
        sa.Column("barrier_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "parent_id", name="sqlmq_partition_parent_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sqlmq_message",
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("msg_offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSON),
        sa.Column("created_at", MOMENT, nullable=False, server_default=appended),
        sa.PrimaryKeyConstraint("partition_id", "msg_offset", name="sqlmq_message_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sqlmq_group",
        given_id(),
        sa.Column("topic_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("start_from", sa.String(20), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_group_pkey"),
        sa.UniqueConstraint("topic_id", "name", name="sqlmq_group_topic_id_name_key"),
        schema=schema,
    )
    op.create_table(
        "sqlmq_member",
        given_id(),
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("lease_seconds", sa.Float, nullable=False),
        sa.Column("wants_partitions", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("joined_at", MOMENT, nullable=False, server_default=now),
        sa.Column("heartbeat_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="sqlmq_member_pkey"),
        schema=schema,
    )
    op.create_index("sqlmq_member_group_id_idx", "sqlmq_member", ["group_id"], schema=schema)
    op.create_table(
        "sqlmq_claim",
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("member_id", sa.BigInteger),
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default=ZERO),
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
        sa.Column("in_flight_to", sa.BigInteger),
        sa.PrimaryKeyConstraint("group_id", "partition_id", "committed_offset", name="sqlmq_group_offset_pkey"),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sqlmq_staged",
        sa.Column("id", ID, sa.Identity() if on_postgres else None, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("topic_partitions", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("key", sa.LargeBinary),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSON),
        sa.Column("deliver_at", MOMENT, nullable=False, server_default=at_once),
        sa.Column("created_at", MOMENT, nullable=False, server_default=now),
        sa.Column("token", sa.Integer, nullable=False, server_default=token),
        sa.PrimaryKeyConstraint("id", name="sqlmq_staged_pkey"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    due = ["partition_id", "deliver_at", "id"]
    op.create_index("sqlmq_staged_partition_id_deliver_at_id_idx", "sqlmq_staged", due, schema=schema)
    op.create_index("sqlmq_staged_deliver_at_idx", "sqlmq_staged", ["deliver_at"], schema=schema)
    op.create_table(
        "sqlmq_parked",
        sa.Column("group_id", sa.BigInteger, nullable=False),
        sa.Column("partition_id", sa.BigInteger, nullable=False),
        sa.Column("msg_offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("attempt_started_at", MOMENT),
        sa.Column("due_at", MOMENT, nullable=False, server_default=now),
        sa.Column("error_type", sa.Text),
        sa.Column("last_error", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("first_failed_at", MOMENT),
        sa.Column("last_failed_at", MOMENT),
        sa.Column("parked_at", MOMENT, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("group_id", "partition_id", "msg_offset", name="sqlmq_parked_pkey"),
        schema=schema,
    )
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
    if on_postgres:
        for topic in ("tables", "partitioners", "append", "publish", "views"):
            run_sql(f"postgresql/{topic}.sql")
    else:
        run_sql("sqlite/views.sql")
    run_sql("views.sql")


def downgrade(op: Operations, schema: str | None, run_sql: Callable[[str], None]) -> None:
    run_sql("drop_views.sql")
    if op.get_context().dialect.name == "postgresql":
        run_sql("postgresql/drop_functions.sql")
    for table in reversed(TABLES):
        op.drop_table(table, schema=schema)
