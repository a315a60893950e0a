"""What does an old snapshot do: while another session holds one, are the last transactions as fast as the first?

A queue that rewrites or deletes rows slows down as dead versions pile up that cannot be removed. On Postgres 300,000
transactions of the library's, five of six of them appends, the others commits of a position; beside them, in the same parts of
the run, a log whose offsets are counted in a row, and pgmq. No commit waits for the disk here (synchronous_commit is off for
all): what fsync takes would hide what the dead versions take.
"""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import make_url

from benchmarks import peers
from benchmarks.harness.snapshot import old_snapshot
from benchmarks.harness.suite import Rounds, ratio
from benchmarks.harness.workload import check, fill, keys_and_values, messages, new_group, new_topic
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.databases import BenchDatabase
    from benchmarks.harness.suite import Bench
    from sqlmq import Consumer, Producer

COMPARED = 5
"""So many parts of the run, at its beginning and at its end, are compared."""
ASYNCHRONOUS = "-c synchronous_commit=off"


def run(bench: Bench) -> None:
    parts = bench.scale(20, 2 * COMPARED)
    with ExitStack() as stack:
        mq = stack.enter_context(MQ(_url(bench.database)))
        name = new_topic(mq)
        producer, consumer = mq.producer(name), stack.enter_context(mq.consumer(name, new_group()))
        appends, commits = _sizes(bench)
        steps: dict[str, Callable[[], float]] = {
            "produce": lambda: produce(producer, appends),
            "poll(1) and commit": lambda: commit(consumer, commits),
        }
        if bench.is_postgres:
            steps |= _others(bench, stack)
        for measure in steps.values():
            measure()
        with old_snapshot(bench.database):
            found: dict[str, list[float]] = {step: [] for step in steps}
            for _ in range(parts):
                for step, measure in steps.items():
                    found[step].append(measure())
        check(mq.admin.describe_topic(name).messages == appends * (1 + parts), "not all messages are in the log")
        check(
            mq.admin.describe_group(name, consumer.group).lag == (appends - commits) * (1 + parts),
            "not all was committed",
        )
    rates = {step: Rounds(tuple(values)) for step, values in found.items()}
    bench.add(
        f"an old snapshot held, {parts} parts in order: {parts * appends:,} appends, {parts * commits:,} commits",
        rates,
        {f"{step}, last / first": last_by_first(rounds) for step, rounds in rates.items()},
        unit="transactions/s",
    )
    if bench.is_postgres:
        _after_retention(bench)


def last_by_first(rounds: Rounds) -> Rounds:
    return ratio(Rounds(rounds.values[-COMPARED:]), Rounds(rounds.values[:COMPARED]))


def produce(producer: Producer, count: int) -> float:
    batch = messages(1_000)
    began = time.perf_counter()
    for i in range(count):
        producer.produce(batch[i % 1_000])
    return count / (time.perf_counter() - began)


def commit(consumer: Consumer, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        check(len(consumer.poll(1, timeout=10)) == 1, "nothing came")
        consumer.commit()
    return count / (time.perf_counter() - began)


def _sizes(bench: Bench) -> tuple[int, int]:
    """How many appends and commits a part has. A commit follows an append, so there are no more of them."""
    return (bench.scale(12_500, 40), bench.scale(2_500, 20)) if bench.is_postgres else (bench.scale(1_000, 40),) * 2


def _others(bench: Bench, stack: ExitStack) -> dict[str, Callable[[], float]]:
    """A counter in a row, and pgmq if it is there; fewer transactions, for they get slow."""
    connection = stack.enter_context(psycopg.connect(bench.database.conninfo, autocommit=True, options=ASYNCHRONOUS))
    counter = CounterLog(connection)
    steps = {"by hand: a counter row": lambda: counter.append(bench.scale(2_500, 20))}
    pgmq = peers.find("pgmq")
    if pgmq is None:
        return steps
    pgmq.install(bench.database.conninfo)

    def cycle() -> float:
        count = bench.scale(500, 10)
        began = time.perf_counter()
        for _ in range(count):
            connection.execute(pgmq.SEND, [pgmq.BODY]).fetchall()
            check(pgmq.read_and_delete(connection, 1) == 1, "pgmq gave no message")
        return count / (time.perf_counter() - began)

    return {**steps, "pgmq: send, read, delete": cycle}


class CounterLog:
    """A log whose next offset is kept, and updated, in a row: what the library does not do."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._count = 0
        self.name = f"sqlmq_bench_{uuid.uuid4().hex[:8]}"
        connection.execute(f"CREATE TABLE {self.name} (LIKE sqlmq_message INCLUDING ALL)")
        connection.execute(f"CREATE TABLE {self.name}_partition (id bigint PRIMARY KEY, next_offset bigint NOT NULL)")
        connection.execute(f"INSERT INTO {self.name}_partition VALUES (1, 0)")

    def append(self, count: int) -> float:
        statement = f"""
            WITH taken AS (
                UPDATE {self.name}_partition SET next_offset = next_offset + 1 WHERE id = 1 RETURNING next_offset - 1 AS at
            )
            INSERT INTO {self.name} (partition_id, msg_offset, key, value) SELECT 1, at, %b, %b FROM taken
        """
        rows = keys_and_values(1_000)
        began = time.perf_counter()
        for i in range(count):
            self._connection.execute(statement, rows[i % 1_000])
        seconds = time.perf_counter() - began
        self._count += count
        newest = self._connection.execute(f"SELECT max(msg_offset) + 1 FROM {self.name}").fetchone()
        check(newest == (self._count,), f"by hand, {newest} was written instead of {self._count}")
        return count / seconds


def _after_retention(bench: Bench) -> None:
    """Delete a whole partition while the snapshot is held: its rows and index entries are dead, and stay."""
    count = bench.scale(300_000, 3_000)
    size = bench.scale(2_000, 50)
    with MQ(_url(bench.database)) as mq:
        kept, emptied = new_topic(mq), new_topic(mq)
        producers = {name: mq.producer(name) for name in (kept, emptied)}
        for producer in producers.values():
            fill(producer, count)
        with old_snapshot(bench.database):
            with bench.database.connect() as connection:
                retain_nothing(connection, emptied, count)
            check(mq.admin.describe_topic(emptied).messages == 0, "messages are left")
            result = bench.compare(
                f"an old snapshot held, {count:,} messages deleted below start_offset, produce",
                {
                    "all deleted": lambda: produce(producers[emptied], size),
                    "nothing deleted": lambda: produce(producers[kept], size),
                },
                {"produce: nothing deleted / all deleted": ("nothing deleted", "all deleted")},
                notes=("The ratio of the rates is how many times longer an append takes when all is deleted.",),
            )
        appended = size * (len(result.rates["all deleted"].values) + bench.warm_up_rounds)
        check(mq.admin.describe_topic(emptied).messages == appended, "not all messages are in the log")


def retain_nothing(connection: psycopg.Connection[Any], name: str, end: int) -> None:
    """What retention does, done by hand: move the partition's start to its end, then delete what is below."""
    with connection.transaction():
        rows = connection.execute(
            "UPDATE sqlmq_partition p SET start_offset = %s FROM sqlmq_topic t "
            "WHERE t.id = p.topic_id AND t.name = %s RETURNING p.id",
            [end, name],
        ).fetchall()
    check(len(rows) == 1, "there is no such partition")
    deleted = connection.execute(
        "DELETE FROM sqlmq_message WHERE partition_id = %s AND msg_offset < %s", [*rows[0], end]
    )
    check(deleted.rowcount == end, f"{deleted.rowcount} messages were deleted")


def _url(database: BenchDatabase) -> str:
    if not database.is_postgres:
        return database.url
    url = make_url(database.url).update_query_dict({"options": ASYNCHRONOUS})
    return url.render_as_string(hide_password=False)
