"""Transactions that began early commit late, so moments in the log go back and forth. Starting at a moment misses nothing."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text

from case import Case, rest, run
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from sqlmq import Consumer

BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)
MESSAGES = 60
STARTS = (45, *range(105, 506, 50))
"""The seconds after BEGIN at which groups start."""
LONG_TRANSACTIONS = 6


def judge(case: Case) -> None:
    start_in_unsorted_log(case)
    if not case.is_sqlite:
        start_beside_long_transactions(case)


def start_in_unsorted_log(case: Case) -> None:
    """Start groups in a log in which some messages are as old as the beginning of a long transaction."""
    moments = unsorted_moments()
    with MQ(case.url) as mq:
        mq.create_topic("since", 1)
        mq.producer("since").produce_many([Message(b"%d" % number) for number in range(MESSAGES)])
        set_moments(case, moments)
        for seconds in STARTS:
            since = BEGIN + timedelta(seconds=seconds)
            wanted = {offset for offset, moment in enumerate(moments) if moment >= since}
            with mq.consumer("since", f"since-{seconds}", start=since) as consumer:
                missed = wanted - receive(consumer, wanted)
            if missed:
                age = int((moments[min(missed)] - BEGIN).total_seconds())
                case.fault(
                    f"a group that starts at +{seconds} s misses {len(missed)} of {len(wanted)} messages since then, "
                    f"as offset {min(missed)} of +{age} s"
                )


def unsorted_moments() -> list[datetime]:
    """Return a moment for each message: ten seconds apart, but long transactions have begun in the first forty."""
    generator = random.Random(5)
    return [
        BEGIN + timedelta(seconds=generator.randrange(40) if number >= 8 and number % 7 < 3 else 10 * number)
        for number in range(MESSAGES)
    ]


def set_moments(case: Case, moments: list[datetime]) -> None:
    with create_engine(case.url).begin() as connection:
        for offset, moment in enumerate(moments):
            value = int(moment.timestamp() * 1_000_000) if case.is_sqlite else moment
            connection.execute(
                text("UPDATE sqlmq_message SET created_at = :value WHERE msg_offset = :offset"),
                {"value": value, "offset": offset},
            )


def receive(consumer: Consumer, wanted: set[int]) -> set[int]:
    """Return the offsets that come, up to all that are *wanted*."""
    found: set[int] = set()
    while not found >= wanted and (messages := consumer.poll(timeout=1)):
        found |= {message.offset for message in messages}
    return found


def start_beside_long_transactions(case: Case) -> None:
    """Begin transactions, produce, and publish in the transactions. The log has them in the order of their commits."""
    engine = create_engine(case.url)
    with MQ(case.url) as mq:
        mq.create_topic("real", 1)
        producer = mq.producer("real")
        connections = [engine.connect() for _ in range(LONG_TRANSACTIONS)]
        for connection in connections:
            connection.execute(text("SELECT now()"))
        rest(1.2)
        producer.produce(Message(b"short, later"))
        for connection in connections:
            producer.produce(Message(b"long"), session=connection)
            connection.commit()
            connection.close()
        for _ in range(3):
            producer.produce(Message(b"last"))

        with mq.consumer("real", "all") as consumer:
            messages = consumer.poll(timeout=5)
        moment = next(message.timestamp for message in messages if message.value == b"short, later")
        with mq.consumer("real", "since", start=moment) as consumer:
            received = [message.value for message in consumer.poll(timeout=2)]
    if b"short, later" not in received:
        case.fault(f"a group that starts at the very moment of a message misses it, and gets {received}")


if __name__ == "__main__":
    run(judge)
