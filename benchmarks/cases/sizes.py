"""What does a message cost when there is more of everything: backlog, partitions, groups? It should cost the same.

A backlog of 10,000,000 on Postgres, 1,000,000 on SQLite, is written by one statement of the database's own, and counted. It
has a database of its own, as the small one has, so that not even the depth of the index is shared.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from benchmarks.cases.consuming import POLL, poll
from benchmarks.harness.counting import count_statements
from benchmarks.harness.limits import partition_ids
from benchmarks.harness.suite import Rounds, once
from benchmarks.harness.workload import KEYS, VALUE_BYTES, check, check_places, fill, messages, new_group, new_topic
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.databases import BenchDatabase
    from benchmarks.harness.suite import Bench
    from sqlmq import Message, Producer

PARTITIONS, GROUPS = 1_024, 100
SMALL = 10_000
AGAIN = 10
UNTIL_DOOMSDAY = 1e6
"""Seconds: neither heartbeats nor commits in between."""


def run(bench: Bench) -> None:
    _backlog(bench)
    with MQ(bench.url) as mq:
        _partitions(bench, mq)
        _groups(bench, mq)
    _round_trips(bench)


def _backlog(bench: Bench) -> None:
    large = bench.scale(10_000_000 if bench.is_postgres else 1_000_000, 20_000)
    transactions = bench.scale(20, 2)
    small = bench.scale(SMALL, 2_000)
    names = {large: f"backlog {large:,}", small: f"backlog {small:,}"}
    with (
        bench.database.apart() as large_database,
        bench.database.apart() as small_database,
        MQ(large_database.url) as large_mq,
        MQ(small_database.url) as small_mq,
    ):
        deep, shallow = new_topic(large_mq), new_topic(small_mq)
        generate(large_database, deep, large)
        fill(small_mq.producer(shallow), small)
        check(large_mq.admin.describe_topic(deep).messages == large, "the backlog is not what it should be")
        bench.compare(
            f"a backlog of {large:,} and of {small:,}, poll(1000) over {small:,} messages, in {AGAIN} groups",
            {
                names[large]: lambda: poll_in_groups(large_mq, deep, small),
                names[small]: lambda: poll_in_groups(small_mq, shallow, small),
            },
            {"consume: backlog large / small": (names[large], names[small])},
        )
        thousand = messages(1_000)

        def produce_to_small() -> float:
            # A new topic each round: this one would not stay small.
            producer = small_mq.producer(new_topic(small_mq))
            fill(producer, small)
            return produce(producer, thousand, transactions)

        bench.compare(
            f"a backlog of {large:,} and of {small:,}, produce_many 1,000 at a time",
            {
                names[large]: lambda: produce(large_mq.producer(deep), thousand, transactions),
                names[small]: produce_to_small,
            },
            {"produce: backlog large / small": (names[large], names[small])},
        )


def poll_in_groups(mq: MQ, name: str, count: int) -> float:
    """Read *count* messages in one group after the other; return the rate. Once would take some 20 ms."""
    rates = [poll(mq, name, count) for _ in range(AGAIN)]
    return statistics.harmonic_mean(rates)


def generate(database: BenchDatabase, name: str, count: int) -> None:
    """Write *count* messages of the usual size into the one partition of topic *name*, by one statement, and count them."""
    if database.is_postgres:
        with database.connect() as connection:
            (id_,) = partition_ids(connection, name)
            inserted = connection.execute(f"""
                INSERT INTO sqlmq_message (partition_id, msg_offset, key, value)
                SELECT {id_}, n, convert_to(lpad((n % {KEYS})::text, 8, '0'), 'UTF8'),
                    convert_to(rpad(lpad(n::text, 8, '0'), {VALUE_BYTES}, 'v'), 'UTF8')
                FROM generate_series(0, {count - 1}) AS n
            """).rowcount
            # As autovacuum would in time; reading must not depend on when it comes.
            connection.execute("VACUUM (ANALYZE) sqlmq_message")
    else:
        with closing(database.open()) as file:
            (id_,) = partition_ids(file, name)
            file.execute(f"""
                WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count - 1})
                INSERT INTO sqlmq_message (partition_id, msg_offset, key, value, created_at)
                SELECT {id_}, n, CAST(printf('%08d', n % {KEYS}) AS blob),
                    CAST(printf('%08d', n) || replace(printf('%{VALUE_BYTES - 8}s', ''), ' ', 'v') AS blob),
                    unixepoch() * 1000000
                FROM numbers
            """)
            (inserted,) = file.execute("SELECT changes()").fetchone()
    check(inserted == count, f"{inserted} messages were written instead of {count}")


def _partitions(bench: Bench, mq: MQ) -> None:
    transactions = bench.scale(20, 2)
    count = bench.scale(100_000, 3_000)
    many = f"{PARTITIONS:,} partitions"
    parted, whole = mq.producer(new_topic(mq, PARTITIONS)), mq.producer(new_topic(mq))
    keyed, keyless = messages(1_000), messages(1_000, with_keys=False)
    bench.compare(
        f"{many} and one, produce_many 1,000 at a time",
        {
            many: lambda: produce(parted, keyed, transactions),
            "1 partition": lambda: produce(whole, keyed, transactions),
            f"{many}, no keys": lambda: produce(parted, keyless, transactions),
            "1 partition, no keys": lambda: produce(whole, keyless, transactions),
        },
        {
            "produce: 1,024 partitions / 1": (many, "1 partition"),
            "produce: 1,024 partitions / 1, no keys": (f"{many}, no keys", "1 partition, no keys"),
        },
        notes=(
            "1,000 keys fall into some 630 of the partitions: with keys, 1,000 messages are 630 batches of 1 or 2.",
        ),
    )
    names = {many: new_topic(mq, PARTITIONS), "1 partition": new_topic(mq)}
    for name in names.values():
        fill(mq.producer(name), count)
    bench.compare(
        f"{many} and one, poll(1000) over {count:,} messages",
        {what: functools.partial(poll, mq, name, count) for what, name in names.items()},
        {"consume: 1,024 partitions / 1": (many, "1 partition")},
    )


def _groups(bench: Bench, mq: MQ) -> None:
    each, groups = bench.scale(10_000, 500), bench.scale(GROUPS, 10)
    many, one = f"{groups} groups", "1 group"

    def alone() -> float:
        return each * AGAIN / sum(seconds_by_turns(mq, 1, each) for _ in range(AGAIN))

    bench.compare(
        f"groups that read {each:,} messages by turns, poll(1000)",
        {many: lambda: each * groups / seconds_by_turns(mq, groups, each), one: alone},
        {"consume: 100 groups / 1": (many, one)},
    )


def _round_trips(bench: Bench) -> None:
    """Count the statements of polls that find nothing read ahead, with no commit or heartbeat among them."""
    count = bench.scale(20_000, 3_000)
    quiet = {"lease_seconds": UNTIL_DOOMSDAY, "commit_interval_seconds": UNTIL_DOOMSDAY, "notify": False}
    rates: dict[str, Rounds] = {}
    for partitions in (1, PARTITIONS):
        with MQ(bench.url, **quiet) as mq:  # type: ignore[arg-type]
            name = new_topic(mq, partitions)
            fill(mq.producer(name), count)
            with mq.consumer(name, new_group()) as consumer:
                left = count - len(consumer.poll(POLL, timeout=10))
                counter = count_statements(mq.engine)
                before, polls = next(counter), 0
                while left:
                    left -= len(consumer.poll(POLL, timeout=10))
                    polls += 1
                statements = next(counter) - before - 1
        rates[f"{partitions:,} partitions, statements of a poll"] = once(statements / polls)
    bench.add(f"statements of poll(1000), {count:,} messages", rates, {}, unit="statements")


def produce(producer: Producer, batch: Sequence[Message], transactions: int) -> float:
    began = time.perf_counter()
    places = [producer.produce_many(batch) for _ in range(transactions)]
    seconds = time.perf_counter() - began
    check_places(list(itertools.chain.from_iterable(places)), len(batch) * transactions)
    return len(batch) * transactions / seconds


def seconds_by_turns(mq: MQ, groups: int, each: int) -> float:
    """Have so many groups read a new topic of *each* messages, by turns; return how long it took.

    They have joined before there is any message, so that nothing is read before the clock starts.
    """
    name = new_topic(mq)
    with ExitStack() as stack:
        consumers = [stack.enter_context(mq.consumer(name, new_group())) for _ in range(groups)]
        for consumer in consumers:
            check(not consumer.poll(1, timeout=0), "a new topic has messages")
        fill(mq.producer(name), each)
        ends = dict.fromkeys(consumers, 0)
        began = time.perf_counter()
        while min(ends.values()) < each:
            for consumer, end in ends.items():
                if end < each:
                    batch = consumer.poll(POLL, timeout=10)
                    check(bool(batch) and batch[0].offset == end, f"nothing came at {end}")
                    ends[consumer] += len(batch)
                    check(batch[-1].offset == ends[consumer] - 1, "the offsets are not dense")
        for consumer in consumers:
            consumer.commit()
        return time.perf_counter() - began
