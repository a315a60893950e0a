"""Eight processes that produce at once: what do dense offsets, in commit order, cost against no lock at all?

By hand, the offset comes from a sequence, and no producer waits for another; but then a reader may see offset n + 1 before n,
and never n. With the lock and the newest offset, by hand too, is what a log can have that has neither gaps nor
overtaking. 100 messages a call into eight partitions, and one message a call into one partition.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from benchmarks.harness import limits
from benchmarks.harness.crew import crew
from benchmarks.harness.workload import check, keys_and_values, messages, new_topic
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness.crew import Crew
    from benchmarks.harness.suite import Bench

PROCESSES = PARTITIONS = 8
WARM_UP_CALLS = 3
"""So many calls of each process come before the clock starts: connections are made and statements prepared."""


def run(bench: Bench) -> None:
    if not bench.is_postgres:
        return  # there is one writer at a time
    with crew(PROCESSES) as processes, MQ(bench.url) as mq:
        _compare(bench, processes, mq, size=100, partitions=PARTITIONS, calls=bench.scale(150, 5))
        _compare(bench, processes, mq, size=1, partitions=1, calls=bench.scale(400, 20))


def _compare(bench: Bench, processes: Crew, mq: MQ, *, size: int, partitions: int, calls: int) -> None:
    count = PROCESSES * size * (WARM_UP_CALLS + calls)
    where = "1 partition" if partitions == 1 else f"{partitions} partitions"
    unlocked, locked = "by hand: no lock, offsets of a sequence", "by hand: lock, newest offset"
    name = new_topic(mq, partitions)
    with limits.postgres_by_hand(bench.database) as loose, limits.postgres_by_hand(bench.database) as dense:

        def produced() -> float:
            before = mq.admin.describe_topic(name).messages
            rate = processes.run(produce, [(bench.url, name, size, calls)] * PROCESSES)
            length = mq.admin.describe_topic(name).messages
            check(length - before == count, f"{length - before} messages are in the log instead of {count}")
            with bench.database.connect() as connection:
                rows = limits.count_rows(connection, name)
            check(rows == length, f"the partitions' ends promise {length} messages, {rows} are there")
            return rate

        def inserted(hand: limits.PostgresByHand, log: limits.UnlockedLog | limits.LockedLog) -> float:
            conninfo = bench.database.conninfo
            arguments = [(conninfo, log, size, calls, number % partitions) for number in range(PROCESSES)]
            rate = processes.run(insert, arguments)
            hand.check_added(count)
            return rate

        what = f"{size} a call, {where}"
        bench.compare(
            f"{PROCESSES} processes, {what}",
            {
                "produce": produced,
                unlocked: lambda: inserted(loose, loose.unlocked),
                locked: lambda: inserted(dense, dense.locked),
            },
            {
                f"{what}: produce / no lock": ("produce", unlocked),
                f"{what}: produce / lock, newest offset": ("produce", locked),
                f"{what}: lock, newest offset / no lock": (locked, unlocked),
            },
        )


@contextmanager
def produce(url: str, name: str, size: int, calls: int) -> Iterator[Callable[[], int]]:
    # No keys: a batch goes to one partition, and each partition has its turn.
    batch = messages(size, with_keys=False)
    with MQ(url) as mq, mq.producer(name) as producer:
        call = (lambda: producer.produce(batch[0])) if size == 1 else (lambda: producer.produce_many(batch))
        yield _repeated(call, size, calls)


@contextmanager
def insert(
    conninfo: str, log: limits.UnlockedLog | limits.LockedLog, size: int, calls: int, partition: int
) -> Iterator[Callable[[], int]]:
    """Insert into one partition only, so that not even the pages of the index are shared."""
    values = [value for _, value in keys_and_values(size)]
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield _repeated(
            (lambda: log.insert(connection, partition, values[0]))
            if size == 1
            else (lambda: log.insert_many(connection, partition, values)),
            size,
            calls,
        )


def _repeated(call: Callable[[], object], size: int, calls: int) -> Callable[[], int]:
    """Make the first few of the calls, and return what makes the others and counts their messages."""

    def repeat(times: int) -> int:
        for _ in range(times):
            call()
        return size * times

    repeat(WARM_UP_CALLS)
    return lambda: repeat(calls)
