"""What a queue with retention is like after a long time: as fast as at first, and no larger?

Two databases of one server at once, for as long as ``--minutes`` says: one left alone, one on which another session holds an old snapshot
from a tenth of the time to four fifths of it. On each a topic of four partitions that keeps its messages for a twentieth of
the time, 500 messages a second in batches of 20, a consumer, and the maintenance that every consumer brings. Now and then a
burst, as fast as it goes: how long it takes to produce and to consume is what is compared, and so are the sizes of the tables.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.snapshot import old_snapshot
from benchmarks.harness.suite import Rounds, ratio
from benchmarks.harness.workload import check, messages, new_group
from sqlmq import MQ, Retention
from sqlmq.background.retention import ROUND_SECONDS

if TYPE_CHECKING:
    from benchmarks.harness.databases import BenchDatabase
    from benchmarks.harness.suite import Bench
    from sqlmq import Consumer, Producer

PARTITIONS = 4
BATCH = 20
BATCHES_A_SECOND = 25
PARTS = 20
"""So many bursts and samples there are, evenly over the time."""
COMPARED = 5
"""So many parts, after the first ones, in which the topic fills, and at the end, are compared."""
FILLED = 3
"""After so many parts the topic holds what it will keep, and retention has begun."""
HELD, RELEASED = PARTS // 10, PARTS * 4 // 5
MB = 1024 * 1024


@dataclass(slots=True)
class Found:
    """What one run saw, part by part."""

    produced: list[float] = field(default_factory=list)
    consumed: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    size_mb: list[float] = field(default_factory=list)
    dead_rows: list[float] = field(default_factory=list)
    vacuums: int = 0
    oldest_transaction: int = 0
    evictions: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Time:
    """How long it lasts; *simulated*, all that happens in that time follows without a pause."""

    seconds: float
    is_simulated: bool = False

    @property
    def part_seconds(self) -> float:
        return self.seconds / PARTS

    @property
    def part_batches(self) -> int:
        """How many batches are produced at the steady rate in a part."""
        return max(1, round(self.part_seconds * BATCHES_A_SECOND))

    @property
    def burst_batches(self) -> int:
        return 50 if self.is_simulated else 500

    @property
    def retention(self) -> Retention:
        """Keeps what was produced in a part; simulated, it has to be counted."""
        if self.is_simulated:
            return Retention(max_messages=max(1, self.part_batches * BATCH // PARTITIONS))
        return Retention(max_age_seconds=max(self.part_seconds, 0.1))


def run(bench: Bench) -> None:
    whole = Time(4.0 if bench.quick else bench.minutes * 60)
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        calm, held = (stack.enter_context(bench.database.apart()) for _ in range(2))
        runs = {
            "left alone": threads.submit(last, calm, whole, is_held=False),
            "an old snapshot held": threads.submit(last, held, whole, is_held=True),
        }
        for name, future in runs.items():
            _report(bench, name, whole.seconds / 60, future.result())


def last(database: BenchDatabase, whole: Time, *, is_held: bool) -> Found:
    """Produce and consume for so long; see what it was like."""
    found = Found()
    with ExitStack() as stack, MQ(database.url) as mq:
        mq.create_topic("lasting", PARTITIONS, retention=whole.retention)
        producer = mq.producer("lasting")
        consumer = stack.enter_context(mq.consumer("lasting", new_group()))
        snapshot = stack.enter_context(ExitStack())
        for part in range(PARTS):
            if is_held and part == HELD:
                snapshot.enter_context(old_snapshot(database))
            if part == RELEASED:
                snapshot.close()
            found.p99_ms.append(_steadily(producer, consumer, whole))
            produced, consumed = _burst(producer, consumer, whole.burst_batches)
            found.produced.append(produced)
            found.consumed.append(consumed)
            if whole.part_seconds < ROUND_SECONDS:
                mq.admin.apply_retention()
            if whole.is_simulated and database.is_postgres:
                _vacuum(database)
            _sample(database, found)
        found.total = sum(one.end_offset for one in mq.admin.describe_topic("lasting").partitions)
        found.evictions = len(mq.admin.evictions("lasting"))
        check(mq.admin.describe_group("lasting", consumer.group).lag == 0, "not all was consumed")
    return found


def _steadily(producer: Producer, consumer: Consumer, whole: Time) -> float:
    """Produce at a steady rate and consume what comes; return the 99th percentile of a batch, in milliseconds."""
    batch = messages(BATCH)
    took = []
    began = time.perf_counter()
    for number in range(whole.part_batches):
        if not whole.is_simulated:
            time.sleep(max(0.0, began + number / BATCHES_A_SECOND - time.perf_counter()))
        sent = time.perf_counter()
        producer.produce_many(batch)
        took.append(time.perf_counter() - sent)
        if number % BATCHES_A_SECOND == 0:
            _consume(consumer)
    _consume(consumer)
    return sorted(took)[len(took) * 99 // 100] * 1_000


def _burst(producer: Producer, consumer: Consumer, batches: int) -> tuple[float, float]:
    """Produce and consume some batches as fast as it goes; return both rates, in messages a second."""
    batch = messages(BATCH)
    began = time.perf_counter()
    for _ in range(batches):
        producer.produce_many(batch)
    produced = time.perf_counter()
    count = batches * BATCH
    check(_consume(consumer) == count, "not the burst was consumed, but something else")
    return count / (produced - began), count / (time.perf_counter() - produced)


def _consume(consumer: Consumer) -> int:
    """Consume and commit what is there."""
    count = 0
    while got := consumer.poll(100, timeout=0):
        count += len(got)
        consumer.commit()
    return count


def _vacuum(database: BenchDatabase) -> None:
    """Do what autovacuum would have found to do by now."""
    with database.connect() as connection:
        for table in ("sqlmq_message", "sqlmq_group_offset"):
            connection.execute(f"VACUUM ANALYZE {table}")


def _sample(database: BenchDatabase, found: Found) -> None:
    if not database.is_postgres:
        path = Path(database.path)
        found.size_mb.append(sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / MB)
        return
    with database.connect() as connection:
        row = connection.execute(
            "SELECT sum(pg_total_relation_size(relid)), sum(n_dead_tup), sum(autovacuum_count),"
            " (SELECT max(age(relfrozenxid)) FROM pg_class WHERE relname LIKE 'sqlmq\\_%' AND relkind = 'r')"
            " FROM pg_stat_user_tables WHERE relname LIKE 'sqlmq\\_%'"
        ).fetchone()
    assert row is not None
    found.size_mb.append(float(row[0]) / MB)
    found.dead_rows.append(float(row[1]))
    found.vacuums, found.oldest_transaction = int(row[2]), int(row[3])


def _report(bench: Bench, name: str, minutes: float, found: Found) -> None:
    check(found.evictions == 0, "a group that had read everything has lost something")
    rates = {"produced in a burst": Rounds(tuple(found.produced)), "consumed": Rounds(tuple(found.consumed))}
    what = f"retention, {minutes:.1f} minutes, {found.total:,} messages, {name}, parts in order"
    bench.add(
        what,
        rates,
        {f"{step}, {name}, last / first": _later(rounds.values) for step, rounds in rates.items()},
        unit="messages/s",
    )
    sizes = {"size": Rounds(tuple(found.size_mb)), "p99 of a batch, ms": Rounds(tuple(found.p99_ms))}
    if found.dead_rows:
        sizes |= {"thousands of dead rows": Rounds(tuple(dead / 1_000 for dead in found.dead_rows))}
    notes = (
        f"MB in order: {', '.join(f'{size:.0f}' for size in found.size_mb)}",
        f"autovacuum ran {found.vacuums} times; the oldest transaction id of a table is {found.oldest_transaction:,} old",
    )
    bench.add(
        f"{what}: sizes",
        sizes,
        {f"size, {name}, last / first": _later(found.size_mb)},
        unit="MB",
        notes=notes[: 2 if bench.is_postgres else 1],
    )


def _later(values: list[float] | tuple[float, ...]) -> Rounds:
    """The last parts, each divided by one of the first in which the topic was full."""
    return ratio(Rounds(tuple(values[-COMPARED:])), Rounds(tuple(values[FILLED : FILLED + COMPARED])))
