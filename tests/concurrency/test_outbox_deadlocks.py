"""Transactions that publish to the same topics in different orders never wait for each other in a circle."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlmq import Message
from tests.support.queue_state import QueueState
from tests.support.waiting import at_once, until

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

CHAOS_SECONDS = float(os.environ.get("SQLMQ_CHAOS_SECONDS", "4"))
TOPICS = [f"topic-{number}" for number in range(10)]
THREADS = 8


@pytest.mark.slow
@pytest.mark.timeout(CHAOS_SECONDS + 110)
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_random_transactions_to_many_topics_never_deadlock_and_lose_or_repeat_nothing(
    mq: MQ, database: DatabaseUnderTest
) -> None:
    producers = []
    for topic in TOPICS:
        mq.create_topic(topic, 2)
        producers.append(mq.producer(topic))
    # SQLite lets one write at a time and takes no turns: the others wait for longer than the default.
    arguments: dict[str, Any] = {} if database.is_postgres else {"timeout": 60}
    engine = create_engine(database.url, pool_size=THREADS, connect_args=arguments)
    levels = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] if database.is_postgres else [None]
    seed = random.randrange(1 << 32)
    until_ = time.monotonic() + CHAOS_SECONDS

    def run(thread: int) -> Counter[tuple[str, str]]:
        chosen = random.Random(seed + thread)
        published: Counter[tuple[str, str]] = Counter()
        transactions = 0
        while time.monotonic() < until_:
            transactions += 1
            level = chosen.choice(levels)
            bind = engine if level is None else engine.execution_options(isolation_level=level)
            inside: list[tuple[str, str]] = []
            with Session(bind) as session:
                for producer in chosen.sample(producers, 5):
                    value = f"{thread}.{transactions}.{len(inside)}"
                    producer.produce(Message(value.encode(), b"%d" % chosen.randrange(9)), session=session)
                    inside.append((producer.topic, value))
                if chosen.random() < 0.1:
                    session.rollback()
                else:
                    session.commit()
                    published.update(inside)
            # Others that lock several partitions at once.
            if chosen.random() < 0.2:
                producer = chosen.choice(producers)
                values = [f"{thread}.{transactions}.many.{number}" for number in range(3)]
                producer.produce_many([Message(value.encode(), b"%d" % chosen.randrange(9)) for value in values])
                published.update((producer.topic, value) for value in values)
        return published

    published = sum(at_once([lambda thread=thread: run(thread) for thread in range(THREADS)]), Counter())  # type: ignore[misc]
    mq.consumer(TOPICS[0], "movers")
    until(lambda: QueueState(engine, database.schema).staged() == 0, "everything in the log")

    found: Counter[tuple[str, str]] = Counter()
    for topic in TOPICS:
        for values in QueueState(engine, database.schema).texts(topic).values():
            found.update((topic, value) for value in values)
    engine.dispose()
    print(f"{database.kind}: {published.total()} messages in {CHAOS_SECONDS:.0f} s, seed {seed}")
    assert found == published, f"seed {seed}"
    assert published.total() > THREADS
