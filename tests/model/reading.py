"""Rules about what comes out: consumers that join, ask, commit, leave and crash; groups that are moved; transactions."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, cast

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy import text

from sqlmq import FencedError
from sqlmq.errors import NotOwnedError
from sqlmq.model.timing import Deadline
from tests.model.machine import PICK, Machine
from tests.model.reference import Group, Reader
from tests.support.queue_state import place_of

if TYPE_CHECKING:
    from sqlmq import Consumer, ReceivedMessage
    from sqlmq.consumer.partition import Delivery
    from tests.model.reference import Topic
    from tests.support.blocking import BlockingConsumer

GROUPS = ("billing", "audit")
HAVE_EFFECT = text("INSERT INTO effect VALUES (:place)")


class Reading(Machine):
    @precondition(lambda self: self.topics and len(self.readers) < 4)
    @rule(pick=PICK, group=st.sampled_from(GROUPS))
    def join(self, pick: int, group: str) -> None:
        topic = self.pick_topic(pick)

        consumer = self.mq.consumer(topic.name, group)

        self.readers.append(Reader(consumer, topic.name, group))
        topic.groups.setdefault(group, Group())
        self.changed.add((topic.name, group))

    @initialize(group=st.none() | st.sampled_from(GROUPS))
    def begin_with_a_reader(self, group: str | None) -> None:
        # Initial rules come in any order.
        if self.topics and group is not None:
            self.join(0, group)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, at_most=st.integers(min_value=1, max_value=2))
    def poll_few(self, pick: int, at_most: int) -> None:
        self.check_delivery(self.pick_reader(pick), at_most)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, at_most=st.integers(min_value=1, max_value=8))
    def poll(self, pick: int, at_most: int) -> None:
        self.check_delivery(self.pick_reader(pick), at_most)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, count=st.integers(min_value=1, max_value=5))
    def loop_and_leave(self, pick: int, count: int) -> None:
        """The steps of a loop that does not wait, and is left at its last message."""
        reader = self.pick_reader(pick)
        described = self.begin_to_ask(reader)

        if (span := self._fetch_lazily(reader.consumer)) is not None:
            self.forget_others(reader, described)
            taken = [message for message in (span.take() for _ in range(count)) if message]
            for message in taken:
                self.check_message(reader, described, message)
            partition, offset = place_of(taken[-1])
            reader.done[partition] = reader.next_offsets[partition] = offset
            reader.left = {partition}
            self.may_be_done(reader)
        self._leave(reader.consumer)

    def _fetch_lazily(self, consumer: Consumer) -> Delivery | None:
        deadline = Deadline(0.0)
        if self.loop is None:
            return consumer._core.fetch_lazily(threading.current_thread(), 10, deadline)
        aio = cast("BlockingConsumer", consumer)._aio

        async def fetch_lazily() -> Delivery | None:
            receiver = aio._fetcher.receiver()
            return await aio._threads.run(lambda: aio._core.fetch_lazily(receiver, 10, deadline))

        return cast("Delivery | None", self.loop.run(fetch_lazily))

    def _leave(self, consumer: Consumer) -> None:
        if self.loop is None:
            consumer._core.mark_interrupted(threading.current_thread())
            return
        aio = cast("BlockingConsumer", consumer)._aio

        async def leave() -> None:
            aio._core.mark_interrupted(aio._fetcher.receiver())

        self.loop.run(leave)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK)
    def commit(self, pick: int) -> None:
        reader = self.pick_reader(pick)

        with contextlib.suppress(*([FencedError] if reader.is_fenced else [])):
            reader.consumer.commit()

        reader.commit()
        self.commit_what_is_done(reader)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        self.close(self.readers.pop(pick % len(self.readers)))

    @precondition(lambda self: self.readers)
    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        """Nothing is heard of a consumer any more, and its lease runs out."""
        reader = self.readers.pop(pick % len(self.readers))
        self.mq._background.registry.remove(reader.consumer._core)
        self.state.expire_lease(reader.consumer)

        self.zombies.append(reader)

    @precondition(lambda self: self.zombies)
    @rule(pick=PICK)
    def a_crashed_consumer_commits_after_all(self, pick: int) -> None:
        """Whatever nobody has taken over is still its own; of the rest nothing may change."""
        reader = self.zombies.pop(pick % len(self.zombies))
        before = self.positions(reader)
        owned_by_others = self.owned_by_others(reader)

        reader.commit()
        self.may_be_done(reader)
        with contextlib.suppress(FencedError):
            reader.consumer.commit()

        after = self.positions(reader)
        assert [after[number] for number in owned_by_others] == [before[number] for number in owned_by_others]

    @precondition(lambda self: self.readers)
    @rule()
    def reopen(self) -> None:
        """The process ends in good order, and another one begins."""
        self.mq.close()
        for reader in self.readers:
            self.commit_what_is_done(reader)
        self.readers.clear()
        self.zombies.clear()
        self.deleted.clear()

        self.mq = self.open()

        self.producers = {name: self.mq.producer(name) for name in self.topics}

    # Groups that are moved.

    @precondition(lambda self: any(topic.groups for topic in self.topics.values()))
    @rule(pick=PICK, offset=PICK)
    def reset(self, pick: int, offset: int) -> None:
        topic, name = self.pick_group(pick)
        partition = pick % len(topic.partitions)
        to = self.pick_offset(topic, partition, offset)

        moved = self.mq.admin.reset_group(topic.name, name, {partition: to}, force=True)

        assert [(one.partition, one.to_offset) for one in moved] == [(partition, to)]
        self.move(topic, name, partition, to)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, offset=PICK)
    def seek(self, pick: int, offset: int) -> None:
        reader = self.pick_reader(pick)
        topic = self.topics[reader.topic]
        partition = offset % len(topic.partitions)
        to = self.pick_offset(topic, partition, offset)
        # It looks at its group first, and may hand partitions back.
        self.may_be_done(reader)

        try:
            reader.consumer.seek(partition, to)
        except (NotOwnedError, FencedError):
            return

        self.move(topic, reader.group, partition, to)

    def pick_offset(self, topic: Topic, partition: int, offset: int) -> int:
        one = topic.partitions[partition]
        return one.start + offset % (len(one.stored) - one.start + 1)

    def pick_group(self, pick: int) -> tuple[Topic, str]:
        found = [(topic, name) for topic in self.topics.values() for name in topic.groups]
        return found[pick % len(found)]

    def move(self, topic: Topic, name: str, partition: int, to: int) -> None:
        topic.groups[name].move(partition, to)
        self.changed.add((topic.name, name))
        for reader in (*self.readers, *self.zombies):
            if (reader.topic, reader.group) == (topic.name, name):
                reader.forget([partition])
                reader.is_fenced = True

    # Transactions.

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, at_most=st.integers(min_value=1, max_value=4), commits=st.booleans())
    def take_in_a_transaction(self, pick: int, at_most: int, commits: bool) -> None:
        """A few messages, an effect for each, and the group's position: all of it, or nothing."""
        reader = self.pick_reader(pick)
        topic = self.topics[reader.topic]
        group = topic.groups[reader.group]
        # What it has by lease it gives back.
        reader.ask()
        self.may_be_done(reader)

        if self.loop is None:
            messages = self._take(reader, at_most, commits=commits)
        else:
            messages = self.loop.run(lambda: self._take_async(reader, at_most, commits=commits))

        reader.forget(range(len(topic.partitions)))
        assert len(messages) <= at_most
        for message in messages:
            partition, offset = place = place_of(message)
            topic.check(message)
            if message is messages[0]:
                least = max(group.committed.get(partition, 0), topic.partitions[partition].start)
                assert least <= offset <= max(least, group.done.get(partition, 0))
            else:
                assert offset == place_of(messages[0])[1] + messages.index(message)
            topic.check_order(group, place)
            group.delivered.add(place)
        if commits and messages:
            self.effects += [self.effect_of(message) for message in messages]
            partition, offset = place_of(messages[-1])
            group.commit({partition: offset + 1})

    def _take(self, reader: Reader, at_most: int, *, commits: bool) -> list[ReceivedMessage]:
        messages: list[ReceivedMessage] = []
        with contextlib.suppress(InterruptedError), reader.consumer.transaction(max_messages=at_most, timeout=0) as tx:
            messages = tx.messages
            for message in messages:
                tx.session.execute(HAVE_EFFECT, {"place": self.effect_of(message)})
            if not commits:
                raise InterruptedError
        return messages

    async def _take_async(self, reader: Reader, at_most: int, *, commits: bool) -> list[ReceivedMessage]:
        messages: list[ReceivedMessage] = []
        consumer = cast("BlockingConsumer", reader.consumer)._aio
        with contextlib.suppress(InterruptedError):
            async with consumer.transaction(max_messages=at_most, timeout=0) as tx:
                messages = tx.messages
                for message in messages:
                    await tx.session.execute(HAVE_EFFECT, {"place": self.effect_of(message)})
                if not commits:
                    raise InterruptedError
        return messages

    def effect_of(self, message: ReceivedMessage) -> str:
        return f"{message.topic} {message.value.decode()}"

    def pick_reader(self, pick: int) -> Reader:
        return self.readers[pick % len(self.readers)]

    def positions(self, reader: Reader) -> list[int]:
        return [one.position for one in self.mq.admin.describe_group(reader.topic, reader.group).partitions]

    def owned_by_others(self, reader: Reader) -> list[int]:
        """The partitions that are another live member's."""
        described = self.mq.admin.describe_group(reader.topic, reader.group).partitions
        return [one.partition for one in described if one.owner not in (None, reader.consumer.name)]
