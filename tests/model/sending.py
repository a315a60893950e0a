"""Rules about what goes in: topics made, grown and deleted; messages sent, published, delayed and cancelled."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlmq import FencedError, Message, Retention, UnknownTopicError
from sqlmq.errors import InvalidPartitionError, MessageTooLargeError
from tests.model.machine import KEYS, PICK, Machine
from tests.model.reference import Delayed, Partition, Topic
from tests.support.delayed import LONG, look_now
from tests.support.shop import savepoint_trees

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlmq import ProducerResult
    from tests.support.blocking import BlockingProducer

    Kept: TypeAlias = dict[str, list[Message]]
    """What a transaction publishes, by topic, as long as it is not rolled back."""

MOST_PARTITIONS = 8


class Sending(Machine):
    @initialize(partitions=st.integers(min_value=1, max_value=3), keys=st.lists(KEYS, min_size=4, max_size=12))
    def begin_with_messages(self, partitions: int, keys: list[bytes | None]) -> None:
        self._create(partitions)
        for key in keys:
            self.produce(0, key)

    @precondition(lambda self: len(self.topics) < 2)
    @rule(partitions=st.integers(min_value=1, max_value=4))
    def create_topic(self, partitions: int) -> None:
        self._create(partitions)

    def _create(self, partitions: int) -> None:
        # One of the two names may have been another topic's before.
        name = f"{self.prefix}{min({0, 1} - {int(name[-1]) for name in self.topics})}"

        assert self.mq.create_topic(name, partitions)

        assert not self.mq.create_topic(name, partitions + 1)
        self.topics[name] = Topic(name, [Partition() for _ in range(partitions)])
        self.producers[name] = self.mq.producer(name)

    @precondition(lambda self: len(self.topics) > 1)
    @rule(pick=PICK)
    def delete_topic(self, pick: int) -> None:
        name = self.pick_topic(pick).name

        assert self.mq.delete_topics(name, "no-such-topic") == [name]

        self.forget_topic(name)
        for readers in (self.readers, self.zombies):
            for reader in [reader for reader in readers if reader.topic == name]:
                with contextlib.suppress(UnknownTopicError, FencedError):
                    reader.consumer.close()
                readers.remove(reader)

    @precondition(lambda self: self.deleted)
    @rule()
    def produce_to_a_deleted_topic(self) -> None:
        """A producer says once that its topic is gone; from then on it knows a new one of that name."""
        producer = self.deleted.pop()

        with pytest.raises(UnknownTopicError):
            producer.produce(Message(b"too late"))

        topic = self.topics.get(producer.topic)
        if topic is None:
            with pytest.raises(UnknownTopicError):
                producer.produce(Message(b"too late"))
        else:
            message = self.message(None)
            self.note(topic, [message], [producer.produce(message)])

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, times=st.integers(min_value=1, max_value=3))
    def add_partitions(self, pick: int, times: int) -> None:
        topic = self.pick_topic(pick)
        before = len(topic.partitions)
        if before * times > MOST_PARTITIONS:
            return

        assert self.mq.admin.add_partitions(topic.name, before * times) == (times > 1)

        topic.partitions += [Partition() for _ in range(before * (times - 1))]
        if len(topic.partitions) > 1:
            with pytest.raises(InvalidPartitionError):
                self.mq.admin.add_partitions(topic.name, len(topic.partitions) * 2 + 1)

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, keeps=st.none() | st.integers(min_value=1, max_value=3))
    def trim(self, pick: int, keeps: int | None) -> None:
        """What is more than it keeps goes, up to what the group that is furthest behind has not committed."""
        topic = self.pick_topic(pick)
        self.mq.admin.set_retention(topic.name, Retention(max_messages=keeps))
        needs = self.needs(topic)

        trimmed = {one.partition: one.start_offset for one in self.mq.admin.apply_retention(topic.name)}

        for number, partition in enumerate(topic.partitions):
            before = partition.start
            if keeps is not None:
                wanted = len(partition.stored) - keeps
                partition.start = max(before, min([wanted, *needs.get(number, [])]))
            assert trimmed.get(number, before) == partition.start

    def needs(self, topic: Topic) -> dict[int, list[int]]:
        """By partition, from where on each group protects messages."""
        needs: dict[int, list[int]] = {}
        for group in self.mq.admin.describe_topic(topic.name).groups:
            for one in self.mq.admin.describe_group(topic.name, group).partitions:
                needs.setdefault(one.partition, []).append(one.position)
        if topic.workers is not None:
            for partition, offset in topic.workers.aside:
                needs.setdefault(partition, []).append(offset)
        return needs

    # Messages.

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, key=KEYS)
    def produce(self, pick: int, key: bytes | None) -> None:
        topic = self.pick_topic(pick)
        message = self.message(key)

        result = self.producers[topic.name].produce(message)

        self.note(topic, [message], [result])

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, keys=st.lists(KEYS, max_size=6), with_too_large=st.booleans())
    def produce_many(self, pick: int, keys: list[bytes | None], with_too_large: bool) -> None:
        topic = self.pick_topic(pick)
        messages = [self.message(key) for key in keys]
        if with_too_large:
            with pytest.raises(MessageTooLargeError):
                self.producers[topic.name].produce_many([*messages, Message(b"x" * 2000)])

        results = self.producers[topic.name].produce_many(messages)

        self.note(topic, messages, results)
        assert len({result.partition for key, result in zip(keys, results, strict=True) if key is None}) <= 1

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, partition=st.integers(min_value=0, max_value=4), key=KEYS)
    def produce_with_partition(self, pick: int, partition: int, key: bytes | None) -> None:
        topic = self.pick_topic(pick)
        message = self.message(key)
        producer = self.producers[topic.name]
        if partition >= len(topic.partitions):
            with pytest.raises(InvalidPartitionError):
                producer.produce_with_partition(message, partition)
            return

        result = producer.produce_with_partition(message, partition)

        assert result.partition == partition
        assert result.offset == topic.append(partition, message, is_by_key=False)

    def note(self, topic: Topic, messages: Iterable[Message], results: Iterable[ProducerResult]) -> None:
        for message, result in zip(messages, results, strict=True):
            assert result.topic == topic.name
            assert result.offset == topic.append(result.partition, message, is_by_key=True)

    @precondition(lambda self: self.topics)
    @rule(tree=savepoint_trees, keys=st.lists(KEYS, min_size=3, max_size=3), commits=st.booleans())
    def publish_in_a_session(self, tree: list[Any], keys: list[bytes | None], commits: bool) -> None:
        """In a transaction of the application's, to all topics in turn, with savepoints that are kept or rolled back."""
        kept: Kept = {name: [] for name in self.topics}
        if self.loop is None:
            with Session(self.engine) as session:
                self._publish_tree(session, tree, keys, kept)
                (session.commit if commits else session.rollback)()
        else:
            self.loop.run(lambda: self._publish_async(tree, keys, kept, commits=commits))
        if commits:
            for name, messages in kept.items():
                self.absorb(self.topics[name], messages)

    def _publish_tree(self, session: Session, tree: list[Any], keys: list[bytes | None], kept: Kept) -> None:
        for branch in tree:
            if branch is None:
                name, message = self._note_published(keys, kept)
                self.producers[name].produce(message, session=session)
                continue
            is_kept, inner = branch
            before = {name: list(messages) for name, messages in kept.items()}
            with session.begin_nested() as savepoint:
                self._publish_tree(session, inner, keys, kept)
                if not is_kept:
                    savepoint.rollback()
            if not is_kept:
                kept.update(before)

    async def _publish_async(self, tree: list[Any], keys: list[bytes | None], kept: Kept, *, commits: bool) -> None:
        async with AsyncSession(self.async_engine) as session:
            await self._publish_tree_async(session, tree, keys, kept)
            await (session.commit if commits else session.rollback)()

    async def _publish_tree_async(
        self, session: AsyncSession, tree: list[Any], keys: list[bytes | None], kept: Kept
    ) -> None:
        for branch in tree:
            if branch is None:
                name, message = self._note_published(keys, kept)
                await cast("BlockingProducer", self.producers[name])._aio.produce(message, session=session)
                continue
            is_kept, inner = branch
            before = {name: list(messages) for name, messages in kept.items()}
            async with session.begin_nested() as savepoint:
                await self._publish_tree_async(session, inner, keys, kept)
                if not is_kept:
                    await savepoint.rollback()
            if not is_kept:
                kept.update(before)

    def _note_published(self, keys: list[bytes | None], kept: Kept) -> tuple[str, Message]:
        """The next message of a transaction, and the topic it goes to."""
        message = self.message(keys[self.made % len(keys)])
        name = self.pick_topic(self.made).name
        kept[name].append(message)
        return name, message

    # Messages for later.

    @precondition(lambda self: self.topics)
    @rule(pick=PICK, key=KEYS)
    def delay(self, pick: int, key: bytes | None) -> None:
        topic = self.pick_topic(pick)
        message = self.message(key)

        stored = self.producers[topic.name].schedule(message, delay_seconds=LONG)

        topic.delayed[stored.id] = Delayed(message, stored.partition)
        assert {one.id for one in self.mq.admin.delayed(topic.name)} == topic.delayed.keys()

    @precondition(lambda self: any(topic.delayed for topic in self.topics.values()))
    @rule(picks=st.sets(PICK, min_size=1, max_size=3))
    def cancel(self, picks: set[int]) -> None:
        waiting = [(id_, topic) for topic in self.topics.values() for id_ in topic.delayed]
        chosen = dict(waiting[pick % len(waiting)] for pick in picks)

        assert self.mq.admin.cancel_delayed(*chosen, 1 << 60) == list(chosen)

        for id_, topic in chosen.items():
            del topic.delayed[id_]

    @precondition(lambda self: any(topic.delayed for topic in self.topics.values()))
    @rule(picks=st.sets(PICK, min_size=1, max_size=3))
    def become_due(self, picks: set[int]) -> None:
        waiting = sorted(id_ for topic in self.topics.values() for id_ in topic.delayed)
        chosen = sorted({waiting[pick % len(waiting)] for pick in picks})

        self.staged.make_due(*chosen)
        look_now(self.mq)

        for topic in self.topics.values():
            moved = [topic.delayed.pop(id_) for id_ in chosen if id_ in topic.delayed]
            ends = [len(partition.stored) for partition in topic.partitions]
            self.absorb(topic, [one.message for one in moved])
            for one in moved:
                if one.message.key is None:
                    values = [stored.value for stored in topic.partitions[one.partition].stored[ends[one.partition] :]]
                    assert one.message.value in values
