"""Anything one may do with topics, producers and consumers, in any order, against a model of lists and numbers.

One thread takes every step, and consumers commit only when told to (or when they part with a partition), so the model
knows exactly which message comes next. What threads and processes do to each other is in the other files.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import create_engine, select, update

from sqlmq import (
    MQ,
    Consumer,
    FencedError,
    InvalidPartitionError,
    Message,
    MessageTooLargeError,
    Producer,
    UnknownTopicError,
)
from sqlmq.dialects import dialect_named
from sqlmq.flows import manage, produce
from sqlmq.flows.produce import Routed
from sqlmq.partitioner import Rotation, partition_for_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmq import GroupPartition, ProducerResult
    from tests.conftest import DatabaseUnderTest

IN_CI = "CI" in os.environ
GROUPS = ("billing", "audit")
LONG_AGO_SECONDS = 3_600
DRAIN_SECONDS = 20.0
KEYS = st.sampled_from([None, b"", b"a", b"b", b"customer 7"])
PICK = st.integers(min_value=0, max_value=1_000)


@dataclass
class Reader:
    """A consumer, and what the model knows of it."""

    consumer: Consumer
    topic: str
    group: str
    next_offsets: dict[int, int] = field(default_factory=dict)
    """By partition, of those it was given messages of: the offset after the last one."""
    done: dict[int, int] = field(default_factory=dict)
    """By partition: the offset after the last one that is done."""

    left: set[int] = field(default_factory=set)
    """Partitions whose last message is the one at which a loop was left."""

    def ask(self) -> None:
        self.left.clear()
        self.done.update(self.next_offsets)

    def commit(self) -> None:
        for partition in self.left & self.next_offsets.keys():
            self.next_offsets[partition] += 1
        self.ask()


@dataclass
class Group:
    """How far a group has come, per partition."""

    committed: dict[int, int] = field(default_factory=dict)
    """What was committed for certain."""
    done: dict[int, int] = field(default_factory=dict)
    """What may have been committed at the most."""
    delivered: set[tuple[int, int]] = field(default_factory=set)


@dataclass
class Topic:
    """The log of a topic."""

    producer: Producer
    log: list[list[bytes]]
    groups: dict[str, Group] = field(default_factory=dict)


class Model(RuleBasedStateMachine):
    """Topics, groups and consumers of one database; each example has topics of its own."""

    database: DatabaseUnderTest
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        self.prefix = f"topic{self.examples}x"
        # Consumers in this process commit by time, too; not within a test.
        self.mq = MQ(
            self.database.url,
            schema=self.database.schema,
            commit_interval_seconds=10_000,
            max_message_bytes=1000,
            prefetch=6,
        )
        self.engine = create_engine(self.database.url)
        self.dialect = dialect_named(self.engine.dialect.name, self.database.schema)
        self.topics: dict[str, Topic] = {}
        self.deleted: list[Topic] = []
        self.readers: list[Reader] = []
        self.zombies: list[Reader] = []
        self.made = 0
        self.changed: set[tuple[str, str]] = set()
        """Groups that something has happened to since they were last looked at."""

    # Topics.

    @precondition(lambda self: len(self.topics) < 2)
    @rule(partitions=st.integers(min_value=1, max_value=4))
    def create_topic(self, partitions: int) -> None:
        self.made += 1
        name = f"{self.prefix}{self.made}"

        assert self.mq.create_topic(name, partitions)

        assert not self.mq.create_topic(name, partitions + 1)
        self.topics[name] = Topic(self.mq.producer(name), [[] for _ in range(partitions)])

    @precondition(lambda self: self.topics and self.made > 1)
    @rule(pick=PICK)
    def delete_topic(self, pick: int) -> None:
        name, topic = self.pick_topic(pick)

        assert self.mq.delete_topics(name, "no-such-topic") == [name]

        del self.topics[name]
        self.deleted.append(topic)
        for reader in [reader for reader in (*self.readers, *self.zombies) if reader.topic == name]:
            with contextlib.suppress(UnknownTopicError, FencedError):
                reader.consumer.close()
            (self.readers if reader in self.readers else self.zombies).remove(reader)

    @precondition(lambda self: self.deleted)
    @rule()
    def produce_to_a_deleted_topic(self) -> None:
        with pytest.raises(UnknownTopicError):
            self.deleted[-1].producer.produce(Message(b"too late"))

    # Messages in.

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, key=KEYS)
    def produce(self, pick: int, key: bytes | None) -> None:
        name, topic = self.pick_topic(pick)
        message = self.message(key)

        result = topic.producer.produce(message)

        self.note(topic, [message], [result])
        assert result.topic == name

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, keys=st.lists(KEYS, max_size=6))
    def produce_many(self, pick: int, keys: list[bytes | None]) -> None:
        _, topic = self.pick_topic(pick)
        messages = [self.message(key) for key in keys]

        results = topic.producer.produce_many(messages)

        self.note(topic, messages, results)
        assert len({result.partition for key, result in zip(keys, results, strict=True) if key is None}) <= 1

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, partition=st.integers(min_value=0, max_value=4), key=KEYS)
    def produce_with_partition(self, pick: int, partition: int, key: bytes | None) -> None:
        _, topic = self.pick_topic(pick)
        message = Message(self.message(None).value, key)
        if partition >= len(topic.log):
            with pytest.raises(InvalidPartitionError):
                topic.producer.produce_with_partition(message, partition)
            return

        result = topic.producer.produce_with_partition(message, partition)

        assert (result.partition, result.offset) == (partition, len(topic.log[partition]))
        topic.log[partition].append(message.value)

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, count=st.integers(min_value=1, max_value=3))
    def produce_many_with_one_that_is_refused(self, pick: int, count: int) -> None:
        _, topic = self.pick_topic(pick)

        with pytest.raises(MessageTooLargeError):
            topic.producer.produce_many([*(self.message(None) for _ in range(count)), Message(b"x" * 2000)])

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, keys=st.lists(KEYS, min_size=1, max_size=4), commits=st.booleans())
    def append_in_a_transaction_of_the_application(self, pick: int, keys: list[bytes | None], commits: bool) -> None:
        name, topic = self.pick_topic(pick)
        messages = [self.message(key) for key in keys]
        with self.engine.connect() as connection:
            found = manage.find_topic(connection, self.dialect, name)
            connection.rollback()
            self.dialect.begin(connection)
            routed = [Routed(message, None) for message in messages]

            results = produce.append(connection, self.dialect, produce.load(produce.place(found, routed, Rotation(0))))

            if not commits:
                connection.rollback()
                return
            connection.commit()
        self.note(topic, messages, results)

    # Messages out.

    @precondition(lambda self: self.topics and len(self.readers) < 4)
    @rule(pick=PICK, group=st.sampled_from(GROUPS))
    def join(self, pick: int, group: str) -> None:
        name, topic = self.pick_topic(pick)

        consumer = self.mq.consumer(name, group)

        self.readers.append(Reader(consumer, name, group))
        topic.groups.setdefault(group, Group())
        self.changed.add((name, group))

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, at_most=st.integers(min_value=1, max_value=5))
    def poll(self, pick: int, at_most: int) -> None:
        reader = self.readers[pick % len(self.readers)]
        self.check_delivery(reader, at_most)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, count=st.integers(min_value=1, max_value=5))
    def loop(self, pick: int, count: int) -> None:
        """The steps of a loop that does not wait, and is left at its last message."""
        reader = self.readers[pick % len(self.readers)]
        consumer = reader.consumer
        described = self.begin_to_ask(reader)

        for span in consumer._ask(consumer._lend, 10, 0):
            self.forget_others(reader, described)
            taken = [message for message in (span.take() for _ in range(count)) if message]
            for message in taken:
                self.check_message(reader, described, message)
            partition, offset = span.progress.partition, taken[-1].offset or 0
            reader.done[partition] = reader.next_offsets[partition] = offset
            reader.left = {partition}
            self.may_be_done(reader)
        consumer._leave_in_hand(threading.current_thread())

    @precondition(lambda self: self.readers)
    @rule(pick=PICK)
    def commit(self, pick: int) -> None:
        reader = self.readers[pick % len(self.readers)]

        reader.consumer.commit()

        reader.commit()
        self.commit_what_is_done(reader)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        reader = self.readers.pop(pick % len(self.readers))

        reader.consumer.close()

        self.commit_what_is_done(reader)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        """Nothing is heard of a consumer any more, and its lease runs out."""
        reader = self.readers.pop(pick % len(self.readers))
        self.mq._background.remove(reader.consumer)
        member = self.dialect.tables.member
        age = LONG_AGO_SECONDS * 1_000_000
        with self.engine.begin() as connection:
            moment = connection.execute(select(member.c.heartbeat_at)).scalars().first()
            assert moment is not None
            then = member.c.heartbeat_at - (age if isinstance(moment, int) else timedelta(seconds=LONG_AGO_SECONDS))
            connection.execute(update(member).where(member.c.id == reader.consumer.member_id).values(heartbeat_at=then))

        self.zombies.append(reader)

    @precondition(lambda self: self.zombies)
    @rule(pick=PICK)
    def a_crashed_consumer_commits_after_all(self, pick: int) -> None:
        """Whatever nobody has taken over is still its own; of the rest nothing may change."""
        reader = self.zombies.pop(pick % len(self.zombies))
        before = self.positions(reader)
        owned_by_others = self.owners(reader)

        reader.commit()
        self.may_be_done(reader)
        with contextlib.suppress(FencedError):
            reader.consumer.commit()

        after = self.positions(reader)
        assert [after[number] for number in owned_by_others] == [before[number] for number in owned_by_others]

    # What must hold.

    @invariant()
    def the_log_is_what_was_produced(self) -> None:
        topic_table, partition, message = (
            self.dialect.tables.topic,
            self.dialect.tables.partition,
            self.dialect.tables.message,
        )
        with self.engine.connect() as connection:
            for name, topic in self.topics.items():
                rows = connection.execute(
                    select(partition.c.number, message.c.msg_offset, message.c.value)
                    .join(message, message.c.partition_id == partition.c.id)
                    .join(topic_table, topic_table.c.id == partition.c.topic_id)
                    .where(topic_table.c.name == name)
                    .order_by(partition.c.number, message.c.msg_offset)
                ).all()
                expected = [(n, o, value) for n, values in enumerate(topic.log) for o, value in enumerate(values)]
                assert [tuple(row) for row in rows] == expected

    @invariant()
    def a_group_stands_between_what_was_committed_and_what_is_done(self) -> None:
        for name, group_name in self.changed:
            if name not in self.topics:
                continue
            log, group = self.topics[name].log, self.topics[name].groups[group_name]
            for partition in self.mq.describe_group(name, group_name).partitions:
                at_least = group.committed.get(partition.number, 0)
                at_most = max(at_least, group.done.get(partition.number, 0))
                assert at_least <= partition.position <= at_most
                assert partition.end_offset == len(log[partition.number])
        self.changed.clear()

    def teardown(self) -> None:
        try:
            for reader in self.readers:
                reader.consumer.close()
                self.commit_what_is_done(reader)
            for name, topic in self.topics.items():
                for group in topic.groups:
                    self.drain(name, topic, group)
                topic.groups["late"] = Group()
                self.drain(name, topic, "late")
        finally:
            self.mq.close()
            self.engine.dispose()

    # The model's own steps.

    def pick_topic(self, pick: int) -> tuple[str, Topic]:
        return list(self.topics.items())[pick % len(self.topics)]

    def message(self, key: bytes | None) -> Message:
        self.made += 1
        return Message(f"value {self.made}".encode(), key)

    def note(self, topic: Topic, messages: Iterable[Message], results: Iterable[ProducerResult]) -> None:
        for message, result in zip(messages, results, strict=True):
            if message.key is not None:
                assert result.partition == partition_for_key("murmur2", message.key, len(topic.log))
            assert result.offset == len(topic.log[result.partition])
            topic.log[result.partition].append(message.value)

    def check_delivery(self, reader: Reader, at_most: int) -> int:
        described = self.begin_to_ask(reader)

        messages = reader.consumer.poll(at_most, timeout=0)

        assert len(messages) <= at_most
        self.forget_others(reader, described)
        for message in messages:
            self.check_message(reader, described, message)
        return len(messages)

    def begin_to_ask(self, reader: Reader) -> tuple[GroupPartition, ...]:
        described = self.mq.describe_group(reader.topic, reader.group).partitions
        reader.ask()
        self.may_be_done(reader)
        return described

    def forget_others(self, reader: Reader, described: Iterable[GroupPartition]) -> None:
        for partition in described:
            if partition.owner != reader.consumer.name:
                # Taken over just now, if at all: it begins where the group stood.
                reader.next_offsets.pop(partition.number, None)
                reader.done.pop(partition.number, None)

    def check_message(self, reader: Reader, described: Sequence[GroupPartition], message: Message) -> None:
        topic = self.topics[reader.topic]
        assert message.partition is not None
        assert message.offset is not None
        expected = reader.next_offsets.get(message.partition, described[message.partition].position)
        assert message.offset == expected
        assert message.value == topic.log[message.partition][message.offset]
        reader.next_offsets[message.partition] = message.offset + 1
        topic.groups[reader.group].delivered.add((message.partition, message.offset))

    def may_be_done(self, reader: Reader) -> None:
        self.changed.add((reader.topic, reader.group))
        group = self.topics[reader.topic].groups[reader.group]
        for partition, offset in reader.done.items():
            group.done[partition] = max(offset, group.done.get(partition, 0))

    def commit_what_is_done(self, reader: Reader) -> None:
        self.may_be_done(reader)
        group = self.topics[reader.topic].groups[reader.group]
        # Its partitions, unless it gave them back, and then what was done is committed too.
        for partition, offset in reader.done.items():
            group.committed[partition] = max(offset, group.committed.get(partition, 0))

    def positions(self, reader: Reader) -> list[int]:
        return [one.position for one in self.mq.describe_group(reader.topic, reader.group).partitions]

    def owners(self, reader: Reader) -> list[int]:
        """The partitions that are another live member's."""
        described = self.mq.describe_group(reader.topic, reader.group).partitions
        return [one.number for one in described if one.owner not in (None, reader.consumer.name)]

    def drain(self, name: str, topic: Topic, group: str) -> None:
        """Everything that the group has not committed comes, and with it everything has come at least once."""
        reader = Reader(self.mq.consumer(name, group), name, group)
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            self.check_delivery(reader, 100)
            lag = self.mq.describe_group(name, group).lag
            reader.consumer.commit()
            if lag == 0 or time.monotonic() > deadline:
                break
        reader.consumer.close()
        everything = {(partition, offset) for partition, log in enumerate(topic.log) for offset in range(len(log))}
        assert topic.groups[group].delivered == everything


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_the_queue_behaves_as_its_model(database: DatabaseUnderTest) -> None:
    class ModelOnDatabase(Model):
        pass

    ModelOnDatabase.database = database

    run_state_machine_as_test(
        ModelOnDatabase,
        settings=settings(
            max_examples=int(os.environ.get("SQLMQ_MODEL_EXAMPLES", "25")),
            stateful_step_count=30,
            deadline=None,
            derandomize=IN_CI,
            database=None,
            print_blob=True,
            phases=(Phase.generate, Phase.shrink) if not IN_CI else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
