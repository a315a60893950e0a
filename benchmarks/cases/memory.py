"""How much a consumer's process grows: over a backlog of small messages, and over messages of 1 MB.

In a process of its own, which has grown for no other reason. What counts is the most it ever had in memory, less what it had
before it asked for the first message.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases.consuming import POLL
from benchmarks.harness.suite import Rounds, once
from benchmarks.harness.workload import check, fill, new_group, new_topic
from sqlmq import MQ, Message
from sqlmq.model.config import MQConfig

if TYPE_CHECKING:
    from benchmarks.harness.suite import Bench

MB = 1024 * 1024
LARGE_BYTES = 1_000_000
PARTITIONS = 8


def run(bench: Bench) -> None:
    if not _status():
        return  # only Linux says how much memory a process had
    count, large_count = bench.scale(1_000_000, 10_000), bench.scale(100, 20)
    with MQ(bench.url) as mq:
        small, large = new_topic(mq, PARTITIONS), new_topic(mq, PARTITIONS)
        fill(mq.producer(small), count)
        bench.add(
            f"memory of a consumer, {count:,} messages by poll(1000)",
            {"growth over a backlog": once(_grown(bench, small, count))},
            {},
            unit="MB",
        )
        prefetch_mb = MQConfig().prefetch_bytes / MB
        producer = mq.producer(large)
        for number in range(large_count):
            producer.produce_with_partition(Message(bytes(LARGE_BYTES)), number % PARTITIONS)
        grown = [_grown(bench, large, large_count) for _ in range(bench.scale(3, 1))]
        bench.add(
            f"memory of a consumer, {large_count} messages of 1 MB, prefetch_bytes of {prefetch_mb:.0f} MB",
            {"growth over messages of 1 MB": Rounds(tuple(grown))},
            {"growth over messages of 1 MB / prefetch_bytes": Rounds(tuple(one / prefetch_mb for one in grown))},
            unit="MB",
            notes=("What is read is in memory three times: as the driver got it, as rows, and what was read before.",),
        )


def _grown(bench: Bench, name: str, count: int) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(consume, bench.url, name, count).result()


def consume(url: str, name: str, count: int) -> float:
    """By how many MB this process grows while it consumes *count* messages."""
    with MQ(url) as mq, mq.consumer(name, new_group()) as consumer:
        before = _mb("VmRSS")
        left = count
        while left:
            messages = consumer.poll(POLL, timeout=30)
            check(bool(messages), f"{left} messages did not come")
            left -= len(messages)
        return _mb("VmHWM") - before


def _mb(what: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in _status() if line.startswith(what))


def _status() -> list[str]:
    try:
        return Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
