"""What all rules of the machine stand on: the queue it drives, the reference beside it, and how both are compared."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from sqlmq import MQ, AsyncMQ, Message
from tests.model.reference import Group, Reader, Topic
from tests.support.blocking import Loop, blocking
from tests.support.delayed import Staged
from tests.support.engines import async_engine_with_savepoints, with_savepoints
from tests.support.queue_state import QueueState, place_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmq import PartitionLag, Producer, ReceivedMessage
    from tests.conftest import DatabaseUnderTest

DRAIN_SECONDS = 60.0
FOR_EVER_SECONDS = 10_000.0
KEYS = st.sampled_from([None, b"", b"a", b"b", b"customer 7"])
PICK = st.integers(min_value=0, max_value=1_000)


class Machine(RuleBasedStateMachine):
    """Topics, groups and consumers of one database; each example has topics of its own."""

    database: DatabaseUnderTest
    way: str
    """``sync`` or ``asyncio``."""
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        self.prefix = f"topic{self.examples}x"
        self.loop = Loop() if self.way == "asyncio" else None
        self.engine = with_savepoints(self.database.url)
        driver = "postgresql+psycopg" if self.database.is_postgres else "sqlite+aiosqlite"
        self.async_engine = async_engine_with_savepoints(self.database, driver)
        self.state = QueueState(self.engine, self.database.schema)
        self.staged = Staged(self.engine, self.database)
        self.mq = self.open()
        self.topics: dict[str, Topic] = {}
        self.deleted: list[Producer] = []
        self.readers: list[Reader] = []
        self.zombies: list[Reader] = []
        self.producers: dict[str, Producer] = {}
        self.effects: list[str] = []
        self.made = 0
        self.changed: set[tuple[str, str]] = set()
        """Groups that something has happened to since they were last looked at."""
        self.state.execute("CREATE TABLE IF NOT EXISTS effect (place text NOT NULL)")

    def open(self) -> MQ:
        # Consumers in this process commit by time, too; not within a test.
        options: dict[str, Any] = {
            "schema": self.database.schema,
            "commit_interval_seconds": FOR_EVER_SECONDS,
            "lease_seconds": FOR_EVER_SECONDS,
            "max_message_bytes": 1000,
            "prefetch": 6,
        }
        if self.loop is not None:
            return blocking(AsyncMQ(self.database.url, **options), self.loop)
        return MQ(self.database.url, **options)

    # What must hold after each rule.

    @invariant()
    def the_log_is_what_was_produced(self) -> None:
        for topic in self.topics.values():
            assert self.state.log(topic.name) == dict(topic.kept())

    @invariant()
    def a_group_stands_between_what_was_committed_and_what_is_done(self) -> None:
        for name, group_name in self.changed:
            if name not in self.topics:
                continue
            topic = self.topics[name]
            group = topic.groups[group_name]
            for partition in self.mq.admin.describe_group(name, group_name).partitions:
                start = topic.partitions[partition.partition].start
                at_least = group.committed.get(partition.partition, 0)
                at_most = max(at_least, group.done.get(partition.partition, 0), start)
                assert at_least <= partition.position <= at_most
                assert partition.end_offset == len(topic.partitions[partition.partition].stored)
        self.changed.clear()

    @invariant()
    def effects_are_those_of_transactions_that_were_committed(self) -> None:
        found = self.state.column("SELECT place FROM effect WHERE place LIKE :mine", mine=f"{self.prefix}%")
        assert sorted(found) == sorted(self.effects)

    def teardown(self) -> None:
        try:
            for reader in self.readers:
                self.close(reader)
            for topic in self.topics.values():
                for group in list(topic.groups):
                    self.drain(topic, group)
                topic.groups["late"] = Group()
                self.drain(topic, "late")
        finally:
            self.mq.close()
            if self.loop is not None:
                self.loop.run(self.async_engine.dispose)
                self.loop.close()
            self.engine.dispose()

    # Steps that rules share.

    def pick_topic(self, pick: int) -> Topic:
        return list(self.topics.values())[pick % len(self.topics)]

    def message(self, key: bytes | None) -> Message:
        self.made += 1
        return Message(f"value {self.made}".encode(), key)

    def absorb(self, topic: Topic, messages: Sequence[Message]) -> None:
        """*messages* were appended wherever the queue chose: in each partition at the end, and in their order."""
        expected = {message.value: message for message in messages}
        order = {message.value: at for at, message in enumerate(messages)}
        latest: dict[int, int] = {}
        new = self.state.log(topic.name).items() - dict(topic.kept()).items()
        for (partition, offset), value in sorted(new):
            assert value in expected, f"{value!r} is in the log, and should not be"
            assert order[value] > latest.get(partition, -1), "messages of one partition changed places"
            latest[partition] = order[value]
            assert topic.append(partition, expected.pop(value), is_by_key=True) == offset
        assert not expected, f"not in the log: {list(expected)}"

    def forget_topic(self, name: str) -> None:
        self.deleted.append(self.producers.pop(name))
        del self.topics[name]

    def begin_to_ask(self, reader: Reader) -> tuple[PartitionLag, ...]:
        described = self.mq.admin.describe_group(reader.topic, reader.group).partitions
        reader.ask()
        self.may_be_done(reader)
        return described

    def forget_others(self, reader: Reader, described: Iterable[PartitionLag]) -> None:
        # Taken over just now, if at all: they begin where the group stood.
        reader.forget(partition.partition for partition in described if partition.owner != reader.consumer.name)

    def check_delivery(self, reader: Reader, at_most: int) -> int:
        described = self.begin_to_ask(reader)

        messages = reader.consumer.poll(at_most, timeout=0)

        assert len(messages) <= at_most
        self.forget_others(reader, described)
        for message in messages:
            self.check_message(reader, described, message)
        return len(messages)

    def check_message(self, reader: Reader, described: Sequence[PartitionLag], message: ReceivedMessage) -> None:
        topic = self.topics[reader.topic]
        partition, offset = place = place_of(message)
        start = topic.partitions[partition].start
        expected = reader.next_offsets.get(partition, max(start, described[partition].position))
        assert offset == expected
        topic.check(message)
        topic.check_order(topic.groups[reader.group], place)
        reader.next_offsets[partition] = offset + 1
        topic.groups[reader.group].delivered.add(place)

    def may_be_done(self, reader: Reader) -> None:
        self.changed.add((reader.topic, reader.group))
        self.topics[reader.topic].groups[reader.group].may_be_done(reader.done)

    def commit_what_is_done(self, reader: Reader) -> None:
        """Its partitions, unless it gave them back, and then what was done is committed too."""
        self.changed.add((reader.topic, reader.group))
        self.topics[reader.topic].groups[reader.group].commit(reader.done)

    def close(self, reader: Reader) -> None:
        reader.consumer.close()
        self.commit_what_is_done(reader)

    def drain(self, topic: Topic, group: str) -> None:
        """Everything that the group has not committed comes, and with it everything has come at least once."""
        reader = Reader(self.mq.consumer(topic.name, group), topic.name, group)
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            self.check_delivery(reader, 100)
            lag = self.mq.admin.describe_group(topic.name, group).lag
            reader.commit()
            reader.consumer.commit()
            if lag == 0 or time.monotonic() > deadline:
                break
        reader.consumer.close()
        assert lag == 0, f"{group!r} does not get on in {topic.name}"
        known = topic.groups[group]
        missing = [place for place, _ in topic.kept() if not known.has(place)]
        assert not missing, f"{group!r} was never given {missing} of {topic.name}"
