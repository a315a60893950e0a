"""sqlmq itself, used as any of its peers: three partitions, the default."""

from __future__ import annotations

import time

from sqlalchemy import create_engine

from benchmarks.databases import POSTGRES, SQLITE
from benchmarks.workload import check, messages
from sqlmq import MQ
from sqlmq.migrate import upgrade

PACKAGE = "sqlmq"
KINDS = (POSTGRES, SQLITE)
MESSAGES = 100_000
HOW = "produce_many of 1,000, poll(1000)"


def produce_and_drain(target: str, count: int) -> tuple[float, float]:
    url = target.replace("postgresql:", "postgresql+psycopg:") if "://" in target else f"sqlite:///{target}"
    engine = create_engine(url)
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()
    batch = messages(min(count, 1_000))
    with MQ(url) as mq:
        producer = mq.producer("bench")
        began = time.perf_counter()
        for _ in range(count // len(batch)):
            producer.produce_many(batch)
        produced = time.perf_counter()
        left = count
        with mq.consumer("bench", "drain") as consumer:
            while left:
                found = consumer.poll(1_000, timeout=10)
                check(bool(found), f"{left} messages did not come")
                left -= len(found)
        return produced - began, time.perf_counter() - produced
