"""Every operation of MQ and Producer, and what each must have done to the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlmq import Message, Retention
from tests.faults.world import FEED, PARTITIONS, Closing, Scene, World, between
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from sqlmq import Producer, ProducerResult

LATER_SECONDS = 3600.0


# --- Producing ---


class Produce(Scene):
    """A message, or several, with a value that no other case has."""

    messages = 1

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.value = world.name("value").encode()
        self.producer: Producer = world.producer

    def call(self) -> None:
        self.producer.produce(Message(self.value, b"k"))

    def check(self, sure: int, perhaps: int) -> None:
        found = self.world.state.count_in_log("orders", self.value)
        assert found % self.messages == 0, f"torn: {found} of {self.messages} messages"
        between(found // self.messages, sure, perhaps, "in the log")


class ProduceWithPartition(Produce):
    def call(self) -> None:
        self.producer.produce_with_partition(Message(self.value), 1)


class ProduceInTime(Produce):
    def call(self) -> None:
        self.producer.produce(Message(self.value, b"k"), timeout=PATIENCE_SECONDS)


class Submit(Produce):
    def call(self) -> None:
        self.producer.submit(Message(self.value, b"k")).result(PATIENCE_SECONDS)


class ProduceMany(Produce):
    messages = 5

    def call(self) -> None:
        self.producer.produce_many([Message(self.value, b"k%d" % number) for number in range(self.messages)])


class ProduceManyAnywhere(Produce):
    messages = 5

    def call(self) -> None:
        self.producer.produce_many([Message(self.value)] * self.messages)


class ProduceVeryMany(Produce):
    """More than one statement takes."""

    messages = 8

    def call(self) -> None:
        self.producer.produce_many([Message(self.value, b"k%d" % number) for number in range(self.messages)])


class ProduceWithNewProducer(Produce):
    def call(self) -> None:
        with self.mq.producer("orders") as producer:
            producer.produce(Message(self.value))


class CloseProducer(Produce):
    """What was submitted before is sent."""

    is_once = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.producer = self.mq.producer("orders")
        self.future: Future[ProducerResult] | None = None
        self.is_sent = self.is_doubtful = False

    def call(self) -> None:
        if self.future is not None:
            self.producer.close()
            return
        self.future = self.producer.submit(Message(self.value))
        self.producer.close()
        self.future.result(0)
        self.is_sent = True

    def check(self, sure: int, perhaps: int) -> None:
        # Closing again sends nothing again.
        self.is_doubtful |= perhaps > 0
        super().check(min(sure, int(self.is_sent)), int(self.is_doubtful))


class ProduceToNewTopic(Scene):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.topic = world.name("new-topic")
        self.made: list[Producer] = []

    def call(self) -> None:
        self.made.append(self.mq.producer(self.topic))

    def check(self, sure: int, perhaps: int) -> None:
        count = self.world.state.count("SELECT count(*) FROM sqlmq_topic WHERE name = :name", name=self.topic)
        parts = self.world.state.count(
            "SELECT count(*) FROM sqlmq_partition p JOIN sqlmq_topic t ON t.id = p.topic_id WHERE t.name = :name",
            name=self.topic,
        )
        assert count <= 1
        assert count or not sure
        assert parts == count * PARTITIONS
        for producer in self.made:
            producer.close()
        del perhaps


# --- Delayed ---


class Delay(Scene):
    messages = 1

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.value = world.name("delayed").encode()

    def call(self) -> None:
        self.world.producer.schedule(Message(self.value, b"k"), delay_seconds=LATER_SECONDS)

    def check(self, sure: int, perhaps: int) -> None:
        found = self.world.state.staged(self.value)
        assert found % self.messages == 0, f"torn: {found} of {self.messages} messages"
        between(found // self.messages, sure, perhaps, "staged")

    def close(self) -> None:
        self.world.state.execute("DELETE FROM sqlmq_staged WHERE value = :value", value=self.value)


class DelayMany(Delay):
    messages = 3

    def call(self) -> None:
        messages = [Message(self.value, b"k%d" % number) for number in range(self.messages)]
        self.world.producer.schedule_many(messages, delay_seconds=LATER_SECONDS)


class CancelDelayed(Scene):
    is_once = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.value = world.name("cancelled").encode()
        self.id = world.producer.schedule(Message(self.value), delay_seconds=LATER_SECONDS).id

    def call(self) -> None:
        self.mq.admin.cancel_delayed(self.id)

    def check(self, sure: int, perhaps: int) -> None:
        assert self.world.state.staged(self.value) == 0 or not sure
        assert self.world.state.staged(self.value) == 1 or sure + perhaps


# --- In the application's transaction ---


class InSession(Scene):
    """A row and a message, both or neither. What the application's own session raises is SQLAlchemy's."""

    may_raise: ClassVar[tuple[type[BaseException], ...]] = (DBAPIError,)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.note = world.name("note")

    def call(self) -> None:
        with Session(self.world.engine) as session:
            self.have(session)
            self.use(session)
            session.commit()

    def have(self, session: Session) -> None:
        session.execute(text("INSERT INTO effect VALUES (:name)"), {"name": self.note})

    def use(self, session: Session) -> None:
        self.world.producer.produce(Message(self.note.encode(), b"k"), session=session)

    def check(self, sure: int, perhaps: int) -> None:
        found = self.world.effects(self.note)
        between(found, sure, perhaps, "rows of the application")
        self.check_beside(found)

    def check_beside(self, found: int) -> None:
        assert self.world.state.count_in_log("orders", self.note.encode()) == found, (
            "a row without its message, or the reverse"
        )


class InSavepoints(InSession):
    """One savepoint is kept, one rolled back."""

    def use(self, session: Session) -> None:
        with session.begin_nested():
            super().use(session)
        nested = session.begin_nested()
        self.world.producer.produce(Message(b"never"), session=session)
        nested.rollback()

    def check_beside(self, found: int) -> None:
        super().check_beside(found)
        assert self.world.state.count_in_log("orders", b"never") == 0, "what was rolled back is in the log"


class ManyInSession(InSession):
    def use(self, session: Session) -> None:
        value = self.note.encode()
        self.world.producer.produce_many([Message(value, b"k%d" % number) for number in range(3)], session=session)

    def check_beside(self, found: int) -> None:
        assert self.world.state.count_in_log("orders", self.note.encode()) == 3 * found


class DelayInSession(InSession):
    def use(self, session: Session) -> None:
        message = Message(self.note.encode(), b"k")
        self.world.producer.schedule(message, session=session, delay_seconds=LATER_SECONDS)

    def check_beside(self, found: int) -> None:
        assert self.world.state.staged(self.note.encode()) == found


class CancelInSession(InSession):
    is_once = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.value = world.name("cancelled").encode()
        self.id = world.producer.schedule(Message(self.value), delay_seconds=LATER_SECONDS).id

    def use(self, session: Session) -> None:
        self.mq.admin.cancel_delayed(self.id, session=session)

    def check(self, sure: int, perhaps: int) -> None:
        rows = self.world.effects(self.note)
        assert (self.world.state.staged(self.value) == 0) == (rows > 0), "cancelled without the row, or the reverse"
        assert rows > 0 or not sure
        assert rows == 0 or sure + perhaps


# --- Managing ---


class CreateTopic(Scene):
    is_once = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.topic = world.name("made")

    def call(self) -> None:
        self.mq.create_topic(self.topic, 3, retention=Retention(max_messages=10))

    def check(self, sure: int, perhaps: int) -> None:
        parts = self.world.state.count(
            "SELECT count(*) FROM sqlmq_topic t LEFT JOIN sqlmq_partition p ON t.id = p.topic_id WHERE t.name = :name",
            name=self.topic,
        )
        assert parts in ((3,) if sure else (0, 3) if perhaps else (0,))


class WithTopic(Scene):
    """Something done to a topic of its own, with three messages and a group that has read them."""

    retention: Retention | None = None

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.topic = world.name("topic")
        self.mq.create_topic(self.topic, 1, retention=self.retention)
        with self.mq.producer(self.topic) as producer:
            producer.produce_many([Message(b"%d" % number, b"k") for number in range(3)])

    def partitions(self) -> int:
        return self.world.state.count(
            "SELECT count(*) FROM sqlmq_partition p JOIN sqlmq_topic t ON t.id = p.topic_id WHERE t.name = :name",
            name=self.topic,
        )

    def messages(self) -> int:
        return self.world.state.count(
            "SELECT count(*) FROM sqlmq_message m JOIN sqlmq_partition p ON p.id = m.partition_id"
            " JOIN sqlmq_topic t ON t.id = p.topic_id WHERE t.name = :name AND m.msg_offset >= p.start_offset",
            name=self.topic,
        )


class AddPartitions(WithTopic):
    is_once = True

    def call(self) -> None:
        self.mq.admin.add_partitions(self.topic, 4)

    def check(self, sure: int, perhaps: int) -> None:
        assert self.partitions() in ((4,) if sure else (1, 4) if perhaps else (1,))
        known = self.world.state.rows(
            "SELECT DISTINCT t.partitions, p.topic_partitions FROM sqlmq_topic t JOIN sqlmq_partition p ON p.topic_id = t.id"
            " WHERE t.name = :name",
            name=self.topic,
        )
        assert known == [(self.partitions(),) * 2], "half grown"


class SetRetention(WithTopic):
    is_once = True

    def call(self) -> None:
        self.mq.admin.set_retention(self.topic, Retention(max_messages=7))

    def check(self, sure: int, perhaps: int) -> None:
        ((found,),) = self.world.state.rows(
            "SELECT retention_max_messages FROM sqlmq_topic WHERE name = :name", name=self.topic
        )
        assert found in ((7,) if sure else (7, None) if perhaps else (None,))


class DeleteTopic(WithTopic):
    """The moment of deletion is one transaction; the messages go after that, or with the next call."""

    is_once = True

    def call(self) -> None:
        self.mq.delete_topics(self.topic)

    def check(self, sure: int, perhaps: int) -> None:
        left = self.world.state.count("SELECT count(*) FROM sqlmq_topic WHERE name = :name", name=self.topic)
        assert self.messages() == 3 * left
        if sure:
            assert left == 0
            assert self.world.state.count("SELECT count(*) FROM sqlmq_partition WHERE topic_id IS NULL") == 0
        del perhaps


class Maintain(WithTopic):
    """Errors of partitions come together."""

    retention = Retention(max_messages=1)
    is_once = True

    def call(self) -> None:
        self.mq.admin.apply_retention(self.topic)

    def check(self, sure: int, perhaps: int) -> None:
        assert self.messages() in ((1,) if sure else (1, 3))
        if sure:
            rest = self.world.state.count(
                "SELECT count(*) FROM sqlmq_message m JOIN sqlmq_partition p ON p.id = m.partition_id"
                " JOIN sqlmq_topic t ON t.id = p.topic_id WHERE t.name = :name AND m.msg_offset < p.start_offset",
                name=self.topic,
            )
            assert rest == 0, "below the start, and still there"
        del perhaps


class ResetGroup(Scene):
    is_once = True
    execute = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.group = world.name("reset")
        self.mq.consumer("feed", self.group).close()

    def call(self) -> None:
        move = self.mq.admin.reset_group if self.execute else self.mq.admin.preview_reset
        move("feed", self.group, "latest")

    def check(self, sure: int, perhaps: int) -> None:
        moved, unmoved = [FEED // PARTITIONS] * PARTITIONS, [0] * PARTITIONS
        done = sure if self.execute else 0
        found = self.world.state.positions("feed", self.group)
        assert found in ([moved] if done else [moved, unmoved] if perhaps and self.execute else [unmoved])


class PreviewReset(ResetGroup):
    execute = False


class Looking(Scene):
    """Something that changes nothing."""

    look: ClassVar[Callable[[World], object]]

    def call(self) -> None:
        type(self).look(self.world)

    def check(self, sure: int, perhaps: int) -> None:
        del sure, perhaps


def looking(name: str, look: Callable[[World], object]) -> type[Looking]:
    return type(name, (Looking,), {"look": staticmethod(look)})


def _expect(found: object, expected: object) -> None:
    assert found == expected, f"{found}, not {expected}"


class OpenAndClose(Scene):
    """A queue that has not been used yet: its tables are looked at, connections are made."""

    def call(self) -> None:
        with self.world.make_mq() as mq:
            assert "feed" in mq.admin.topics()

    def check(self, sure: int, perhaps: int) -> None:
        del sure, perhaps


class CloseAll(Closing):
    """A queue with a producer and a consumer is closed. What of it failed is told together."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.group = world.name("closing")
        self.queue = world.make_mq()
        self.queue.producer("orders").produce(Message(b"closing"))
        consumer = self.queue.consumer("feed", self.group)
        self.got = len(consumer.poll(timeout=PATIENCE_SECONDS))

    def close_it(self) -> None:
        self.queue.close()

    def check(self, sure: int, perhaps: int) -> None:
        del perhaps
        assert self.world.state.positions("feed", self.group) == [0] * PARTITIONS
        if sure and self.error is None:
            assert self.world.state.members(self.group) == 0


LOOKS = (
    looking("Topics", lambda world: world.mq.admin.topics()),
    looking("DescribeTopic", lambda world: _expect(world.mq.admin.describe_topic("feed").messages, FEED)),
    looking("Groups", lambda world: world.mq.admin.groups("feed")),
    looking("Lag", lambda world: world.mq.admin.lag("feed")),
    looking("Delayed", lambda world: world.mq.admin.delayed("orders")),
    looking("Evictions", lambda world: world.mq.admin.evictions("feed")),
    looking("Diagnose", lambda world: world.mq.admin.diagnose()),
    looking("Tail", lambda world: _expect(len(list(world.mq.admin.tail("feed", last=FEED, timeout=0.01))), FEED)),
    looking(
        "ReplayedTail", lambda world: _expect(len(list(world.mq.admin.tail("feed", offset=0, timeout=0.01))), FEED)
    ),
    looking("DescribeGroup", lambda world: world.mq.admin.describe_group("feed", "watched")),
    looking("Members", lambda world: world.mq.admin.members("feed", "watched")),
    looking("DiagnoseGroup", lambda world: world.mq.admin.diagnose_group("feed", "watched")),
)

PRODUCING: tuple[type[Scene], ...] = (
    Produce,
    ProduceWithPartition,
    ProduceInTime,
    Submit,
    ProduceMany,
    ProduceManyAnywhere,
    ProduceVeryMany,
    ProduceWithNewProducer,
    CloseProducer,
    ProduceToNewTopic,
    Delay,
    DelayMany,
    CancelDelayed,
)

IN_SESSIONS: tuple[type[Scene], ...] = (InSession, InSavepoints, ManyInSession, DelayInSession, CancelInSession)

MANAGING: tuple[type[Scene], ...] = (
    CreateTopic,
    AddPartitions,
    SetRetention,
    DeleteTopic,
    Maintain,
    ResetGroup,
    PreviewReset,
    OpenAndClose,
    CloseAll,
)
