"""Programs about the log: what is sent, published, moved, grown, trimmed and deleted while others do the same or read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.orm import Session

from sqlmq import FencedError, Message, Retention, UnknownTopicError
from sqlmq.model.partitioner import partition_for_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Consumer, Producer
    from tests.schedules.scene import Scene

LONG_SECONDS = 3_600.0


def produce_produce_consume(scene: Scene) -> None:
    """Two producers, one of them with a batch, and a reader, on one partition."""
    scene.create()
    first, second, consumer = scene.producer(0), scene.producer(1), scene.consumer(2)
    scene.log_grows_only_at_its_end()

    def send() -> None:
        scene.send(first, b"a1")
        scene.send(first, b"a2")

    scene.session(send)
    scene.session(lambda: scene.send(second, b"b1", b"b2"))
    scene.session(lambda: reads_twice(scene, consumer))


def produce_outbox_outbox(scene: Scene) -> None:
    """A producer, a transaction that publishes and takes some of it back, and one that is rolled back."""
    scene.create()
    producer, committing, undoing = (scene.producer(number) for number in range(3))
    scene.log_grows_only_at_its_end()
    scene.looks.append(lambda: comes_in_one_piece(scene, b"kept 1", b"kept 2"))
    scene.checks.append(lambda: comes_in_one_piece(scene, b"kept 1", b"kept 2", is_there=True))

    def commit() -> None:
        with Session(scene.mq(1).engine) as session:
            affect(session, scene, "committed")
            committing.produce(Message(b"kept 1"), session=session)
            with session.begin_nested() as savepoint:
                committing.produce(Message(b"dropped"), session=session)
                savepoint.rollback()
            committing.produce(Message(b"kept 2"), session=session)
            session.commit()

    def undo() -> None:
        with Session(scene.mq(2).engine) as session:
            affect(session, scene, "rolled back")
            undoing.produce(Message(b"undone"), session=session)
            session.flush()
            session.rollback()

    def only_what_was_committed() -> None:
        assert set(scene.log().values()) == {b"sent", b"kept 1", b"kept 2"}
        assert scene.effects() == ["committed"]

    scene.session(lambda: scene.send(producer, b"sent"))
    scene.session(commit)
    scene.session(undo)
    scene.checks.append(only_what_was_committed)


def outbox_outbox_in_opposite_orders(scene: Scene) -> None:
    """Two transactions that publish to the same topics, one in the order of the other turned round, and a producer."""
    topics = [f"{scene.topic}-{number}" for number in range(3)]
    for topic in (scene.topic, *topics):
        scene.create(2, topic)
    producers = [[scene.producer(number, topic) for topic in topics] for number in range(2)]
    beside = scene.producer(2, topics[1])

    def publish(number: int, order: list[Producer]) -> None:
        with Session(scene.mq(number).engine) as session:
            affect(session, scene, str(number))
            for producer in order:
                for partition in (1, 0):
                    producer.produce_with_partition(Message(b"%d" % number), partition, session=session)
            session.commit()

    def everything_is_there() -> None:
        for topic in topics:
            values = [value for value in scene.log(topic).values() if value != b"beside"]
            assert sorted(values) == [b"0", b"0", b"1", b"1"]

    scene.session(lambda: publish(0, producers[0]))
    scene.session(lambda: publish(1, producers[1][::-1]))
    scene.session(lambda: scene.send(beside, b"beside", key=b"k"))
    scene.checks.append(everything_is_there)


def move_move_cancel(scene: Scene) -> None:
    """Two movers of what is due, and somebody who takes it back."""
    scene.create()
    producer = scene.stage.own.producer(scene.topic)
    ids = [producer.schedule(Message(value), delay_seconds=LONG_SECONDS).id for value in (b"1", b"2")]
    scene.stage.staged.make_due(*ids)
    cancelled: list[int] = []

    def either_cancelled_or_delivered() -> None:
        scene.stage.own._background.scheduler._move_due()
        expected = [value for id_, value in zip(ids, (b"1", b"2"), strict=True) if id_ not in cancelled]
        assert sorted(scene.log().values()) == expected
        assert len(scene.stage.staged) == 0

    scene.session(scene.mq(0)._background.scheduler._move_due)
    scene.session(scene.mq(1)._background.scheduler._move_due)
    scene.session(lambda: cancelled.extend(scene.mq(2).admin.cancel_delayed(*ids)))
    scene.log_grows_only_at_its_end()
    scene.checks.append(either_cancelled_or_delivered)


def grow_produce_consume(scene: Scene) -> None:
    """A topic gets more partitions while the messages of two keys are sent, and read in their order."""
    scene.create(1)
    producer, consumer = scene.producer(1), scene.consumer(2)
    keys = (b"a", b"b", b"c")
    for key in keys:
        scene.send(producer, key + b"0", key=key)

    def send() -> None:
        for number in (b"1", b"2"):
            results = producer.produce_many([Message(key + number, key) for key in keys])
            for key, result in zip(keys, results, strict=True):
                scene.note_sent(scene.topic, (result.partition, result.offset), key + number)

    def each_key_in_order() -> None:
        first: dict[bytes, list[bytes]] = {}
        for message in scene.groups["billing"].order:
            values = first.setdefault(message.key or b"", [])
            if message.value not in values:
                values.append(message.value)
        assert first == {key: [key + b"0", key + b"1", key + b"2"] for key in keys}

    def keys_move_at_the_barrier() -> None:
        barriers = scene.barriers()
        for (partition, offset), value in scene.log().items():
            home = partition_for_key("murmur2", value[:1], 3 if offset >= barriers.get(partition, 0) else 1)
            assert partition == home, f"{value!r} is at {partition}@{offset}, and the barriers are at {barriers}"

    scene.session(lambda: scene.mq(0).admin.add_partitions(scene.topic, 3))
    scene.session(send)
    scene.session(lambda: reads_twice(scene, consumer))
    scene.checks.append(keys_move_at_the_barrier)
    scene.last_checks.append(each_key_in_order)


def delete_produce_consume(scene: Scene) -> None:
    """A topic is deleted while it is sent to and read."""
    scene.create(2)
    producer, consumer = scene.producer(1), scene.consumer(2)
    scene.fill(2, key=b"k")
    ids = scene.partition_ids()
    scene.is_deleted = True

    def send() -> None:
        scene.send(producer, b"a", key=b"k")
        scene.send(producer, b"b", key=b"other")

    def nothing_is_left() -> None:
        for table in ("sqlmq_message", "sqlmq_group_offset", "sqlmq_claim"):
            assert scene.count(table, ids) == 0, f"something is left in {table}"

    scene.session(lambda: scene.mq(0).delete_topics(scene.topic))
    scene.session(send, may_raise=(UnknownTopicError,))
    scene.session(lambda: reads_twice(scene, consumer), may_raise=(UnknownTopicError, FencedError))
    scene.last_checks.append(nothing_is_left)


def delete_outbox_move(scene: Scene) -> None:
    """A topic is deleted while a transaction publishes to it, and a delayed message of it is moved."""
    scene.create(1)
    producer = scene.producer(1)
    delayed = producer.schedule(Message(b"delayed"), delay_seconds=LONG_SECONDS)
    scene.stage.staged.make_due(delayed.id)
    ids = scene.partition_ids()
    scene.is_deleted = True

    def publish() -> None:
        with Session(scene.mq(1).engine) as session:
            affect(session, scene, "published")
            producer.produce(Message(b"published"), session=session)
            session.commit()

    def nothing_is_left() -> None:
        scene.stage.own._background.scheduler._move_due()
        assert scene.count("sqlmq_message", ids) == 0
        assert len(scene.stage.staged) == 0

    scene.session(lambda: scene.mq(0).delete_topics(scene.topic))
    scene.session(publish, may_raise=(UnknownTopicError,))
    scene.session(scene.mq(2)._background.scheduler._move_due)
    scene.last_checks.append(nothing_is_left)


def consume_trim_join(scene: Scene) -> None:
    """Retention deletes what the only group has read, while that reads on and another group begins at the start."""
    scene.create(1, retention=Retention(max_messages=1))
    scene.fill(5)
    consumer = scene.consumer(0)
    scene.poll(consumer, 2)
    scene.commit(consumer)
    newcomers = scene.groups["audit"]

    def read() -> None:
        scene.poll(consumer, 2)
        scene.commit(consumer)

    def join() -> None:
        newcomer = scene.consumer(2, "audit")
        messages = newcomer.poll(timeout=0)
        if messages:
            newcomers.start[0] = messages[0].offset
            scene.note_delivered("audit", messages)

    def begins_with_what_is_kept() -> None:
        # Whatever was there when the group was made is protected from then on.
        newcomers.start.setdefault(0, scene.stage.state.starts(scene.topic)[0])
        assert newcomers.start[0] >= 0
        assert not scene.stage.own.admin.evictions(scene.topic), "a group has lost something"

    scene.session(read)
    scene.session(lambda: scene.mq(1).admin.apply_retention(scene.topic))
    scene.session(join)
    scene.checks.append(begins_with_what_is_kept)


def create_create_produce(scene: Scene) -> None:
    """Three sessions name a topic that is not there yet; two of them, a group too."""
    consumers: list[object] = []

    def join(number: int) -> Callable[[], object]:
        def joins() -> None:
            consumers.append(scene.poll(scene.consumer(number)))

        return joins

    scene.session(join(0))
    scene.session(join(1))
    scene.session(lambda: scene.send(scene.producer(2), b"first"))


def reads_twice(scene: Scene, consumer: Consumer) -> None:
    scene.poll(consumer)
    scene.poll(consumer)
    scene.commit(consumer)


def affect(session: Session, scene: Scene, what: str) -> None:
    session.execute(text("INSERT INTO effect VALUES (:topic, :place)"), {"topic": scene.topic, "place": what})


def comes_in_one_piece(scene: Scene, *values: bytes, is_there: bool = False) -> None:
    """All of *values* are in the log, one behind the other, or none of them."""
    log = list(scene.log().values())
    found = [value for value in log if value in values]
    assert tuple(found) in ((), values)
    if found:
        at = log.index(found[0])
        assert tuple(log[at : at + len(values)]) == values
    assert found or not is_there
