"""Eight processes that consume at once, eight partitions: one partition each, against pgmq's one queue for all.

Each consumer has its partition before the messages are produced and the clock starts. pgmq is read and deleted from, as many
messages at a time; at ten a time each batch is committed on both sides.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks import peers
from benchmarks.harness.crew import crew
from benchmarks.harness.workload import check, fill, new_group, new_topic
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness.crew import Crew
    from benchmarks.harness.suite import Bench

PROCESSES = 8
BALANCING_POLLS = 600
"""So many polls of 50 ms until the partitions are shared out."""


def run(bench: Bench) -> None:
    if not bench.is_postgres:
        return  # there is no pgmq, and there is one writer at a time
    with crew(PROCESSES) as processes, MQ(bench.url) as mq, bench.database.scratch() as target:
        _thousand(bench, processes, mq, target)
        _ten(bench, processes, mq, target)


def _thousand(bench: Bench, processes: Crew, mq: MQ, target: str) -> None:
    each, theirs = bench.scale(40_000, 1_000), bench.scale(10_000, 250)
    bench.compare(
        f"{PROCESSES} processes, {PROCESSES} partitions, 1,000 at a time",
        {
            "poll(1000)": lambda: _consume(bench, processes, mq, each=each, size=1_000),
            **_by_pgmq("pgmq, read(1000) and delete", processes, target, each=theirs, size=1_000),
        },
        {"8 processes, 1,000 a poll: sqlmq / pgmq": ("poll(1000)", "pgmq, read(1000) and delete")},
    )


def _ten(bench: Bench, processes: Crew, mq: MQ, target: str) -> None:
    committing, each, theirs = bench.scale(3_000, 100), bench.scale(20_000, 1_000), bench.scale(1_000, 125)
    bench.compare(
        f"{PROCESSES} processes, {PROCESSES} partitions, 10 at a time",
        {
            "poll(10), commit()": lambda: _consume(bench, processes, mq, each=committing, size=10, commits=True),
            "poll(10)": lambda: _consume(bench, processes, mq, each=each, size=10),
            **_by_pgmq("pgmq, read(10) and delete", processes, target, each=theirs, size=10),
        },
        {
            "8 processes, 10 a poll: sqlmq / pgmq": ("poll(10), commit()", "pgmq, read(10) and delete"),
            "8 processes, 10 a poll, committed in time: sqlmq / pgmq": ("poll(10)", "pgmq, read(10) and delete"),
        },
        notes=("poll(10) without commit() commits what is finished five times a second, which is the default.",),
    )


def _by_pgmq(name: str, processes: Crew, target: str, *, each: int, size: int) -> dict[str, Callable[[], float]]:
    """What consumes by pgmq, by its *name*; nothing if pgmq is not there."""
    pgmq = peers.find("pgmq")
    if pgmq is None:
        return {}
    pgmq.install(target)

    def measure() -> float:
        with psycopg.connect(target, autocommit=True) as connection:
            pgmq.send(connection, each * PROCESSES)
            rate = processes.run(read_and_delete, [(target, size)] * PROCESSES)
            left = connection.execute(f"SELECT count(*) FROM pgmq.q_{pgmq.QUEUE}").fetchone()
        check(left == (0,), f"{left} messages are left")
        return rate

    return {name: measure}


def _consume(bench: Bench, processes: Crew, mq: MQ, *, each: int, size: int, commits: bool = False) -> float:
    name = new_topic(mq, PROCESSES)
    group = new_group()
    rate = processes.run(
        consume,
        [(bench.url, name, group, each, size, commits)] * PROCESSES,
        when_ready=lambda: fill_evenly(mq, name, each),
    )
    found = mq.admin.describe_group(name, group)
    check([partition.position for partition in found.partitions] == [each] * PROCESSES, "not all were finished")
    return rate


def fill_evenly(mq: MQ, name: str, each: int) -> None:
    """Append *each* messages to each partition: those without a key take turns, batch by batch."""
    batch = min(each, 5_000)
    producer = mq.producer(name)
    for _ in range(each // batch):
        for _ in range(PROCESSES):
            fill(producer, batch, with_keys=False)
    ends = [partition.end_offset for partition in mq.admin.describe_topic(name).partitions]
    check(ends == [each] * PROCESSES, f"the partitions end at {ends}")


@contextmanager
def consume(url: str, name: str, group: str, each: int, size: int, commits: bool) -> Iterator[Callable[[], int]]:
    with MQ(url) as mq, mq.consumer(name, group) as consumer:
        owners: list[str | None] = []
        for _ in range(BALANCING_POLLS):
            check(consumer.poll(timeout=0.05) == [], "a message came too soon")
            owners = [one.owner for one in mq.admin.describe_group(name, group).partitions]
            if len(set(owners) - {None}) == PROCESSES:
                break
        check(len(consumer.partitions) == 1, f"the partitions are owned by {owners}")

        def work() -> int:
            left = each
            while left:
                messages = consumer.poll(min(size, left), timeout=10)
                check(bool(messages), f"{left} messages did not come")
                left -= len(messages)
                if commits:
                    consumer.commit()
            consumer.commit()
            return each

        yield work


@contextmanager
def read_and_delete(target: str, size: int) -> Iterator[Callable[[], int]]:
    from benchmarks.peers import pgmq

    with psycopg.connect(target, autocommit=True) as connection:

        def work() -> int:
            return _drain(connection, size, pgmq.read_and_delete)

        yield work


def _drain(connection: psycopg.Connection[Any], size: int, take: Callable[..., int]) -> int:
    done = 0
    while taken := take(connection, size):
        done += taken
    return done
