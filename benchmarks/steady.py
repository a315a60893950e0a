"""What does an old snapshot do: while another session holds one, are the last transactions as fast as the first?

A queue that rewrites or deletes rows slows down as the dead versions pile up that nobody may remove.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.suite import Rounds
from benchmarks.workload import check, messages, new_group, topic
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.suite import Bench
    from sqlmq import Consumer, Producer

COMPARED = 5
"""So many parts of the run, at its beginning and at its end, are compared."""


def run(bench: Bench) -> None:
    parts, size = bench.scale(20, 2 * COMPARED), bench.scale(1_000, 40)
    with MQ(bench.url) as mq:
        for is_held in (False, True):
            with topic(mq) as name, mq.consumer(name, new_group()) as consumer:
                producer = mq.producer(name)
                _produce(producer, 100)
                _commit(consumer, 100)
                with _old_snapshot(bench) if is_held else _none():
                    rates = [(_produce(producer, size), _commit(consumer, size)) for _ in range(parts)]
            produced, committed = [rate for rate, _ in rates], [rate for _, rate in rates]
            words = f"{parts * size:,} of each, " + ("an old snapshot held" if is_held else "no snapshot held")
            suffix = "" if is_held else ", no snapshot"
            bench.add(
                words,
                {
                    "produce, first": Rounds(tuple(produced[:COMPARED])),
                    "produce, last": Rounds(tuple(produced[-COMPARED:])),
                    "poll(1) and commit, first": Rounds(tuple(committed[:COMPARED])),
                    "poll(1) and commit, last": Rounds(tuple(committed[-COMPARED:])),
                },
                {
                    f"produce, last / first{suffix}": _last_by_first(produced),
                    f"commit, last / first{suffix}": _last_by_first(committed),
                },
                unit="transactions/s",
            )


def _last_by_first(rates: list[float]) -> Rounds:
    return Rounds(tuple(last / first for first, last in zip(rates[:COMPARED], rates[-COMPARED:], strict=True)))


def _produce(producer: Producer, count: int) -> float:
    batch = messages(count)
    began = time.perf_counter()
    for message in batch:
        producer.produce(message)
    return count / (time.perf_counter() - began)


def _commit(consumer: Consumer, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        check(len(consumer.poll(1, timeout=10)) == 1, "nothing came")
        consumer.commit()
    return count / (time.perf_counter() - began)


@contextmanager
def _old_snapshot(bench: Bench) -> Iterator[None]:
    if bench.is_postgres:
        with bench.database.connect() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SELECT count(*) FROM sqlmq_partition")
            yield
            connection.execute("ROLLBACK")
        return
    file = bench.database.open()
    file.execute("BEGIN")
    file.execute("SELECT count(*) FROM sqlmq_partition").fetchone()
    yield
    file.execute("ROLLBACK")
    file.close()


@contextmanager
def _none() -> Iterator[None]:
    yield
