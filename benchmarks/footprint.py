"""What a message leaves behind: bytes of write-ahead log, and memory of a consumer that reads a large backlog."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import limits
from benchmarks.consuming import POLL, follow, poll
from benchmarks.suite import Rounds, once
from benchmarks.workload import fill, keys_and_values, messages, new_group, topic
from sqlmq import MQ

if TYPE_CHECKING:
    import psycopg

    from benchmarks.suite import Bench


def run(bench: Bench) -> None:
    if bench.is_postgres:
        _write_ahead_log(bench)
    _memory(bench)


def _write_ahead_log(bench: Bench) -> None:
    transactions = bench.scale(100, 5)
    keys = [key for key, _ in keys_and_values(1_000)]
    values = [value for _, value in keys_and_values(1_000)]
    count = 1_000 * transactions
    found: dict[str, list[float]] = {"produced and consumed": [], "bare INSERT": []}
    with MQ(bench.url) as mq, bench.database.connect() as connection:
        for _ in range(bench.rounds):
            with topic(mq) as name:
                producer = mq.producer(name)
                # Or the first write to each page after a checkpoint that happens to come would be counted.
                connection.execute("CHECKPOINT")
                before = _position(connection)
                for _ in range(transactions):
                    producer.produce_many(messages(1_000))
                poll(mq, name, count)
                found["produced and consumed"].append((_position(connection) - before) / count)
            with limits.postgres_by_hand(bench.database) as hand:
                connection.execute("CHECKPOINT")
                before = _position(connection)
                for _ in range(transactions):
                    hand.append(connection, keys, values)
                found["bare INSERT"].append((_position(connection) - before) / count)
                hand.check_grew(count)
    rates = {name: Rounds(tuple(values)) for name, values in found.items()}
    ratios = tuple(a / b for a, b in zip(found["produced and consumed"], found["bare INSERT"], strict=True))
    bench.add(
        f"write-ahead log, {count:,} messages, 1,000 at a time",
        rates,
        {"WAL bytes: produced and consumed / bare INSERT": Rounds(ratios)},
        unit="bytes/message",
    )


def _position(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return int(row[0]) if row else 0  # type: ignore[call-overload]


def _memory(bench: Bench) -> None:
    count = bench.scale(500_000, 20_000)
    with MQ(bench.url) as mq, topic(mq) as name:
        fill(mq.producer(name), count)
        # In a process of its own, which has grown for no other reason.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
            first, last = processes.submit(_read, bench.url, name, count).result()
    if last:
        bench.add(
            f"memory of a consumer, {count:,} messages by poll(1000)",
            {"after a tenth of them": once(first), "after all": once(last)},
            {"memory: after all / after a tenth": once(last / first)},
            unit="MB resident",
        )


def _read(url: str, name: str, count: int) -> tuple[float, float]:
    first = 0.0
    position = 0
    with MQ(url) as mq, mq.consumer(name, new_group()) as consumer:
        while position < count:
            position = follow(consumer.poll(POLL, timeout=30), position)
            if not first and position >= count // 10:
                first = _resident_mb()
        return first, _resident_mb()


def _resident_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
