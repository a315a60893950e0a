"""sqlmq itself, used as any of its peers: three partitions, the default."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.harness.databases import POSTGRES, SQLITE, make_tables
from benchmarks.harness.workload import messages
from benchmarks.peers import OURS, Peer
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Iterator


class OurQueue:
    def __init__(self, mq: MQ) -> None:
        self._mq = mq
        self._producer = mq.producer("bench")

    def produce(self, count: int) -> None:
        batch = messages(min(count, 1_000))
        for _ in range(count // len(batch)):
            self._producer.produce_many(batch)

    def drain(self, count: int) -> int:
        done = 0
        with self._mq.consumer("bench", "drain") as consumer:
            while done < count and (found := consumer.poll(1_000, timeout=10)):
                done += len(found)
            consumer.commit()
        return done


@contextmanager
def open_queue(target: str) -> Iterator[OurQueue]:
    url = target.replace("postgresql:", "postgresql+psycopg:") if "://" in target else f"sqlite:///{target}"
    make_tables(url)
    with MQ(url) as mq:
        yield OurQueue(mq)


PEERS = (Peer(OURS, "sqlmq", (POSTGRES, SQLITE), 100_000, "produce_many of 1,000, poll(1000)", open_queue),)
