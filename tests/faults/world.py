"""One queue on one database for many cases, what is used of it, and how the database is looked at between them."""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Engine, create_engine, event, text

from sqlmq import MQ, AsyncMQ, Message
from sqlmq.database.append_connection import AppendConnection
from tests.faults.wire import BACKGROUND
from tests.support.blocking import blocking
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.database.append_connection import AutocommitConnection
    from tests.conftest import DatabaseUnderTest
    from tests.support.blocking import Loop

PARTITIONS = 2
FEED = 6
"""How many messages the topic `feed` has, half of them in each partition."""


class Held:
    """The pooled connections that somebody has at the moment, by the thread that took them; of every engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[int, str] = {}
        event.listen(Engine, "checkout", self._take)
        event.listen(Engine, "checkin", self._give)
        event.listen(Engine, "detach", self._give)
        self._give_spare, self._take_spare = AppendConnection.give, AppendConnection.take
        setattr(AppendConnection, "give", lambda spare, one: self._put_by(spare, one))  # noqa: B010, PLW0108 - of a class
        setattr(AppendConnection, "take", lambda spare: self._take_up(spare))  # noqa: B010, PLW0108

    def remove(self) -> None:
        setattr(AppendConnection, "give", self._give_spare)  # noqa: B010
        setattr(AppendConnection, "take", self._take_spare)  # noqa: B010
        event.remove(Engine, "checkout", self._take)
        event.remove(Engine, "checkin", self._give)
        event.remove(Engine, "detach", self._give)

    @property
    def by_callers(self) -> list[str]:
        with self._lock:
            return [name for name in self._threads.values() if name not in BACKGROUND]

    def _take(self, _connection: object, record: object, _proxy: object) -> None:
        with self._lock:
            self._threads[id(record)] = threading.current_thread().name

    def _give(self, _connection: object, record: object) -> None:
        with self._lock:
            self._threads.pop(id(record), None)

    # One that is kept for the next append is nobody's.

    def _put_by(self, spare: AppendConnection, one: AutocommitConnection) -> None:
        record = one.connection.connection._connection_record
        self._give_spare(spare, one)
        if spare._kept is one:
            self._give(None, record)

    def _take_up(self, spare: AppendConnection) -> AutocommitConnection:
        one = self._take_spare(spare)
        self._take(None, one.connection.connection._connection_record, None)
        return one


class World:
    """A database with a queue in use: topics `orders` and `feed`, a table of the application's, and a way to look at it all."""

    def __init__(self, database: DatabaseUnderTest, loop: Loop | None = None) -> None:
        self.database = database
        self.way = "sync" if loop is None else "asyncio"
        self.held = Held()
        self.loop = loop
        self.engine = create_engine(database.url)
        if not database.is_postgres:
            # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable
            event.listen(self.engine, "connect", lambda conn, _: setattr(conn, "isolation_level", None))
            event.listen(self.engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN"))
            # SQLAlchemy takes a transaction to be over whose COMMIT has failed, and rolls nothing back.
            event.listen(self.engine, "checkin", lambda conn, _: conn and conn.rollback())
            # Nor before it closes a connection that an interrupt has left in the middle of a statement.
            event.listen(self.engine, "invalidate", lambda conn, *_: conn.rollback())
        self._looking = create_engine(database.url, isolation_level="AUTOCOMMIT")
        self._numbers = itertools.count()
        self.mq = self.make_mq()
        self.mq.create_topic("orders", PARTITIONS)
        self.mq.create_topic("feed", PARTITIONS)
        self.producer = self.mq.producer("orders")
        feed = self.mq.producer("feed")
        for number in range(FEED):
            feed.produce_with_partition(Message(b"%d" % number, b"k%d" % number), number % PARTITIONS)
        self.execute("CREATE TABLE effect (name VARCHAR(50))")

    def make_mq(self) -> MQ:
        options: dict[str, Any] = {
            "schema": self.database.schema,
            "default_partitions": PARTITIONS,
            "commit_interval_seconds": 60.0,
            "poll_max_seconds": 0.02,
        }
        if self.loop is not None:
            return blocking(AsyncMQ(self.database.url, **options), self.loop)
        return MQ(self.database.url, **options)

    def close(self) -> None:
        try:
            self.mq.close()
            self.engine.dispose()
            self._looking.dispose()
            if self.loop is not None:
                self.loop.close()
            assert self.held.by_callers == []
        finally:
            self.held.remove()

    def name(self, prefix: str = "x") -> str:
        """A name that nothing else has."""
        return f"{prefix}{next(self._numbers)}"

    # What the database says.

    def execute(self, sql: str, **parameters: object) -> None:
        with self._looking.connect() as connection:
            connection.execute(text(self._in_schema(sql)), parameters)

    def rows(self, sql: str, **parameters: object) -> Sequence[Any]:
        with self._looking.connect() as connection:
            return connection.execute(text(self._in_schema(sql)), parameters).all()

    def _in_schema(self, sql: str) -> str:
        return sql.replace("sqlmq_", f"{self.database.schema}.sqlmq_") if self.database.schema else sql

    def count(self, sql: str, **parameters: object) -> int:
        (found,) = self.rows(sql, **parameters)
        return int(found[0])

    def in_log(self, topic: str, value: bytes) -> int:
        """How often *value* is in the log of *topic*."""
        return self.count(f"SELECT count(*) {_LOG} AND m.value = :value", topic=topic, value=value)

    def staged(self, value: bytes) -> int:
        """How often *value* waits until it is due."""
        return self.count("SELECT count(*) FROM sqlmq_staged WHERE value = :value", value=value)

    def effects(self, name: str) -> int:
        return self.count("SELECT count(*) FROM effect WHERE name = :name", name=name)

    def positions(self, topic: str, group: str) -> list[int]:
        """The group's positions, by partition."""
        return [
            row[0]
            for row in self.rows(
                "SELECT coalesce(max(o.committed_offset), 0) FROM sqlmq_partition p"
                " JOIN sqlmq_topic t ON t.id = p.topic_id JOIN sqlmq_group g ON g.topic_id = t.id"
                " LEFT JOIN sqlmq_group_offset o ON o.group_id = g.id AND o.partition_id = p.id"
                " WHERE t.name = :topic AND g.name = :group GROUP BY p.id, p.number ORDER BY p.number",
                topic=topic,
                group=group,
            )
        ]

    def end_leases(self, group: str) -> None:
        """Have the members of *group*, which are closed, and could perhaps not say so, be dead."""
        long_ago = "'2000-01-01'" if self.database.is_postgres else "0"
        self.execute(
            f"UPDATE sqlmq_member SET heartbeat_at = {long_ago} WHERE group_id IN"
            " (SELECT id FROM sqlmq_group WHERE name = :name)",
            name=group,
        )

    def free_claims(self, group: str) -> None:
        """Do what whoever joins does: free what a close has left that was interrupted, and called again."""
        self.execute(
            "UPDATE sqlmq_claim SET member_id = NULL WHERE member_id NOT IN (SELECT id FROM sqlmq_member)"
            " AND group_id IN (SELECT id FROM sqlmq_group WHERE name = :name)",
            name=group,
        )

    def parked(self, group: str) -> dict[tuple[int, int], str]:
        """What the group has set aside: states, by partition and offset."""
        return {
            (row[0], row[1]): row[2]
            for row in self.rows(
                "SELECT p.number, a.msg_offset, a.state FROM sqlmq_parked a JOIN sqlmq_group g ON g.id = a.group_id"
                " JOIN sqlmq_partition p ON p.id = a.partition_id WHERE g.name = :group ORDER BY p.number, a.msg_offset",
                group=group,
            )
        }

    # What must hold between two cases.

    def check_nothing_is_held(self) -> None:
        """No connection is taken, no transaction open, but by the threads of the background, which end theirs by themselves."""
        until(lambda: self.held.by_callers == [], "connections given back to the pool", seconds=5)
        if self.database.is_postgres:
            until(lambda: self._open_transactions() == [], "no transaction open", seconds=5)

    def _open_transactions(self) -> list[str]:
        found = self.rows(
            "SELECT state || ': ' || query FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state <> 'idle' AND backend_type = 'client backend'"
        )
        return [row[0] for row in found]

    def check_log(self) -> None:
        """Offsets are dense in each partition of each topic, no position is beyond its end, no claim a stranger's."""
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


_LOG = (
    "FROM sqlmq_message m JOIN sqlmq_partition p ON p.id = m.partition_id JOIN sqlmq_topic t ON t.id = p.topic_id"
    " WHERE t.name = :topic"
)


class Scene(ABC):
    """One operation on objects of its own, or shared ones, that can be called again and again, and what it must have done."""

    may_raise: ClassVar[tuple[type[BaseException], ...]] = ()
    """What may be raised beside our own errors, where the documentation says so."""
    is_once = False
    """Whether a second call does what the first did, and no more: closing, making what is there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.mq = world.mq

    @abstractmethod
    def call(self) -> None:
        """Do it."""

    @abstractmethod
    def check(self, sure: int, perhaps: int) -> None:
        """Assert that it was done as often as it returned, and, if its outcome is unknown, once more or not."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Part with what was made for it."""


def between(found: int, sure: int, perhaps: int, what: str) -> None:
    assert sure <= found <= sure + perhaps, f"{what}: {found}, after {sure} that returned and {perhaps} unknown"


class Deadline:
    """How long a case may take: it is tried again for five seconds at the most."""

    SECONDS = 20.0

    def __init__(self) -> None:
        self._began = time.monotonic()

    def check(self) -> None:
        seconds = time.monotonic() - self._began
        assert seconds < self.SECONDS, f"took {seconds:.1f} seconds"
