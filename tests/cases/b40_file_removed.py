"""The SQLite file is removed or replaced while a program has it open. ``produce`` must not acknowledge into nowhere."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from case import Case, rest, run
from sqlmq import MQ, Message, SqlmqError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOPIC = "file"


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    produce_around(case, "removed", remove)
    produce_around(case, "replaced", replace)


def produce_around(case: Case, name: str, harm: Callable[[Path], None]) -> None:
    """Produce before and after *harm*. What is acknowledged afterwards has to be in the file."""
    path = case.directory / f"{name}.db"
    mq = MQ(f"sqlite:///{path}")
    mq.create_topic(TOPIC, 1)
    producer, consumer = mq.producer(TOPIC), mq.consumer(TOPIC, "group")
    for _ in range(3):
        producer.produce(Message(b"before"))
    consumer.poll(timeout=5)
    consumer.commit()

    harm(path)

    acknowledged = 0
    for _ in range(5):
        with contextlib.suppress(Exception):  # a refusal is right
            producer.produce(Message(b"after"))
            acknowledged += 1
        rest(0.05)
    with contextlib.suppress(Exception):
        mq.close()
    stored = messages_after(path)
    if stored < acknowledged:
        case.fault(f"{name}: {acknowledged} messages were acknowledged afterwards, {stored} are in the file")


def remove(path: Path) -> None:
    for one in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        one.unlink(missing_ok=True)


def replace(path: Path) -> None:
    fresh = path.with_name("fresh.db")
    with MQ(f"sqlite:///{fresh}") as mq:
        mq.create_topic(TOPIC, 1)
    remove(path)
    fresh.rename(path)


def messages_after(path: Path) -> int:
    if not path.exists():
        return 0
    with (
        contextlib.suppress(SqlmqError),
        MQ(f"sqlite:///{path}", create_topics=False) as mq,
        mq.consumer(TOPIC, "audit") as consumer,
    ):
        return sum(message.value == b"after" for message in consumer.poll(timeout=1))
    return 0


if __name__ == "__main__":
    run(judge, only_on="sqlite")
