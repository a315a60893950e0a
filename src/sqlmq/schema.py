"""The tables, as SQLAlchemy sees them. The migrations make them; a test compares the two.

``partition_id`` leads every key of the hot tables and stands in every hot statement. The hot tables are append-only,
and the rows that are locked (``sqlmq_partition``, ``sqlmq_claim``) are rewritten only when they change hands: with an
old snapshot held somewhere, a counter updated per append falls to a twentieth of its rate within 100,000 updates, a
locked unchanging row stays level. There are no foreign keys to lock and check for each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql

REVISION = "0011"
"""The newest revision in ``migrations/``, which this version works with."""

VERSION_TABLE = "sqlmq_version"
"""Where alembic keeps the revision; apart from the application's own."""

PREFIX = "sqlmq_"
"""What the names of all our tables begin with."""

# SQLite fills a primary key by itself only if it is called INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")
# Microseconds since 1970 on SQLite, which has no type for a moment.
Moment = DateTime(timezone=True).with_variant(BigInteger, "sqlite")
Json = postgresql.JSONB().with_variant(Text, "sqlite")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables in one schema."""

    metadata: MetaData
    topic: Table
    partition: Table
    origin: Table
    message: Table
    group: Table
    member: Table
    claim: Table
    group_offset: Table
    staged: Table
    parked: Table
    eviction: Table


@lru_cache
def tables(schema: str | None) -> Tables:
    """The tables in *schema*; None is the connection's default schema."""
    metadata = MetaData(schema=schema)
    return Tables(
        metadata,
        topic=Table(
            "sqlmq_topic",
            metadata,
            Column("id", Id, primary_key=True),
            Column("name", String(50), nullable=False),
            Column("partitions", Integer, nullable=False),
            Column("partitioner", String(20), nullable=False),
            Column("retention_seconds", Float),
            Column("retention_bytes", BigInteger),
            Column("retention_messages", BigInteger),
            Column("retention_protects", Boolean(create_constraint=False), nullable=False),
            Column("retention_max_seconds", Float),
            Column("group_expiry_seconds", Float, nullable=False),
            Column("created_at", Moment, nullable=False),
            UniqueConstraint("name", name="sqlmq_topic_name_key"),
        ),
        # A partition without a topic is left over from a deleted one until its messages are deleted, too.
        partition=Table(
            "sqlmq_partition",
            metadata,
            Column("id", Id, primary_key=True),
            Column("topic_id", BigInteger),
            Column("number", Integer, nullable=False),
            Column("start_offset", BigInteger, nullable=False),
            Column("purged_to", BigInteger, nullable=False),
            Column("sized_to", BigInteger),
            Column("sized_bytes", BigInteger),
            Column("topic_partitions", Integer, nullable=False),
            UniqueConstraint("topic_id", "number", name="sqlmq_partition_topic_id_number_key"),
        ),
        # What a partition that was added later continues, and up to where.
        origin=Table(
            "sqlmq_origin",
            metadata,
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("origin_id", BigInteger, primary_key=True, autoincrement=False),
            Column("barrier_offset", BigInteger, nullable=False),
        ),
        message=Table(
            "sqlmq_message",
            metadata,
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("msg_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("key", LargeBinary),
            Column("value", LargeBinary, nullable=False),
            Column("headers", Json),
            Column("created_at", Moment, nullable=False),
        ),
        group=Table(
            "sqlmq_group",
            metadata,
            Column("id", Id, primary_key=True),
            Column("topic_id", BigInteger, nullable=False),
            Column("name", String(100), nullable=False),
            Column("start_from", String(20), nullable=False),
            Column("created_at", Moment, nullable=False),
            UniqueConstraint("topic_id", "name", name="sqlmq_group_topic_id_name_key"),
        ),
        member=Table(
            "sqlmq_member",
            metadata,
            Column("id", Id, primary_key=True),
            Column("group_id", BigInteger, nullable=False),
            Column("name", String(200), nullable=False),
            Column("lease_seconds", Float, nullable=False),
            Column("is_waiting", Boolean(create_constraint=False), nullable=False),
            Column("joined_at", Moment, nullable=False),
            Column("heartbeat_at", Moment, nullable=False),
            Index("sqlmq_member_group_id_idx", "group_id"),
        ),
        claim=Table(
            "sqlmq_claim",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("member_id", BigInteger),
            Column("epoch", BigInteger, nullable=False),
            Column("changed_at", Moment, nullable=False),
        ),
        group_offset=Table(
            "sqlmq_group_offset",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("committed_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("committed_at", Moment, nullable=False),
            Column("in_hand_to", BigInteger),
        ),
        staged=Table(
            "sqlmq_staged",
            metadata,
            Column("id", Id, primary_key=True),
            Column("partition_id", BigInteger, nullable=False),
            Column("key", LargeBinary),
            Column("value", LargeBinary, nullable=False),
            Column("headers", Json),
            Column("deliver_at", Moment, nullable=False),
            Column("created_at", Moment, nullable=False),
            Column("topic_partitions", Integer, nullable=False),
            Index("sqlmq_staged_partition_id_deliver_at_id_idx", "partition_id", "deliver_at", "id"),
            Index("sqlmq_staged_deliver_at_idx", "deliver_at"),
        ),
        parked=Table(
            "sqlmq_parked",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("msg_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("key", LargeBinary),
            Column("state", String(10), nullable=False),
            Column("attempts", Integer, nullable=False),
            Column("due_at", Moment, nullable=False),
            Column("last_error", Text),
            Column("parked_at", Moment, nullable=False),
            Column("error_type", Text),
            Column("traceback", Text),
            Column("first_failed_at", Moment),
            Column("last_failed_at", Moment),
            Column("trying_since", Moment),
        ),
        eviction=Table(
            "sqlmq_eviction",
            metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("partition_id", BigInteger, primary_key=True, autoincrement=False),
            Column("kind", String(10), primary_key=True),
            Column("from_offset", BigInteger, primary_key=True, autoincrement=False),
            Column("to_offset", BigInteger, nullable=False),
            Column("evicted_at", Moment, nullable=False),
        ),
    )
