"""More handlers hold a transaction than the engine has connections. Heartbeats continue, each message is handled once."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text

from case import Case, rest, run
from sqlmq import MQ, Message, Retry

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlmq import ReceivedMessage

LEASE_SECONDS = 2
IDLE_SECONDS = 8
LONGEST_SECONDS = 75


class CountedRecords(logging.Handler):
    """The library's log records, counted by their event."""

    def __init__(self) -> None:
        super().__init__()
        self.events: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.events[getattr(record, "event", None) or record.getMessage()[:60]] += 1


def judge(case: Case) -> None:
    small = MQ(create_engine(case.url, pool_size=2, max_overflow=0), lease_seconds=LEASE_SECONDS)
    handle_all(case, small, "small-pool", concurrency=4, partitions=8, handler_seconds=3)
    usual = MQ(case.url, lease_seconds=LEASE_SECONDS)
    handle_all(case, usual, "usual-pool", concurrency=32, partitions=32, handler_seconds=4)


def handle_all(case: Case, mq: MQ, topic: str, *, concurrency: int, partitions: int, handler_seconds: float) -> None:
    table = topic.replace("-", "_")
    case.execute(f"CREATE TABLE {table} (partition integer, msg_offset integer)")
    records = CountedRecords()
    log = logging.getLogger("sqlmq")
    log.addHandler(records)
    log.propagate = False
    calls: Counter[int] = Counter()

    def handle(message: ReceivedMessage, session: Session) -> None:
        calls[message.partition] += 1
        session.execute(text(f"INSERT INTO {table} VALUES ({message.partition}, {message.offset})"))
        rest(handler_seconds)

    with mq, MQ(case.url, lease_seconds=LEASE_SECONDS) as other:
        mq.create_topic(topic, partitions)
        producer = other.producer(topic)
        for partition in range(partitions):
            producer.produce(Message(b"x", key=b"%d" % partition), partition=partition)
        consumer = mq.consumer(topic, "group")
        limit = threading.Timer(LONGEST_SECONDS, consumer.stop)
        limit.start()
        # It joins while the first has handlers already, so that the group has to share its partitions out again.
        beside = threading.Thread(
            target=lambda: other.consumer(topic, "group").run(
                handle, transaction=True, concurrency=2, idle_seconds=IDLE_SECONDS, handle_signals=False
            )
        )
        beside.start()
        case.attempt(
            f"{topic}: run",
            lambda: consumer.run(
                handle,
                transaction=True,
                concurrency=concurrency,
                idle_seconds=IDLE_SECONDS,
                retry=Retry(max_attempts=10),
                handle_signals=False,
            ),
        )
        beside.join()
        limit.cancel()
    log.removeHandler(records)

    effects, handled = (
        case.scalar(f"SELECT count(*) FROM {table}"),
        case.scalar(f"SELECT count(DISTINCT partition) FROM {table}"),
    )
    if (effects, handled) != (partitions, partitions):
        case.fault(f"{topic}: {effects} effects in {handled} partitions, of {partitions} messages")
    in_vain = calls.total() - partitions
    if in_vain > 0:
        case.fault(f"{topic}: handlers were called {in_vain} times in vain; log: {dict(records.events.most_common(4))}")


if __name__ == "__main__":
    run(judge, only_on="postgresql")
