"""Everything is patched by gevent, as in gunicorn's or Celery's gevent workers. The queue must work; nothing may hang."""

from __future__ import annotations

import faulthandler
import itertools
import time
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text

from case import Case, NotTriedError, messages_in, run
from sqlmq import MQ, Message

try:
    import gevent
except ImportError:
    gevent = None

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Producer

CHILD_SECONDS = 45


def judge(case: Case) -> None:
    if gevent is None:
        raise NotTriedError("gevent is not installed.")
    for mode in MODES:
        # gevent patches everything, then runs this program: nothing is imported before.
        case.run_child(mode, seconds=CHILD_SECONDS, options=["-m", "gevent.monkey"])


def live(case: Case, mode: str) -> None:
    faulthandler.dump_traceback_later(CHILD_SECONDS - 5)
    with MQ(case.url) as mq:
        topic = f"gevent-{mode}"
        mq.create_topic(topic, 3)
        MODES[mode](case, mq, mq.producer(topic))


def produce_and_consume(_case: Case, mq: MQ, producer: Producer) -> None:
    for number in range(20):
        producer.produce(Message(b"%d" % number, key=b"k"))
    for future in [producer.submit(Message(b"submitted")) for _ in range(20)]:
        future.result(20)
    with mq.consumer(producer.topic, "group") as consumer:
        for _ in range(40):
            consumer.consume(timeout=20)
        consumer.commit()


def run_handlers(case: Case, mq: MQ, producer: Producer) -> None:
    for number in range(50):
        producer.produce(Message(b"%d" % number))
    consumer = mq.consumer(producer.topic, "group")
    summary = consumer.run(lambda _message: gevent.sleep(0.01), idle_seconds=2, concurrency=3)
    if summary.handled != 50:
        case.fault(f"run handled {summary.handled} of 50 messages")


def produce_in_many_greenlets(case: Case, _mq: MQ, producer: Producer) -> None:
    greenlets = [gevent.spawn(producer.produce, Message(b"x")) for _ in range(300)]
    gevent.joinall(greenlets, timeout=40, raise_error=True)
    if (found := messages_in(case.url, producer.topic)) != 300:
        case.fault(f"{found} of 300 messages are in the log")


def transact(_case: Case, mq: MQ, producer: Producer) -> None:
    producer.produce_many([Message(b"x")] * 30)
    taken = 0
    with mq.consumer(producer.topic, "group") as consumer:
        while taken < 30:
            with consumer.transaction(timeout=20) as transaction:
                taken += len(transaction.messages)
                gevent.sleep(0.05)


def wait_beside_greenlets(case: Case, mq: MQ, producer: Producer) -> None:
    """Count that the other greenlets run while a consumer waits."""
    ticks: list[float] = []

    def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            gevent.sleep(0.05)

    gevent.spawn(tick)
    with mq.consumer(producer.topic, "group") as consumer:
        gevent.spawn_later(3, producer.produce, Message(b"late"))
        began = time.monotonic()
        consumer.consume(timeout=20)
        waited = time.monotonic() - began
    longest = max(later - earlier for earlier, later in itertools.pairwise(ticks))
    if longest > 2.5:
        case.fault(f"the other greenlets stood still for {longest:.1f} s while a consumer waited")
    if waited > 8:
        case.fault(f"a message that came after 3 s was received after {waited:.1f} s")


def publish(case: Case, _mq: MQ, producer: Producer) -> None:
    engine = create_engine(case.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE business (number integer)"))

    def work(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO business VALUES (:number)"), {"number": number})
            producer.produce(Message(b"%d" % number), session=connection)

    gevent.joinall([gevent.spawn(work, number) for number in range(20)], timeout=40, raise_error=True)
    if (found := messages_in(case.url, producer.topic)) != 20:
        case.fault(f"{found} of 20 published messages are in the log")


MODES: dict[str, Callable[[Case, MQ, Producer], None]] = {
    "basic": produce_and_consume,
    "run": run_handlers,
    "many": produce_in_many_greenlets,
    "transaction": transact,
    "waiting": wait_beside_greenlets,
    "outbox": publish,
}

if __name__ == "__main__":
    run(judge, child=live)
