"""A topic with one partition whose messages are as old as a test wants them to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine, select, update

from sqlmq import Message
from sqlmq.dialects import dialect_named
from tests.support.queue_state import QueueState

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from sqlmq import MQ, Consumer, Retention
    from tests.conftest import DatabaseUnderTest

DAY = 86_400.0


class Shelf:
    """A topic, "orders" by default, seen past the library where time has to pass."""

    def __init__(self, database: DatabaseUnderTest, mq: MQ, topic: str = "orders") -> None:
        self.mq = mq
        self.topic = topic
        self._engine = create_engine(database.url)
        self.state = QueueState(self._engine, database.schema)
        self._dialect = dialect_named("postgresql" if database.is_postgres else "sqlite", database.schema)
        mq.create_topic(topic, 1)
        self.producer = mq.producer(topic)

    def put(self, count: int, *, days_old: float = 0.0, value: bytes = b"x") -> None:
        """Produce *count* messages, and make them as old as that."""
        first = self.end
        self.producer.produce_many(Message(value, key=b"key") for _ in range(count))
        m = self._dialect.tables.message
        at = self._dialect.seconds_from_now(-days_old * DAY)
        with self._engine.begin() as connection:
            connection.execute(update(m).where(self._is_mine, m.c.msg_offset >= first).values(created_at=at))

    def let_pass(self, group: str, *, days: float) -> None:
        """Have *days* gone by since anything was heard of *group*: its members, claims, commits, its making."""
        tables = self._dialect.tables
        at = self._dialect.seconds_from_now(-days * DAY)
        with self._engine.begin() as connection:
            of = select(tables.group.c.id).where(tables.group.c.name == group).scalar_subquery()
            for table, column in (
                (tables.member, "heartbeat_at"),
                (tables.claim, "changed_at"),
                (tables.group_offset, "committed_at"),
            ):
                connection.execute(update(table).where(table.c.group_id == of).values({column: at}))
            connection.execute(update(tables.group).where(tables.group.c.name == group).values(created_at=at))

    def keep(self, retention: Retention) -> None:
        self.mq.admin.set_retention(self.topic, retention)

    def trim(self) -> int:
        """One round; return how many messages were deleted."""
        return sum(trimmed.messages for trimmed in self.mq.admin.apply_retention(self.topic))

    def read(self, group: str, count: int) -> None:
        """Have *group* read and commit *count* messages, and leave."""
        with self.mq.consumer(self.topic, group) as consumer:
            take(consumer, count)

    @property
    def start(self) -> int:
        return self.mq.admin.describe_topic(self.topic).partitions[0].start_offset

    @property
    def end(self) -> int:
        return self.mq.admin.describe_topic(self.topic).partitions[0].end_offset

    def stored(self) -> list[int]:
        """The offsets whose rows are there."""
        return [offset for _, offset in self.state.log(self.topic)]

    def count(self) -> int:
        """How many rows there are, also of topics that are gone."""
        return self.state.count("SELECT count(*) FROM sqlmq_message")

    def losses(self) -> list[tuple[str, str, int, int]]:
        """Which group has lost what, from where, up to where."""
        return [(one.group, one.kind, one.start_offset, one.end_offset) for one in self.mq.admin.evictions(self.topic)]

    @property
    def _is_mine(self) -> ColumnElement[bool]:
        p, t = self._dialect.tables.partition, self._dialect.tables.topic
        ids = select(p.c.id).join(t, t.c.id == p.c.topic_id).where(t.c.name == self.topic)
        return self._dialect.tables.message.c.partition_id.in_(ids)

    def close(self) -> None:
        self._engine.dispose()


def take(consumer: Consumer, count: int) -> list[int]:
    """Read and commit *count* messages; return their offsets."""
    offsets: list[int] = []
    while len(offsets) < count:
        messages = consumer.poll(count - len(offsets), timeout=10)
        assert messages, "nothing came"
        offsets += [message.offset or 0 for message in messages]
    consumer.commit()
    return offsets
