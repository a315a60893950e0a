"""The state of a queue as its tables show it, read past the library: logs, positions, parked and staged messages."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Engine

    from sqlmq import Consumer, ReceivedMessage

Place = tuple[int, int]
"""Partition and offset of a message."""

_TOPIC = "sqlmq_partition p JOIN sqlmq_topic t ON t.id = p.topic_id"
_LOG = "sqlmq_message m JOIN sqlmq_partition p ON p.id = m.partition_id JOIN sqlmq_topic t ON t.id = p.topic_id"


class QueueState:
    """The tables of the queue in *schema*, read and changed on connections of *engine*, each call in a transaction of its own.

    In SQL that it is given, the tables stand without their schema.
    """

    def __init__(self, engine: Engine, schema: str | None) -> None:
        self.engine = engine
        self._schema = schema

    def with_schema(self, sql: str) -> str:
        """Name the schema of each table, view and function of the queue in *sql*."""
        return sql.replace("sqlmq_", f"{self._schema}.sqlmq_") if self._schema else sql

    def rows(self, sql: str, **parameters: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(self.with_schema(sql)), parameters)]

    def column(self, sql: str, **parameters: object) -> list[Any]:
        """Return the first column of a query."""
        return [row[0] for row in self.rows(sql, **parameters)]

    def count(self, sql: str, **parameters: object) -> int:
        """Return the only number of a query."""
        ((found,),) = self.rows(sql, **parameters)
        return int(found)

    def execute(self, sql: str, **parameters: object) -> None:
        """Change something."""
        with self.engine.begin() as connection:
            connection.execute(text(self.with_schema(sql)), parameters)

    # What is there.

    def log(self, topic: str) -> dict[Place, bytes]:
        """Return the values in the log of *topic*, in order; with those before its start that are still to be deleted."""
        found = self.rows(
            f"SELECT p.number, m.msg_offset, m.value FROM {_LOG} WHERE t.name = :topic ORDER BY p.number, m.msg_offset",
            topic=topic,
        )
        return {(number, offset): bytes(value) for number, offset, value in found}

    def texts(self, topic: str) -> dict[int, list[str]]:
        """Return the texts in the log of *topic*, by partition, without empty ones; fail if an offset is missing."""
        log = self.log(topic)
        check_dense(log, {})
        found: dict[int, list[str]] = {}
        for (partition, _), value in log.items():
            found.setdefault(partition, []).append(value.decode())
        return found

    def count_in_log(self, topic: str, value: bytes) -> int:
        """Return how often *value* is in the log of *topic*."""
        return self.count(
            f"SELECT count(*) FROM {_LOG} WHERE t.name = :topic AND m.value = :value", topic=topic, value=value
        )

    def starts(self, topic: str) -> dict[int, int]:
        """Return the first offset that *topic* keeps, by partition."""
        return dict(self.rows(f"SELECT p.number, p.start_offset FROM {_TOPIC} WHERE t.name = :topic", topic=topic))

    def positions(self, topic: str, group: str) -> list[int]:
        """Return the positions of *group*, by partition; none if there is no such group."""
        return self.column(
            f"SELECT coalesce(max(o.committed_offset), 0) FROM {_TOPIC} JOIN sqlmq_group g ON g.topic_id = t.id"
            " LEFT JOIN sqlmq_group_offset o ON o.group_id = g.id AND o.partition_id = p.id"
            " WHERE t.name = :topic AND g.name = :group GROUP BY p.id, p.number ORDER BY p.number",
            topic=topic,
            group=group,
        )

    def parked(self, group: str) -> dict[Place, str]:
        """Return the states of the messages that *group* has parked."""
        found = self.rows(
            "SELECT p.number, a.msg_offset, a.state FROM sqlmq_parked a JOIN sqlmq_group g ON g.id = a.group_id"
            " JOIN sqlmq_partition p ON p.id = a.partition_id WHERE g.name = :group ORDER BY p.number, a.msg_offset",
            group=group,
        )
        return {(number, offset): state for number, offset, state in found}

    def epochs(self) -> list[int]:
        """Return the epochs of all claims."""
        return self.column("SELECT epoch FROM sqlmq_claim ORDER BY partition_id")

    def staged(self, value: bytes | None = None) -> int:
        """Return how many messages, or how many with *value*, are committed and not in the log yet.

        They are delayed ones, and those of transactions with another isolation level than READ COMMITTED.
        """
        if value is None:
            return self.count("SELECT count(*) FROM sqlmq_staged")
        return self.count("SELECT count(*) FROM sqlmq_staged WHERE value = :value", value=value)

    def members(self, group: str) -> int:
        return self.count(
            "SELECT count(*) FROM sqlmq_member m JOIN sqlmq_group g ON g.id = m.group_id WHERE g.name = :group",
            group=group,
        )

    def busy_sessions(self) -> list[str]:
        """Return what each other session on Postgres does that is in a transaction, or ends one."""
        return self.column(
            "SELECT state || ': ' || query FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state <> 'idle' AND backend_type = 'client backend'"
        )

    # What a test changes.

    def expire_leases(self, group: str | None = None) -> None:
        """End the leases of the members of *group*, or of all, as if they had died long ago."""
        of_group = " WHERE group_id IN (SELECT id FROM sqlmq_group WHERE name = :group)" if group else ""
        self._expire(of_group, group=group)

    def expire_lease(self, consumer: Consumer) -> None:
        """End the lease of *consumer*, which goes on and does not know."""
        self.expire_member(consumer._core.member_id)

    def expire_member(self, member_id: int) -> None:
        """End the lease of one member."""
        self._expire(" WHERE id = :id", id=member_id)

    def _expire(self, which: str, **parameters: object) -> None:
        long_ago = "0" if self.engine.dialect.name == "sqlite" else "to_timestamp(0)"
        self.execute(f"UPDATE sqlmq_member SET heartbeat_at = {long_ago}{which}", **parameters)

    def make_older(self, seconds: float) -> None:
        """Make all messages and commits *seconds* older."""
        self._set_back(seconds, message="created_at", group_offset="committed_at")

    def make_memberships_older(self, seconds: float) -> None:
        """Set back by *seconds* when members joined and claims changed."""
        self._set_back(seconds, member="joined_at", claim="changed_at")

    def set_clock_back(self, seconds: float) -> None:
        """Move all that is stored *seconds* ahead, as a database's clock sees it that was set back by as much."""
        self._set_back(
            -seconds, member="heartbeat_at", claim="changed_at", group_offset="committed_at", message="created_at"
        )
        self._set_back(-seconds, member="joined_at", parked="due_at")
        self._set_back(-seconds, parked="last_failed_at", group="created_at")
        self._set_back(-seconds, parked="parked_at")

    def _set_back(self, seconds: float, **columns: str) -> None:
        is_on_sqlite = self.engine.dialect.name == "sqlite"
        interval = f"{round(seconds * 1e6)}" if is_on_sqlite else f"interval '{seconds} seconds'"
        for table, column in columns.items():
            self.execute(f"UPDATE sqlmq_{table} SET {column} = {column} - {interval}")

    # What must hold whatever has happened.

    def check(self) -> None:
        """Offsets have no gaps in any partition, no position is beyond its end, and members that are gone have no claim."""
        gaps = self.rows(
            "SELECT p.id, count(*), min(m.msg_offset), max(m.msg_offset) FROM sqlmq_message m"
            " JOIN sqlmq_partition p ON p.id = m.partition_id WHERE m.msg_offset >= p.start_offset"
            " GROUP BY p.id, p.start_offset HAVING count(*) <> max(m.msg_offset) - p.start_offset + 1"
        )
        assert gaps == [], f"gaps: {gaps}"
        beyond = self.rows(
            "SELECT o.group_id, o.partition_id, o.committed_offset FROM sqlmq_group_offset o"
            " JOIN sqlmq_partition p ON p.id = o.partition_id WHERE o.committed_offset > p.start_offset"
            " AND NOT EXISTS (SELECT 1 FROM sqlmq_message m WHERE m.partition_id = p.id AND m.msg_offset = o.committed_offset - 1)"
        )
        assert beyond == [], f"positions beyond the end: {beyond}"
        strangers = self.rows(
            "SELECT c.group_id, c.partition_id FROM sqlmq_claim c LEFT JOIN sqlmq_member m ON m.id = c.member_id"
            " WHERE c.member_id IS NOT NULL AND m.id IS NULL"
        )
        assert strangers == [], f"claims of members that are gone: {strangers}"


def place_of(message: ReceivedMessage) -> Place:
    return message.partition, message.offset


def check_dense(log: Iterable[Place], starts: Mapping[int, int]) -> None:
    """Each partition's offsets begin at its start, or at 0, and none is missing."""
    following = dict(starts)
    for partition, offset in log:
        assert offset == following.get(partition, 0), f"{partition}@{following.get(partition, 0)} is missing"
        following[partition] = offset + 1


def check_sqlite_file(url: str) -> None:
    """SQLite finds the file of *url* sound."""
    connection = sqlite3.connect(make_url(url).database or "")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
