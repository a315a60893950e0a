"""A topic with one partition whose messages are as old as a test wants them to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine, select, update

from sqlmq import Message
from sqlmq.dialects import dialect_named
from tests.support.queue_state import QueueState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement

    from sqlmq import MQ, Consumer, Retention
    from tests.conftest import DatabaseUnderTest

DAY = 86_400.0


def aged_topic(database: DatabaseUnderTest, mq: MQ) -> Iterator[AgedTopic]:
    """Yield a topic, and close it: the function of a fixture."""
    topic = AgedTopic(database, mq)
    yield topic
    topic.close()


class AgedTopic:
    """A topic, "orders" by default, whose messages and groups a test makes older in the tables."""

    def __init__(self, database: DatabaseUnderTest, mq: MQ, topic: str = "orders") -> None:
        self.mq = mq
        self.name = topic
        self._engine = create_engine(database.url)
        self.state = QueueState(self._engine, database.schema)
        self._dialect = dialect_named("postgresql" if database.is_postgres else "sqlite", database.schema)
        mq.create_topic(topic, 1)
        self.producer = mq.producer(topic)

    def put(self, count: int, *, days_old: float = 0.0, value: bytes = b"x") -> None:
        """Produce *count* messages, and make them *days_old*."""
        first = self.end
        self.producer.produce_many(Message(value, key=b"key") for _ in range(count))
        m = self._dialect.tables.message
        at = self._dialect.seconds_from_now(-days_old * DAY)
        with self._engine.begin() as connection:
            connection.execute(update(m).where(self._is_mine, m.c.msg_offset >= first).values(created_at=at))

    def let_pass(self, group: str, *, days: float) -> None:
        """Move all moments of *group* back by *days*: heartbeats, claims, commits, and when it was made."""
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
        self.mq.admin.set_retention(self.name, retention)

    def trim(self) -> int:
        """Apply the retention once; return how many messages were deleted."""
        return sum(trimmed.messages for trimmed in self.mq.admin.apply_retention(self.name))

    def read(self, group: str, count: int) -> None:
        """Read and commit *count* messages as a consumer of *group*, and close it."""
        with self.mq.consumer(self.name, group) as consumer:
            take(consumer, count)

    @property
    def start(self) -> int:
        return self.mq.admin.describe_topic(self.name).partitions[0].start_offset

    @property
    def end(self) -> int:
        return self.mq.admin.describe_topic(self.name).partitions[0].end_offset

    def stored(self) -> list[int]:
        """Return the offsets that have a row."""
        return [offset for _, offset in self.state.log(self.name)]

    def count(self) -> int:
        """Return how many messages there are, including those of deleted topics."""
        return self.state.count("SELECT count(*) FROM sqlmq_message")

    def losses(self) -> list[tuple[str, str, int, int]]:
        """Return group, kind, first offset and end offset of each loss."""
        return [(one.group, one.kind, one.start_offset, one.end_offset) for one in self.mq.admin.evictions(self.name)]

    @property
    def _is_mine(self) -> ColumnElement[bool]:
        p, t = self._dialect.tables.partition, self._dialect.tables.topic
        ids = select(p.c.id).join(t, t.c.id == p.c.topic_id).where(t.c.name == self.name)
        return self._dialect.tables.message.c.partition_id.in_(ids)

    def close(self) -> None:
        self._engine.dispose()


def take(consumer: Consumer, count: int) -> list[int]:
    """Read and commit *count* messages; return their offsets."""
    offsets: list[int] = []
    while len(offsets) < count:
        messages = consumer.poll(count - len(offsets), timeout=10)
        assert messages, "nothing came"
        offsets += [message.offset for message in messages]
    consumer.commit()
    return offsets
