"""What DBAs set for a database: isolation, time-outs, planner, old compatibility. A queue's whole day under each."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from case import Case, run, shown
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Producer, ReceivedMessage

SETTINGS = (
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "2s"),
    ("lock_timeout", "500ms"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("idle_session_timeout", "3s"),
    ("synchronous_commit", "off"),
    ("plan_cache_mode", "force_custom_plan"),
    ("enable_indexscan", "off"),
    ("jit_above_cost", "0"),
    ("row_security", "off"),
    ("standard_conforming_strings", "off"),
    ("check_function_bodies", "off"),
    ("search_path", '"$user", public, pg_catalog'),
    ("client_min_messages", "debug1"),
    ("extra_float_digits", "-15"),
    ("xmloption", "document"),
    ("array_nulls", "off"),
    ("IntervalStyle", "postgres_verbose"),
    ("escape_string_warning", "on"),
    ("transform_null_equals", "on"),
    ("backslash_quote", "off"),
    ("max_parallel_workers_per_gather", "8"),
    ("work_mem", "64kB"),
    ("tcp_keepalives_idle", "1"),
    ("default_toast_compression", "lz4"),
)
PRODUCERS, PUBLISHERS = 3, 2
SENT = PRODUCERS * (25 + 20) + PUBLISHERS * 10


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    case.execute(
        "CREATE TABLE business (number integer)",
        "CREATE TABLE effect (topic text, partition integer, msg_offset integer)",
    )
    for setting, value in SETTINGS:
        try:
            case.set_default(setting, value)
        except DBAPIError as error:
            print(f"{setting}={value} was not tried: {shown(error)}")
            continue
        day = Day(case)
        day.live()
        for what, count in day.errors.most_common(2):
            case.fault(f"{setting}={value}: {count} x {what}")
        case.set_default(setting, None)


class Day:
    """A day of a queue: several programs produce, publish and handle at once, then an operator works."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._topic = f"day-{uuid.uuid4().hex[:6]}"
        self._handled: set[tuple[int, int]] = set()
        self.errors: Counter[str] = Counter()

    def live(self) -> None:
        mq, engine = MQ(self._case.url), create_engine(self._case.url)
        self._attempt("create_topic", lambda: mq.create_topic(self._topic, 4))
        producer = self._producer(mq)
        if producer is None:
            return
        works: list[Callable[[], None]] = [
            *[lambda: self._produce(producer)] * PRODUCERS,
            *[lambda: self._publish(producer, engine)] * PUBLISHERS,
            *[lambda: self._run(mq, "plain", self._handle, transaction=False)] * 2,
            *[lambda: self._run(mq, "effects", self._handle_in_transaction, transaction=True)] * 2,
        ]
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._operate(mq, producer)
        if not self.errors:
            self._compare()
        engine.dispose()

    def _producer(self, mq: MQ) -> Producer | None:
        try:
            return mq.producer(self._topic)
        except Exception as error:  # noqa: BLE001 - every exception is a fault
            self.errors[f"producer: {shown(error)}"] += 1
            return None

    def _attempt(self, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - every exception is a fault
            self.errors[f"{what}: {shown(error)[:150]}"] += 1

    def _produce(self, producer: Producer) -> None:
        for number in range(25):
            self._produce_one(producer, Message(b"%d" % number, key=b"%d" % (number % 5), headers={"a": "b"}))
        many = [Message(b"many", key=b"%d" % number) for number in range(20)]
        self._attempt("produce_many", lambda: producer.produce_many(many))

    def _produce_one(self, producer: Producer, message: Message) -> None:
        self._attempt("produce", lambda: producer.produce(message))

    def _publish(self, producer: Producer, engine: Engine) -> None:
        for number in range(10):
            self._publish_one(producer, engine, Message(b"published", key=b"%d" % number))

    def _publish_one(self, producer: Producer, engine: Engine, message: Message) -> None:
        def publish() -> None:
            with Session(engine) as session, session.begin():
                session.execute(text("INSERT INTO business VALUES (1)"))
                producer.produce(message, session=session)

        self._attempt("produce(session=)", publish)

    def _run(self, mq: MQ, group: str, handler: Callable[..., None], *, transaction: bool) -> None:
        self._attempt(
            f"run of group {group}",
            lambda: mq.consumer(self._topic, group).run(
                handler, transaction=transaction, concurrency=2, idle_seconds=5, handle_signals=False
            ),
        )

    def _handle(self, message: ReceivedMessage) -> None:
        self._handled.add((message.partition, message.offset))

    def _handle_in_transaction(self, message: ReceivedMessage, session: Session) -> None:
        session.execute(
            text("INSERT INTO effect VALUES (:topic, :partition, :offset)"),
            {"topic": self._topic, "partition": message.partition, "offset": message.offset},
        )

    def _operate(self, mq: MQ, producer: Producer) -> None:
        admin, topic = mq.admin, self._topic
        self._attempt("transaction", lambda: self._transact(mq))
        self._attempt("schedule", lambda: producer.schedule(Message(b"later"), delay_seconds=0.2))
        self._attempt("lag", admin.lag)
        self._attempt("diagnose", admin.diagnose)
        self._attempt("topics", admin.topics)
        self._attempt("reset_group", lambda: admin.reset_group(topic, "transactions", "earliest", force=True))
        self._attempt("add_partitions", lambda: admin.add_partitions(topic, 8))
        self._attempt("apply_retention", admin.apply_retention)
        self._attempt("delete_topics", lambda: mq.delete_topics(topic))
        self._attempt("close", mq.close)

    def _transact(self, mq: MQ) -> None:
        with (
            mq.consumer(self._topic, "transactions") as consumer,
            consumer.transaction(timeout=10) as transaction,
        ):
            assert transaction.messages
            transaction.session.execute(text("INSERT INTO business VALUES (2)"))

    def _compare(self) -> None:
        where = f"FROM effect WHERE topic = '{self._topic}'"
        effects = int(self._case.scalar(f"SELECT count(*) {where}") or 0)
        distinct = int(self._case.scalar(f"SELECT count(DISTINCT (partition, msg_offset)) {where}") or 0)
        if len(self._handled) < SENT:
            self.errors[f"{len(self._handled)} of {SENT} messages handled"] += 1
        if effects != distinct or effects < SENT:
            self.errors[f"{effects} effects, {distinct} distinct ones, of {SENT} messages"] += 1


if __name__ == "__main__":
    run(judge, only_on="postgresql")
