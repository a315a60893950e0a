"""Rules about handlers: messages handled one at a time, some of them in vain; what was set aside, decided about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from sqlmq import Message, ReceivedMessage, Retry
from tests.model.machine import FOR_EVER_SECONDS, PICK
from tests.model.reference import MOST_ATTEMPTS, Policy, Workers
from tests.model.sending import Sending
from tests.support.stepped_worker import SteppedWorker

if TYPE_CHECKING:
    from typing import Any

    from tests.model.reference import Topic
    from tests.support.queue_state import Place

WORKERS = "workers"
POLICIES: tuple[Policy, ...] = ("park", "dead", "skip", "stop")


class HandlerFailedError(Exception):
    pass


class Handling(Sending):
    @precondition(lambda self: self.topics)
    @rule(
        pick=PICK,
        policy=st.sampled_from(POLICIES),
        fails=st.lists(st.booleans(), min_size=2, max_size=12),
        keeps=st.none() | st.integers(min_value=1, max_value=3),
    )
    def handle(self, pick: int, policy: Policy, fails: list[bool], keeps: int | None) -> None:
        """A member joins, handles some messages with a handler that fails as told, and leaves; then much may go."""
        topic = self.pick_topic(pick)
        if topic.workers is None:
            topic.workers = Workers(policy)
        workers = topic.workers
        turns = iter(fails)
        broken: list[AssertionError] = []

        def handler(message: ReceivedMessage) -> None:
            is_failing = next(turns)
            try:
                topic.check_order(workers, (message.partition, message.offset))
                workers.take(topic, message, fails=is_failing)
            except AssertionError as error:
                broken.append(error)
            if is_failing:
                raise HandlerFailedError

        retry = Retry(
            MOST_ATTEMPTS[workers.policy],
            backoff_seconds=FOR_EVER_SECONDS,
            max_delay_seconds=FOR_EVER_SECONDS,
            jitter=0.0,
        )
        consumer = self.mq.consumer(topic.name, WORKERS)
        hands = SteppedWorker(consumer, handler, retry, workers.policy)
        for _ in fails:
            hands.work()
        consumer.close()

        for error in broken:
            raise error
        self.check_workers(topic, workers)
        self.trim(pick, keeps)

    @precondition(lambda self: self.with_aside())
    @rule(pick=PICK, one=st.none() | PICK)
    def retry(self, pick: int, one: int | None) -> None:
        topic, workers, places, which = self.choose(pick, one)

        assert self.mq.admin.parked(topic.name, WORKERS).retry(**which) == len(places)

        workers.retry(places)
        self.check_workers(topic, workers)

    @precondition(lambda self: self.with_aside())
    @rule(pick=PICK, one=st.none() | PICK)
    def discard(self, pick: int, one: int | None) -> None:
        topic, workers, places, which = self.choose(pick, one)

        assert self.mq.admin.parked(topic.name, WORKERS).discard(**which) == len(places)

        workers.discard(places)
        self.check_workers(topic, workers)

    @precondition(lambda self: self.with_aside())
    @rule(pick=PICK, one=st.none() | PICK, to=PICK, moves=st.booleans())
    def copy(self, pick: int, one: int | None, to: int, moves: bool) -> None:
        topic, workers, places, which = self.choose(pick, one)
        target = self.pick_topic(to)

        parked = self.mq.admin.parked(topic.name, WORKERS)
        results = (parked.move_to if moves else parked.copy_to)(target.name, **which)

        for place, result in zip(sorted(places), results, strict=True):
            original = topic.at(place)
            message = Message(original.value, original.key)
            assert result.offset == target.append(result.partition, message, is_by_key=True)
        if moves:
            workers.discard(places)
        self.check_workers(topic, workers)

    @precondition(lambda self: any(topic.workers for topic in self.topics.values()))
    @rule(pick=PICK, offset=PICK)
    def reset_workers(self, pick: int, offset: int) -> None:
        topics = [topic for topic in self.topics.values() if topic.workers is not None]
        topic = topics[pick % len(topics)]
        workers = topic.workers
        assert workers is not None
        partition = offset % len(topic.partitions)
        one = topic.partitions[partition]
        to = one.start + offset % (len(one.stored) - one.start + 1)

        self.mq.admin.reset_group(topic.name, WORKERS, {partition: to})

        workers.move(topic, partition, to)
        self.check_workers(topic, workers)

    def with_aside(self) -> list[Topic]:
        return [topic for topic in self.topics.values() if topic.workers is not None and topic.workers.aside]

    def choose(self, pick: int, one: int | None) -> tuple[Topic, Workers, list[Place], dict[str, Any]]:
        """A topic of which something is set aside, and which of that: all, or one message, and how to say so."""
        topics = self.with_aside()
        topic = topics[pick % len(topics)]
        workers = topic.workers
        assert workers is not None
        places = sorted(workers.aside)
        if one is None:
            return topic, workers, places, {"everything": True}
        partition, offset = places[one % len(places)]
        return topic, workers, [(partition, offset)], {"partition": partition, "offset": offset}

    def check_workers(self, topic: Topic, workers: Workers) -> None:
        """Position and rows are as in the reference; what the queue has set aside beyond that waits behind its key."""
        for one in self.mq.admin.describe_group(topic.name, WORKERS).partitions:
            workers.pass_blocked(topic, one.partition, one.position)
            assert one.position == workers.position.get(one.partition, topic.partitions[one.partition].start)
        found = {
            one.place: (one.state, one.attempts) for one in self.mq.admin.parked(topic.name, WORKERS).list(limit=1000)
        }
        assert found == {place: (aside.state, aside.attempts) for place, aside in workers.aside.items()}
