"""What sessions of one schedule do to topics of their own, and what must hold however they were interleaved."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from sqlmq import MQ, Message, ReceivedMessage, UnknownTopicError
from sqlmq.database import watchdog
from sqlmq.testing import Clock
from tests.schedules.conductor import Conductor
from tests.schedules.drivers import EyeOnPostgres, EyeOnSqlite, conduct
from tests.schedules.exploring import name_of
from tests.support.delayed import Staged
from tests.support.queue_state import Place, QueueState, check_dense, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pytest
    from sqlalchemy.orm import Session

    from sqlmq import Consumer, Producer
    from tests.conftest import DatabaseUnderTest
    from tests.schedules.conductor import Decision

SESSIONS = 3
FOR_EVER_SECONDS = 100_000.0


class Stage:
    """The queues of one database, each as it would be in a process of its own; used by one schedule after the other."""

    def __init__(self, database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
        # A connection that has rested is not tested first: how long it has rested is no part of a schedule.
        monkeypatch.setattr(watchdog, "_IDLE_SECONDS", math.inf)
        self._clock = Clock(random=random.Random())
        self.queues = [self._queue(database) for _ in range(SESSIONS)]
        self.own = self._queue(database)
        """For what is looked at from outside."""
        self.eye = EyeOnPostgres(database.url) if database.is_postgres else EyeOnSqlite(database.url)
        self.state = QueueState(self.eye.engine, database.schema)
        self.state.execute("CREATE TABLE effect (topic text NOT NULL, place text NOT NULL)")
        self.staged = Staged(self.own.engine, database)
        self._schedules = 0

    def _queue(self, database: DatabaseUnderTest) -> MQ:
        mq = MQ(
            database.url,
            schema=database.schema,
            lease_seconds=FOR_EVER_SECONDS,
            max_poll_seconds=FOR_EVER_SECONDS,
            commit_interval_seconds=FOR_EVER_SECONDS,
            notify=False,
            clock=self._clock,
        )
        conduct(mq)
        mq.admin.topics()
        return mq

    def play(self, program: Callable[[Scene], None], schedule: Sequence[int]) -> Conductor:
        """Run *program* once, on topics of its own, as *schedule* says; return who has conducted. Fails as it fails."""
        self._schedules += 1
        self._clock.random.seed(1)
        scene = Scene(self, f"topic{self._schedules}")
        program(scene)
        conductor = Conductor(self.eye.blocked, scene.look)
        try:
            errors = conductor.run(scene.bodies, schedule)
            scene.check(errors)
        except BaseException as error:
            error.add_note(_told(conductor.decisions))
            raise
        return conductor

    def close(self) -> None:
        for mq in (*self.queues, self.own):
            mq.close()
        self.eye.close()


def _told(decisions: Iterable[Decision]) -> str:
    lines = [f"  {chr(ord('A') + one.taken)} {one.statement}" for one in decisions]
    name = name_of([one.taken for one in decisions])
    return "\n".join([f"Run it again with SQLMQ_SCHEDULE={name}. What they did, one after the other:", *lines])


@dataclass
class Reading:
    """What a group was given."""

    start: dict[int, int] = field(default_factory=dict)
    """By partition, where it began."""
    seen_to: dict[int, int] = field(default_factory=dict)
    """By partition: the offset after the last one that anybody of the group was given."""
    done_to: dict[int, int] = field(default_factory=dict)
    """By partition: the offset after the last one that anybody of the group was done with."""
    delivered: set[Place] = field(default_factory=set)
    order: list[ReceivedMessage] = field(default_factory=list)
    """Everything anybody was given, one after the other."""
    may_jump: bool = False
    """Whether it is moved on in the log, and passes messages over."""


class Scene:
    """One schedule's topics, sessions, and records of what they were told."""

    def __init__(self, stage: Stage, topic: str) -> None:
        self.stage = stage
        self.topic = topic
        self.bodies: list[Callable[[], object]] = []
        self.sent: dict[str, dict[Place, bytes]] = defaultdict(dict)
        """By topic, what was acknowledged, by its place."""
        self.groups: dict[str, Reading] = defaultdict(Reading)
        self.looks: list[Callable[[], object]] = []
        """Called after each transaction."""
        self.checks: list[Callable[[], object]] = []
        """Called when all sessions have ended."""
        self.last_checks: list[Callable[[], object]] = []
        """Called when all consumers are closed, and their groups have read everything."""
        self.expected_errors: dict[int, tuple[type[BaseException], ...]] = {}
        self.is_deleted = False
        """Whether the topic is gone in the end, and nothing is to be drained."""
        self._consumers: list[Consumer] = []
        self._in_hand: dict[Consumer, list[ReceivedMessage]] = defaultdict(list)

    # What a program is made of.

    def mq(self, number: int) -> MQ:
        """The queue of session *number*."""
        return self.stage.queues[number]

    def session(self, body: Callable[[], object], *, may_raise: tuple[type[BaseException], ...] = ()) -> None:
        """Have *body* run in a session of its own, which may end with an error that is one of those."""
        self.expected_errors[len(self.bodies)] = may_raise
        self.bodies.append(body)

    def create(self, partitions: int = 1, topic: str | None = None, **options: Any) -> None:
        self.stage.own.create_topic(topic or self.topic, partitions, **options)

    def producer(self, number: int, topic: str | None = None) -> Producer:
        return self.mq(number).producer(topic or self.topic)

    def consumer(self, number: int, group: str = "billing", **options: Any) -> Consumer:
        consumer = self.mq(number).consumer(self.topic, f"{group}", **options)
        self._consumers.append(consumer)
        return consumer

    def forget(self, consumer: Consumer) -> None:
        """It is not heard of any more: its lease is over, though it does not know."""
        self.stage.state.expire_lease(consumer)

    def fill(self, count: int, *, key: bytes | None = None) -> None:
        """Put messages into the topic before anybody begins."""
        self.send(self.stage.own.producer(self.topic), *(b"old %d" % number for number in range(count)), key=key)

    def put(self, partition: int, value: bytes, producer: Producer | None = None, *, key: bytes | None = None) -> None:
        """Send one message to *partition*."""
        producer = producer or self.stage.own.producer(self.topic)
        result = producer.produce_with_partition(Message(value, key), partition)
        self.note_sent(result.topic, (result.partition, result.offset), value)

    # What its sessions do.

    def send(self, producer: Producer, *values: bytes, key: bytes | None = None) -> None:
        """Produce *values* in one transaction, and note where they are."""
        results = producer.produce_many([Message(value, key) for value in values])
        for value, result in zip(values, results, strict=True):
            self.note_sent(result.topic, (result.partition, result.offset), value)

    def note_sent(self, topic: str, place: Place, value: bytes) -> None:
        assert place not in self.sent[topic], f"{place} was given to two messages"
        self.sent[topic][place] = value

    def poll(self, consumer: Consumer, at_most: int = 100) -> list[ReceivedMessage]:
        """Have *consumer* look at its group and for messages; note what it got, and what it is done with by asking."""
        self.done(consumer)
        consumer._core.coordinator.recheck_group_soon()
        messages = consumer.poll(at_most, timeout=0)
        self.note_delivered(consumer.group, messages)
        self._in_hand[consumer] = messages
        return messages

    def commit(self, consumer: Consumer) -> None:
        self.done(consumer)
        consumer.commit()

    def finish(self, consumer: Consumer) -> None:
        """Be done with what this thread got, and leave it to others to commit that."""
        self.done(consumer)
        consumer._core.acknowledge(threading.current_thread())

    def leave(self, consumer: Consumer) -> None:
        self._consumers.remove(consumer)
        consumer.close()

    def done(self, consumer: Consumer) -> None:
        for message in self._in_hand.pop(consumer, ()):
            self.note_done(consumer.group, message)

    def note_done(self, group: str, message: ReceivedMessage) -> None:
        partition, offset = place_of(message)
        done_to = self.groups[group].done_to
        done_to[partition] = max(offset + 1, done_to.get(partition, 0))

    def note_delivered(self, group: str, messages: Iterable[ReceivedMessage]) -> None:
        """Whatever comes first has to be at the group's start, and nothing may be passed over after that."""
        reading = self.groups[group]
        for message in messages:
            partition, offset = place_of(message)
            seen_to = reading.seen_to.get(partition, reading.start.get(partition, 0))
            assert offset <= seen_to or reading.may_jump, (
                f"{group!r} was not given {partition}@{seen_to} before {offset}"
            )
            reading.seen_to[partition] = max(offset + 1, seen_to)
            reading.delivered.add((partition, offset))
            reading.order.append(message)

    def affect(self, session: Session, message: ReceivedMessage) -> None:
        """Do something in the transaction of *session* that must happen once for each message."""
        session.execute(
            text("INSERT INTO effect VALUES (:topic, :place)"),
            {"topic": self.topic, "place": "{}@{}".format(*place_of(message))},
        )

    # What must hold.

    def look(self) -> None:
        """After each transaction."""
        for look in self.looks:
            look()

    def log(self, topic: str | None = None) -> dict[Place, bytes]:
        """What is in the log of a topic."""
        return self.stage.state.log(topic or self.topic)

    def positions(self, group: str) -> list[int]:
        """Where a group stands, by partition."""
        return self.stage.state.positions(self.topic, group)

    def barriers(self) -> dict[int, int]:
        """Where partitions ended when others were added for their keys, by partition."""
        query = """
            SELECT p.number, o.barrier_offset FROM sqlmq_topic t JOIN sqlmq_partition p ON p.topic_id = t.id
            JOIN sqlmq_partition_parent o ON o.parent_id = p.id WHERE t.name = :topic
        """
        return dict(self.stage.state.rows(query, topic=self.topic))

    def effects(self) -> list[str]:
        """What was done in transactions."""
        return self.stage.state.column("SELECT place FROM effect WHERE topic = :topic", topic=self.topic)

    def partition_ids(self) -> list[int]:
        query = "SELECT p.id FROM sqlmq_topic t JOIN sqlmq_partition p ON p.topic_id = t.id WHERE t.name = :topic"
        return self.stage.state.column(query, topic=self.topic)

    def count(self, table: str, partition_ids: Iterable[int]) -> int:
        """How many rows *table* has of those partitions."""
        ids = ", ".join(map(str, partition_ids))
        return self.stage.state.count(f"SELECT count(*) FROM {table} WHERE partition_id IN ({ids})")

    def log_grows_only_at_its_end(self) -> None:
        """Have each step looked at: what a reader has seen stays, and nothing comes before it."""
        seen: dict[Place, bytes] = {}

        def look() -> None:
            now = self.log()
            ends: dict[int, int] = {}
            for partition, offset in seen:
                ends[partition] = max(ends.get(partition, 0), offset + 1)
            assert seen.items() <= now.items(), "what was read once is not there any more"
            late = [place for place in now.keys() - seen.keys() if place[1] < ends.get(place[0], 0)]
            assert not late, f"{late} appeared behind what was read"
            check_dense(now, {})
            seen.update(now)

        self.looks.append(look)

    def check(self, errors: Sequence[BaseException | None]) -> None:
        """When all sessions have ended."""
        for number, error in enumerate(errors):
            if error is not None and not isinstance(error, self.expected_errors[number]):
                raise error
        left = self.stage.eye.open_transactions()
        assert not left, f"transactions are still open: {left}"
        for check in self.checks:
            check()
        for group, reading in self.groups.items():
            self._check_positions(group, reading)
        self._close_consumers()
        if not self.is_deleted:
            for topic in {self.topic, *self.sent}:
                self._check_log(topic)
            for group, reading in self.groups.items():
                self._drain(group, reading)
        for check in self.last_checks:
            check()

    def _check_log(self, topic: str) -> None:
        log, starts = self.log(topic), self.stage.state.starts(topic)
        check_dense(log, starts)
        kept = {place: value for place, value in self.sent[topic].items() if place[1] >= starts[place[0]]}
        assert kept.items() <= log.items(), "an acknowledged message is not in the log"

    def _check_positions(self, group: str, reading: Reading) -> None:
        for partition, position in enumerate(self.positions(group)):
            done_to = max(reading.start.get(partition, 0), reading.done_to.get(partition, 0))
            assert position <= done_to or reading.may_jump, (
                f"{group!r} is at {partition}@{position}, and done up to {done_to}"
            )

    def _close_consumers(self) -> None:
        for consumer in self._consumers:
            with contextlib.suppress(UnknownTopicError):
                consumer.close()
        for mq in self.stage.queues:
            left = len(mq._background.registry.members())
            assert not left, f"{left} consumers are left"

    def _drain(self, group: str, reading: Reading) -> None:
        """Have a new member read all there is left, and see that nothing is missing then."""
        with self.stage.own.consumer(self.topic, group) as consumer:
            while self.poll(consumer):
                self.commit(consumer)  # what comes next may be behind a barrier
        log = self.log()
        ends = {partition: offset + 1 for partition, offset in log}
        positions = self.positions(group)
        assert {partition: positions[partition] for partition in ends} == ends, f"{group!r} does not get on"
        missing = {place for place in log if place[1] >= reading.start.get(place[0], 0)} - reading.delivered
        assert reading.may_jump or not missing, f"{group!r} was not given {missing}"
