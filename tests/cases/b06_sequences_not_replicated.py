"""After a switch to a logical replica the rows are there and the sequences stand at 1. The queue works, or names the cause."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from case import Case, run
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

TABLES = ("topic", "partition", "group", "member", "staged")
MOST_SECONDS = 3


def judge(case: Case) -> None:
    with MQ(case.url) as mq:
        mq.create_topic("orders", 4)
        mq.create_topic("bills", 4)
        producer = mq.producer("orders")
        producer.produce_many([Message(b"%d" % number) for number in range(50)])
        for group in ("a", "b", "c"):
            with mq.consumer("orders", group) as consumer:
                consumer.poll(10, timeout=10)
        producer.schedule_many([Message(b"later")] * 20, delay_seconds=3600)
        members = [mq.consumer("orders", "a"), mq.consumer("orders", "b")]
        members[0].poll(1, timeout=10)
        # What a subscriber of logical replication has: all rows, and sequences that never moved.
        for table in TABLES:
            case.execute(f"SELECT setval(pg_get_serial_sequence('sqlmq_{table}', 'id'), 1, false)")

        calls: dict[str, Callable[[], object]] = {
            "produce": lambda: producer.produce(Message(b"x")),
            "a consumer of an existing group": lambda: mq.consumer("orders", "a"),
            "a new group": lambda: mq.consumer("orders", "new"),
            "a new topic": lambda: mq.create_topic("fresh", 2),
            "a delayed message": lambda: producer.schedule(Message(b"later"), delay_seconds=60),
        }
        for what, call in calls.items():
            began = time.monotonic()
            case.attempt(what, call)
            if time.monotonic() - began > MOST_SECONDS:
                case.fault(f"{what} took {time.monotonic() - began:.0f} s")
        told = [str(problem) for problem in mq.admin.diagnose()] + case.faults
        for member in members:
            member.close()
    if any("sequence" in text.lower() or "setval" in text.lower() for text in told):
        case.faults.clear()
    elif case.faults:
        case.fault("neither the errors nor doctor name the sequences")


if __name__ == "__main__":
    run(judge, only_on="postgresql")
