"""The rights each role needs on Postgres: four roles, from one that only reads to the owner of the tables.

All topics share the tables, so rights apply to a whole queue. Queues that must be kept apart need schemas of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from sqlmq.schema import DETAILED_VIEWS, VIEWS_WITHOUT_CONTENT, quoted

Rights: TypeAlias = Mapping[str, str]
"""The privileges, as in GRANT, for each table or view."""

ALL_TABLES = (
    "sqlmq_version",
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
FUNCTIONS = (
    "sqlmq_append(bigint[], integer[], bytea[], bytea[], text[], integer[], regclass)",
    "sqlmq_append_to_any(bigint[], bytea[], text[], integer, regclass)",
    "sqlmq_append_one(bigint, bytea, bytea, text, integer, regclass)",
    "sqlmq_is_grown(bigint[], integer[], regclass)",
    "sqlmq_next_offset(bigint, integer, regclass)",
    "sqlmq_next_offsets(bigint[], integer[], regclass)",
    "sqlmq_partition_for_key(text, bytea, integer)",
    "sqlmq_produce(text, bytea, bytea, jsonb, integer, regclass)",
    "sqlmq_produce(text, text, text, jsonb, integer, regclass)",
    "sqlmq_publish(bigint[], integer[], bytea[], bytea[], text[], integer[], regclass)",
    "sqlmq_publish_one(bigint, bytea, bytea, text, integer, regclass)",
    "sqlmq_raise_deleted(bigint[], bigint[])",
    "sqlmq_raise_isolation()",
)
"""All are for appending, and run with the caller's rights."""

# Locking a row needs the right to update one of its columns: here columns on which nothing depends, or that are measured again.
_LOCK_TOPICS = "SELECT, UPDATE (created_at)"
_LOCK_PARTITIONS = "SELECT, UPDATE (measured_bytes)"

MONITOR: Rights = {
    **dict.fromkeys(
        ("sqlmq_version", "sqlmq_topic", "sqlmq_partition", "sqlmq_group", "sqlmq_member", "sqlmq_claim"), "SELECT"
    ),
    "sqlmq_group_offset": "SELECT",
    "sqlmq_eviction": "SELECT",
    # Which are due; not what they are.
    "sqlmq_staged": "SELECT (partition_id, deliver_at, created_at)",
    **dict.fromkeys(VIEWS_WITHOUT_CONTENT, "SELECT"),
}
"""Sees lag, members, sizes and losses, and nothing of a message."""

PRODUCER: Rights = {
    **dict.fromkeys(("sqlmq_version", "sqlmq_topic", "sqlmq_group", "sqlmq_member", "sqlmq_claim"), "SELECT"),
    "sqlmq_partition": _LOCK_PARTITIONS,
    # Which offset is the next; not what is in the log.
    "sqlmq_message": "SELECT (partition_id, msg_offset), INSERT",
    "sqlmq_staged": "SELECT, INSERT, UPDATE, DELETE",
}
"""Appends to topics that are there, also later, and in its own transactions. Reads no message but what waits to be due."""

CONSUMER: Rights = {
    "sqlmq_version": "SELECT",
    "sqlmq_topic": _LOCK_TOPICS,
    # Every consumer also moves what is due, and deletes what retention lets go.
    "sqlmq_partition": "SELECT, UPDATE (start_offset, purged_to, measured_to, measured_bytes)",
    "sqlmq_message": "SELECT, INSERT, DELETE",
    "sqlmq_group": "SELECT, INSERT",
    **dict.fromkeys(
        ("sqlmq_member", "sqlmq_claim", "sqlmq_group_offset", "sqlmq_parked"), "SELECT, INSERT, UPDATE, DELETE"
    ),
    "sqlmq_eviction": "SELECT, INSERT, UPDATE",
    "sqlmq_staged": "SELECT, INSERT, UPDATE, DELETE",
    **dict.fromkeys((*VIEWS_WITHOUT_CONTENT, *DETAILED_VIEWS), "SELECT"),
}
"""Reads topics that are there, in groups, and does what keeps them; decides about dead letters. Produces as well."""

ADMIN: Rights = dict.fromkeys((*ALL_TABLES, *VIEWS_WITHOUT_CONTENT, *DETAILED_VIEWS), "ALL")
"""Makes and deletes topics, resets groups. Tables are changed by their owner alone, who runs ``sqlmq db upgrade``."""

ROLES: Mapping[str, Rights] = {"monitor": MONITOR, "producer": PRODUCER, "consumer": CONSUMER, "admin": ADMIN}
APPENDING = ("producer", "consumer", "admin")
"""The roles that may call the functions."""


def grants(kind: str, role: str, *, schema: str | None = None) -> list[str]:
    """Return the statements that make *role*, an existing role, a monitor, producer, consumer or admin.

    They revoke what the role could do before, so they can run again, also after an upgrade.
    """
    prefix = "" if schema is None else f"{quoted(schema)}."
    to = quoted(role)
    everything = ", ".join(prefix + name for name in (*ALL_TABLES, *VIEWS_WITHOUT_CONTENT, *DETAILED_VIEWS))
    statements = [] if schema is None else [f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {to}"]
    statements.append(f"REVOKE ALL ON {everything} FROM {to}")
    functions = ", ".join(prefix + signature for signature in FUNCTIONS)
    statements.append(f"REVOKE ALL ON FUNCTION {functions} FROM {to}")
    statements += [f"GRANT {rights} ON {prefix}{name} TO {to}" for name, rights in ROLES[kind].items()]
    if kind in APPENDING:
        statements.append(f"GRANT EXECUTE ON FUNCTION {functions} TO {to}")
    return statements
