"""Producers and consumers for processes that may be killed at any moment; each leaves a journal."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from sqlmq import MQ, FencedError, Message
from tests.support.journal import COMMITTED, DELIVERED, FAILED, PRODUCED, TROUBLE, Journal, Trouble
from tests.support.processes import GROUP, TOPIC

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import QueueUnderTest

POLL_MESSAGES = 20


def produce(queue: QueueUnderTest, journal_path: Path, until: float, pause_seconds: float) -> None:
    """Produce one to ten messages at a time until the moment *until*; journal what was acknowledged."""
    journal = Journal(journal_path)
    logging.getLogger("sqlmq").addHandler(Trouble(journal))
    chosen = random.Random(os.getpid())
    pause = threading.Event()
    count = 0
    try:
        with queue.open() as mq:
            producer = mq.producer(TOPIC)
            while time.monotonic() < until:
                batch = []
                for _ in range(chosen.randint(1, 10)):
                    count += 1
                    key = chosen.choice([None, b"a", b"b", b"c", b"d", b"e", b"f", b"g"])
                    batch.append(Message(f"{os.getpid()}/{count}".encode(), key))
                results = [producer.produce(batch[0])] if len(batch) == 1 else producer.produce_many(batch)
                for message, result in zip(batch, results, strict=True):
                    journal.write(PRODUCED, result.partition, result.offset, message.value.decode())
                pause.wait(chosen.uniform(0, 2 * pause_seconds))
    except Exception as error:
        journal.write(FAILED, f"{type(error).__name__}: {error}")
        raise


def consume(queue: QueueUnderTest, journal_path: Path, until: float) -> None:
    """Consume until SIGTERM, or the moment *until*; journal each message before the next is asked for."""
    journal = Journal(journal_path)
    trouble = Trouble(journal)
    logging.getLogger("sqlmq").addHandler(trouble)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    chosen = random.Random(os.getpid())
    next_offsets: dict[int, int] = {}
    try:
        with queue.open() as mq, mq.consumer(TOPIC, GROUP) as consumer:
            while not ended.is_set() and time.monotonic() < until:
                troubles = trouble.count
                asked_at = time.monotonic()
                messages = consumer.poll(chosen.randint(1, POLL_MESSAGES), timeout=0.2)
                got_at = time.monotonic()
                if trouble.count != troubles:
                    next_offsets.clear()
                if messages:
                    facts = [(message.partition, message.offset, message.value.decode()) for message in messages]
                    journal.write(DELIVERED, asked_at, got_at, facts)
                    for message in messages:
                        next_offsets[message.partition] = message.offset + 1
                if messages and chosen.random() < 0.3:
                    commit(consumer, journal, next_offsets, trouble)
    except Exception as error:
        journal.write(FAILED, f"{type(error).__name__}: {error}")
        raise


def commit(consumer: Any, journal: Journal, next_offsets: dict[int, int], trouble: Trouble) -> None:
    """Commit, and journal how far, for the partitions that are certainly still this consumer's."""
    troubles = trouble.count
    try:
        consumer.commit()
    except FencedError as error:
        journal.write(TROUBLE, str(error))
        next_offsets.clear()
        return
    if trouble.count != troubles:
        next_offsets.clear()
    owned = set(consumer.partitions)
    still = {partition: offset for partition, offset in next_offsets.items() if partition in owned}
    journal.write(COMMITTED, time.monotonic(), list(still.items()))


def produce_and_consume(queue: QueueUnderTest, journal_path: Path, threads: int, messages: int) -> None:
    """Half of the *threads* produce *messages* each, half consume until all of the topic was handed out."""
    journal = Journal(journal_path)
    logging.getLogger("sqlmq").addHandler(Trouble(journal))
    with queue.open() as mq:

        def run(number: int) -> None:
            try:
                if number % 2:
                    producer = mq.producer(TOPIC)
                    for count in range(messages):
                        value = f"{os.getpid()}/{number}/{count}"
                        result = producer.produce(Message(value.encode()))
                        journal.write(PRODUCED, result.partition, result.offset, value)
                    return
                with mq.consumer(TOPIC, GROUP) as consumer:
                    while mq.admin.describe_group(TOPIC, GROUP).lag or not produced_everything(mq):
                        asked_at = time.monotonic()
                        got = consumer.poll(POLL_MESSAGES, timeout=0.1)
                        facts = [(message.partition, message.offset, message.value.decode()) for message in got]
                        journal.write(DELIVERED, asked_at, time.monotonic(), facts)
            except Exception as error:  # noqa: BLE001 - journalled, and so told to the test
                journal.write(FAILED, f"{type(error).__name__}: {error}")

        def produced_everything(mq: MQ) -> bool:
            return mq.admin.describe_topic(TOPIC).messages >= messages * EVERY_PRODUCER

        running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()


EVERY_PRODUCER = 8
"""How many threads produce in `produce_and_consume`, over all processes: 4 processes with 2 of 4 threads each."""
