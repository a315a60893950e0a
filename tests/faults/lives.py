"""What processes do that end at a failpoint, and those that go on after them: one life for each way to use a queue.

A life does a bit of everything its way of use consists of, and what a life before it has left; it ends when there is
nothing left to do. Its messages carry its name. All lives of a test write to one journal, one after the other.
"""

from __future__ import annotations

import json
import random
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session

from sqlmq import MQ, Message, Retention, Retry
from sqlmq.hooks.failpoints import failpoint
from tests.faults.points import watch_commits
from tests.support.journal import Journal
from tests.support.processes import GROUP, TOPIC, QueueUnderTest
from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from sqlmq import Consumer, Transaction

PARTITIONS = 2
RECEIPTS, KEPT = "receipts", "kept"
KEEP_MESSAGES = 4
LONG_SECONDS = 3_600.0
POLL_SECONDS = 0.2
MOST_SECONDS = 300.0
PATIENT = Retry(max_attempts=5, backoff_seconds=0.001)
FAILS_ONCE, POISON, WELL = "once", "poison", "well"
KINDS = {"a": [FAILS_ONCE, WELL, WELL], "p": [POISON, WELL, WELL], "w": [WELL, WELL, WELL]}
"""What becomes of the messages of each key: of the first, and of those behind it."""

SENDING, SENT, UNDONE, CANCELLING, CANCELLED = "sending", "sent", "undone", "cancelling", "cancelled"
HANDLED, COMMITTED, MOVING, MOVED, FOUND = "handled", "committed", "moving", "moved", "found"


class Line(NamedTuple):
    """What a life has told."""

    life: str
    what: str
    facts: list[Any]


class Life:
    """A process, its name, and its journal."""

    def __init__(self, queue: QueueUnderTest, engine: Engine, journal: Path, name: str) -> None:
        self.queue = queue
        self.engine = engine
        self.name = name
        self._journal = Journal(journal)

    def open(self) -> MQ:
        """Open an MQ, and let the leases of all who were there before be over."""
        mq = self.open_beside_others()
        QueueState(mq.engine, mq.schema).expire_leases()
        return mq

    def open_beside_others(self) -> MQ:
        queue = self.queue
        return MQ(
            self.engine,
            schema=queue.schema,
            lease_seconds=queue.lease_seconds,
            max_poll_seconds=MOST_SECONDS,
            commit_interval_seconds=0.02,
            poll_max_seconds=POLL_SECONDS,
        )

    def tell(self, what: str, *facts: object) -> None:
        self._journal.write(self.name, what, facts)

    def value(self, number: object) -> str:
        return f"{self.name} {number}"

    def message(self, number: object) -> Message:
        return Message(self.value(number).encode(), str(number).encode())

    @property
    def is_on_postgres(self) -> bool:
        return self.queue.url.startswith("postgresql")

    def application(self) -> Engine:
        """The engine of the application, with a connection for each transaction."""
        arguments = {} if self.is_on_postgres else {"timeout": 60}
        engine = create_engine(self.queue.url, poolclass=NullPool, connect_args=arguments)
        watch_commits(engine)
        return engine


class Undone(Exception):  # noqa: N818 - no error, but how a block is left
    """Undoes a transaction."""


def producing(life: Life) -> None:
    """Send messages one by one, together, by another thread, and to a partition."""
    with life.open() as mq, mq.producer(TOPIC) as producer:

        def send(numbers: list[int], how: Callable[[list[Message]], object]) -> None:
            values = [life.value(number) for number in numbers]
            life.tell(SENDING, values)
            how([life.message(number) for number in numbers])
            life.tell(SENT, values)

        send([0], lambda messages: producer.produce(messages[0]))
        send([1, 2, 3, 4, 5], producer.produce_many)
        send([6], lambda messages: producer.submit(messages[0]).result())
        send([7], lambda messages: producer.produce_with_partition(messages[0], 1))


def publishing(life: Life) -> None:
    """Sell things, each with messages of two topics in the same transaction, at each isolation level; undo some of it."""
    levels = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] if life.is_on_postgres else [None]
    with life.open() as mq, closing(mq.producer(TOPIC)) as producer, closing(mq.producer(RECEIPTS)) as receipts:
        engine = life.application()

        def sell(session: Session | Connection, value: str) -> None:
            session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": value})
            failpoint("application.wrote")
            producer.produce(Message(value.encode()), session=session)
            receipts.produce(Message(value.encode()), session=session)
            failpoint("application.produced")

        for level in levels:
            at_level = engine.execution_options(isolation_level=level) if level else engine
            for kind, session in (("session", Session(at_level)), ("connection", at_level.connect())):
                with session:
                    value, undone = (
                        life.value(f"kept in a {kind} at {level}"),
                        life.value(f"undone in a {kind} at {level}"),
                    )
                    life.tell(UNDONE, [undone])
                    sell(session, undone)
                    session.rollback()
                    life.tell(SENDING, [value])
                    sell(session, value)
                    session.commit()
                    failpoint("application.committed")
                    life.tell(SENT, [value])
        _let_all_move(mq)


def delaying(life: Life) -> None:
    """Store messages that are due at once, in a transaction of ours and in one of the application's; take others back."""
    with life.open() as mq, closing(mq.producer(TOPIC)) as producer:
        values = [life.value(number) for number in range(3)]
        life.tell(SENDING, values)
        producer.schedule_many([life.message(number) for number in range(3)], delay_seconds=0.0)
        life.tell(SENT, values)
        with Session(life.application()) as session:
            life.tell(SENDING, [life.value("session")])
            producer.schedule(life.message("session"), session=session, delay_seconds=0.0)
            failpoint("application.produced")
            session.commit()
            failpoint("application.committed")
            life.tell(SENT, [life.value("session")])
        values = [life.value(number) for number in (3, 4)]
        life.tell(CANCELLING, values)
        producer.schedule_many([life.message(number) for number in (3, 4)], delay_seconds=LONG_SECONDS)
        soon = datetime.now(UTC) + timedelta(minutes=1)
        left = [one.id for one in mq.admin.delayed(TOPIC) if one.deliver_at > soon]
        mq.admin.cancel_delayed(*left)
        life.tell(CANCELLED, values)
        _let_all_move(mq)


def consuming(life: Life) -> None:
    """Read by lease, with a second consumer that gets a part of the partitions, until all is committed."""
    with life.open() as mq:
        _send(life, mq, 6)
        mq._background.heartbeat._interval_seconds = 0.05
        first = mq.consumer(TOPIC, GROUP)
        _handle_some(life, first)
        second = mq.consumer(TOPIC, GROUP)

        def is_done() -> bool:
            for consumer in (first, second):
                _handle_some(life, consumer)
            return mq.admin.describe_group(TOPIC, GROUP).lag == 0 and len(second.partitions) == 1

        until(is_done, "everything committed, and the partitions shared out")
        state = QueueState(mq.engine, mq.schema)
        until(
            lambda: state.count("SELECT count(*) FROM sqlmq_member WHERE heartbeat_at > joined_at") > 0, "a heartbeat"
        )
        if mq._background.notifier.reaches_other_processes:
            until(
                lambda: not second.poll(1, timeout=0.1) and mq._background.listener.is_receiving, "a notice to oneself"
            )
        second.close()
        first.close()


def transacting(life: Life) -> None:
    """Handle in transactions, with effects and a message for each; the first one is undone."""
    with life.open() as mq, closing(mq.producer(RECEIPTS)) as receipts:
        _send(life, mq, 4)
        consumer = mq.consumer(TOPIC, GROUP)

        def handle(error: Exception | None = None) -> None:
            with consumer.transaction(max_messages=2, timeout=0.05) as tx:
                _have_effects(tx)
                for message in tx:
                    receipts.produce(Message(message.value), session=tx.session)
                if error is not None:
                    raise error

        with suppress(Undone):
            handle(Undone())
        while mq.admin.describe_group(TOPIC, GROUP).lag:
            handle()


def transacting_for_ever(life: Life, seed: int) -> None:
    """Handle in transactions beside other processes, with an effect for each message, until the process ends."""
    chosen = random.Random(seed)
    consumer = life.open_beside_others().consumer(TOPIC, GROUP)
    while True:
        with consumer.transaction(max_messages=chosen.randint(1, 5), timeout=0.2) as tx:
            _have_effects(tx)


def running(life: Life) -> None:
    """Run a handler that fails at some messages."""
    _run(life, transaction=False)


def running_in_transactions(life: Life) -> None:
    """The same, with effects in the transaction of each attempt."""
    _run(life, transaction=True)


def retaining(life: Life) -> None:
    """Send and read more than a topic keeps, and trim it."""
    with life.open() as mq:
        if mq.create_topic(KEPT, 1):
            mq.consumer(KEPT, GROUP).close()
        mq.admin.set_retention(KEPT, Retention(max_messages=KEEP_MESSAGES))
        mq.producer(KEPT).produce_many([life.message(number) for number in range(6)])
        with mq.consumer(KEPT, GROUP) as consumer:
            while mq.admin.describe_group(KEPT, GROUP).lag:
                consumer.poll(timeout=0.05)
                consumer.commit()
        mq.admin.apply_retention(KEPT)


def replaying(life: Life) -> None:
    """Read all, go back to the beginning, and seek the end."""
    with life.open() as mq:
        _send(life, mq, 2)
        life.tell(FOUND, _positions(mq))
        with mq.consumer(TOPIC, GROUP) as consumer:
            _catch_up(mq, consumer)
        life.tell(MOVING, _positions(mq), [0] * PARTITIONS)
        mq.admin.reset_group(TOPIC, GROUP, "earliest")
        life.tell(MOVED, _positions(mq))
        with mq.consumer(TOPIC, GROUP) as consumer:
            consumer.poll(1, timeout=5)
            ends = [partition.end_offset for partition in mq.admin.describe_topic(TOPIC).partitions]
            for partition in range(PARTITIONS):
                life.tell(MOVING, _positions(mq), ends)
                consumer.seek(partition, "latest")
        life.tell(MOVED, _positions(mq))


LIVES: dict[str, Callable[[Life], None]] = {
    life.__name__: life
    for life in (
        producing,
        publishing,
        delaying,
        consuming,
        transacting,
        running,
        running_in_transactions,
        retaining,
        replaying,
    )
}


def make_tables(connection: Connection) -> None:
    """What the lives have effects in."""
    identity = "id INTEGER PRIMARY KEY" if connection.dialect.name == "sqlite" else "id bigserial PRIMARY KEY"
    for columns in (
        "effect ({}, partition_number integer, message_offset integer)",
        "attempt ({}, message_key text, number integer)",
        "customer_order ({}, note text)",
    ):
        connection.execute(text(f"CREATE TABLE {columns.format(identity)}"))


def _send(life: Life, mq: MQ, count: int) -> None:
    producer = mq.producer(TOPIC)
    for number in range(count):
        producer.produce_with_partition(life.message(number), number % PARTITIONS)


def _handle_some(life: Life, consumer: Consumer) -> None:
    """Handle a few messages, and commit them."""
    messages = consumer.poll(2, timeout=0.01)
    for message in messages:
        life.tell(HANDLED, message.partition, message.offset)
    consumer.commit()
    for message in messages:
        life.tell(COMMITTED, message.partition, message.offset)


def _have_effects(tx: Transaction) -> None:
    for message in tx:
        tx.session.execute(
            text("INSERT INTO effect (partition_number, message_offset) VALUES (:p, :o)"),
            {"p": message.partition, "o": message.offset},
        )


def _run(life: Life, *, transaction: bool) -> None:
    failed: set[bytes] = set()

    def handle(message: Message, session: Session | None = None) -> None:
        kind, key, number = json.loads(message.value)
        if session is not None:
            session.execute(
                text("INSERT INTO attempt (message_key, number) VALUES (:key, :number)"), {"key": key, "number": number}
            )
        if kind == POISON or (kind == FAILS_ONCE and message.value not in failed):
            failed.add(message.value)
            raise ArithmeticError(kind)
        life.tell(HANDLED, key, number)

    with life.open() as mq:
        messages = []
        for number in range(3):
            for name, kinds in KINDS.items():
                key = f"{life.name}/{name}"
                messages.append(Message(json.dumps([kinds[number], key, number]).encode(), key.encode()))
        mq.producer(TOPIC).produce_many(messages)
        life.tell(SENT, [life.name])
        consumer = mq.consumer(TOPIC, GROUP)
        ending = threading.Thread(target=_stop_when_done, args=[mq, consumer])
        ending.start()
        consumer.run(handle, transaction=transaction, retry=PATIENT, handle_signals=False, concurrency=2)
        ending.join()


def _stop_when_done(mq: MQ, consumer: Consumer) -> None:
    state = QueueState(mq.engine, mq.schema)

    def is_done() -> bool:
        waiting = state.count("SELECT count(*) FROM sqlmq_parked WHERE state <> 'dead'")
        return not waiting and not mq.admin.describe_group(TOPIC, GROUP).lag

    until(is_done, "everything handled, or a dead letter")
    consumer.stop()


def _catch_up(mq: MQ, consumer: Consumer) -> None:
    while mq.admin.describe_group(TOPIC, GROUP).lag:
        consumer.poll(timeout=0.05)
        consumer.commit()


def _positions(mq: MQ) -> list[int]:
    if GROUP not in mq.admin.groups(TOPIC):
        return [0] * PARTITIONS
    return [partition.position for partition in mq.admin.describe_group(TOPIC, GROUP).partitions]


def _let_all_move(mq: MQ) -> None:
    """Wait until nothing is staged any more; the consumer has the MQ look for what others have left."""
    mq.consumer(TOPIC, GROUP)
    state = QueueState(mq.engine, mq.schema)
    until(lambda: state.staged() == 0, "everything in the log")
