"""A process of the demo: ``python -m sqlmq.cli.demo.worker produce DIR NAME TOPIC`` or ``consume DIR NAME TOPIC GROUP``.

It ends when its work is done, or when its stdin is closed. So no process remains, even if the demo is killed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from sqlmq.cli.demo.journal import Log
from sqlmq.errors import SqlmqError
from sqlmq.model.message import Message
from sqlmq.mq import MQ

LEASE_SECONDS = 2.0
"""Short, so that the demo is short. The default is 10 seconds."""
MESSAGES_PER_PRODUCER = 2_000
KEYS_PER_PRODUCER = 10
_BATCH = 20
_PAUSE_SECONDS = 0.04
_WORK_SECONDS = 0.001
"""The simulated time to handle a message."""


def produce(mq: MQ, name: str, topic: str, log: Log) -> None:
    """Send orders of several customers, and record each acknowledged message."""
    producer = mq.producer(topic)
    for first in range(0, MESSAGES_PER_PRODUCER, _BATCH):
        sent = []
        for number in range(first, first + _BATCH):
            key = f"{name}-customer-{number % KEYS_PER_PRODUCER}"
            sent.append((key, number // KEYS_PER_PRODUCER))
        results = producer.produce_many([Message(b"%d" % number, key.encode()) for key, number in sent])
        log.note(
            (result.partition, result.offset, key, number) for result, (key, number) in zip(results, sent, strict=True)
        )
        time.sleep(_PAUSE_SECONDS)


def consume(mq: MQ, name: str, topic: str, group: str, log: Log) -> None:
    """Handle orders until stdin is closed, and record each handled message."""
    consumer = mq.consumer(topic, group, name=name)

    def close_when_told() -> None:
        sys.stdin.buffer.read()
        with suppress(SqlmqError):  # closing the MQ raises it again
            consumer.close()

    messages = consumer.messages()  # before it may be closed, after which that is an error
    threading.Thread(target=close_when_told, name="demo-stdin", daemon=True).start()
    for message in messages:
        time.sleep(_WORK_SECONDS)
        key = (message.key or b"").decode()
        log.note([(message.partition, message.offset, key, int(message.value))])


def main(arguments: list[str]) -> None:
    """Produce or consume, as *arguments* say, in the database of the environment."""
    role, directory, name, topic, *groups = arguments
    url, schema = os.environ["SQLMQ_URL"], os.environ.get("SQLMQ_SCHEMA")
    with Log(Path(directory) / name) as log, MQ(url, schema=schema, lease_seconds=LEASE_SECONDS) as mq:
        if role == "produce":
            produce(mq, name, topic, log)
        else:
            consume(mq, name, topic, groups[0], log)


if __name__ == "__main__":
    main(sys.argv[1:])
