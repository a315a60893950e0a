"""Two programs with more handlers in transactions than connections, and handlers longer than a lease. All is done in the end."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text

from case import Case, rest, run, until
from sqlmq import MQ, Message, Retry

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlmq import Consumer, ReceivedMessage

MESSAGES = 8
LEASE_SECONDS, HANDLER_SECONDS = 2.0, 4.0
MOST_SECONDS = 60
"""Five rounds of work would do."""


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    case.execute("CREATE TABLE effect (partition integer)")
    with MQ(case.url) as mq:
        mq.create_topic("starved", MESSAGES)
        producer = mq.producer("starved")
        for partition in range(MESSAGES):
            producer.produce(Message(b"x", key=b"%d" % partition), partition=partition)
    calls: list[int] = []

    def handle(message: ReceivedMessage, session: Session) -> None:
        calls.append(message.partition)
        session.execute(text("INSERT INTO effect VALUES (:partition)"), {"partition": message.partition})
        rest(HANDLER_SECONDS)

    def live(consumer: Consumer) -> None:
        consumer.run(
            handle,
            transaction=True,
            concurrency=4,
            retry=Retry(max_attempts=None),
            handle_signals=False,
            stop_seconds=6,
        )

    programs = [MQ(create_engine(case.url, pool_size=2, max_overflow=0), lease_seconds=LEASE_SECONDS) for _ in range(2)]
    consumers = [mq.consumer("starved", "group") for mq in programs]
    for consumer in consumers:
        threading.Thread(target=live, args=[consumer], daemon=True).start()
    began = time.monotonic()
    until(lambda: count_effects(case) >= MESSAGES, seconds=MOST_SECONDS)
    done = count_effects(case)
    for consumer in consumers:
        consumer.stop()
    if done < MESSAGES or len(calls) > 2 * MESSAGES:
        case.fault(
            f"after {time.monotonic() - began:.0f} s {done} of {MESSAGES} messages are done, by {len(calls)} calls of a "
            f"handler that takes {HANDLER_SECONDS:.0f} s, with a lease of {LEASE_SECONDS:.0f} s"
        )


def count_effects(case: Case) -> int:
    return int(case.scalar("SELECT count(*) FROM effect") or 0)


if __name__ == "__main__":
    run(judge, only_on="postgresql")
