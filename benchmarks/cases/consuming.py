"""Consuming a backlog: a loop over the consumer, and polls of 1,000, against fetching the same rows by hand.

Eight partitions, a new group in each round. What by hand returns tuples, the library returns as messages, keeps positions
for, and commits. A consumer joins its group, and gets its first message, before the clock starts. Order is looked at
once, without a clock; each round checks, from the committed positions, that every message came once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from benchmarks.harness import limits
from benchmarks.harness.workload import HEADERS, check, fill, new_group, new_topic
from sqlmq import MQ, AsyncMQ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.harness.suite import Bench
    from sqlmq import Consumer, GroupDescription, ReceivedMessage

POLL, PARTITIONS = 1_000, 8


def run(bench: Bench) -> None:
    count = bench.scale(300_000, 5_000)
    with MQ(bench.url) as mq:
        plain, headed = new_topic(mq, PARTITIONS), new_topic(mq, PARTITIONS)
        fill(mq.producer(plain), count)
        check_order(mq, plain, count)
        by_hand = "by hand: 3,000 rows at a time, as tuples"
        bench.compare(
            f"a backlog of {count:,} in {PARTITIONS} partitions",
            {
                "for message in consumer": lambda: loop(mq, plain, count),
                "poll(1000)": lambda: poll(mq, plain, count),
                by_hand: lambda: read_by_hand(bench, plain, count),
            },
            {
                "for message in consumer / by hand": ("for message in consumer", by_hand),
                "poll(1000) / by hand": ("poll(1000)", by_hand),
            },
        )
        some = count // 3
        with asyncio.Runner() as tasks:
            # Kept from round to round, as the other one is: or its connections would be made while the clock runs.
            async_mq = AsyncMQ(bench.url)
            bench.compare(
                f"a loop over {some:,} messages",
                {
                    "async for message in consumer": lambda: tasks.run(loop_in_task(async_mq, plain, some)),
                    "for message in consumer": lambda: loop(mq, plain, some),
                    "await consumer.poll(1000)": lambda: tasks.run(poll_in_task(async_mq, plain, some)),
                },
                {
                    "async for / for": ("async for message in consumer", "for message in consumer"),
                    "await poll(1000) / for": ("await consumer.poll(1000)", "for message in consumer"),
                },
            )
            tasks.run(async_mq.close())
        fill(mq.producer(headed), some, with_headers=True)
        title = f"{len(HEADERS)} headers"
        bench.compare(
            f"poll(1000) over {some:,} messages, with and without headers",
            {
                title: lambda: poll(mq, headed, some),
                f"{title}, read": lambda: poll_headers(mq, headed, some),
                "none": lambda: poll(mq, plain, some),
            },
            {"headers / none": (title, "none"), "headers, read / none": (f"{title}, read", "none")},
        )


@contextmanager
def started(mq: MQ, name: str) -> Iterator[tuple[Consumer, ReceivedMessage]]:
    """A consumer of a new group, and its first message."""
    with mq.consumer(name, new_group()) as consumer:
        yield consumer, consumer.consume(timeout=30)


def check_order(mq: MQ, name: str, count: int) -> None:
    """Look, without a clock, at each message of each partition."""
    with started(mq, name) as (consumer, first):
        ends = {first.partition: 1}
        check(first.offset == 0, "the first message is not the oldest")
        for _ in range(count):
            if sum(ends.values()) == count:
                return
            for message in consumer.poll(POLL, timeout=10):
                expected = ends.get(message.partition, 0)
                check(message.offset == expected, f"offset {message.offset} came instead of {expected}")
                check(message.value.startswith(b"0"), "the value is another message's")
                ends[message.partition] = expected + 1
    check(False, f"{sum(ends.values())} of {count} messages came")


def check_committed(group: GroupDescription, count: int) -> None:
    """Check that the group has finished *count* messages: a position counts those below it, each of them once."""
    found = sum(partition.position for partition in group.partitions)
    check(found == count, f"the positions say {found}, not {count}")


def loop(mq: MQ, name: str, count: int) -> float:
    with started(mq, name) as (consumer, _):
        left = count - 1
        began = time.perf_counter()
        for _message in consumer:
            left -= 1
            if not left:
                break
        consumer.commit()
        seconds = time.perf_counter() - began
        check_committed(mq.admin.describe_group(name, consumer.group), count)
    return (count - 1) / seconds


def poll(mq: MQ, name: str, count: int, size: int = POLL) -> float:
    with started(mq, name) as (consumer, _):
        left = count - 1
        began = time.perf_counter()
        while left:
            left -= _some(consumer.poll(min(size, left), timeout=10), left)
        consumer.commit()
        seconds = time.perf_counter() - began
        check_committed(mq.admin.describe_group(name, consumer.group), count)
    return (count - 1) / seconds


def poll_headers(mq: MQ, name: str, count: int) -> float:
    """As ``poll``, with a handler that asks each message for a header."""
    with started(mq, name) as (consumer, _):
        left = count - 1
        began = time.perf_counter()
        while left:
            messages = consumer.poll(min(POLL, left), timeout=10)
            traced = sum(message.headers["trace"] == HEADERS["trace"] for message in messages)
            check(traced == len(messages), "a message has other headers")
            left -= _some(messages, left)
        consumer.commit()
        seconds = time.perf_counter() - began
        check_committed(mq.admin.describe_group(name, consumer.group), count)
    return (count - 1) / seconds


async def loop_in_task(mq: AsyncMQ, name: str, count: int) -> float:
    async with await mq.consumer(name, new_group()) as consumer:
        await consumer.consume(timeout=30)
        left = count - 1
        began = time.perf_counter()
        async for _message in consumer:
            left -= 1
            if not left:
                break
        await consumer.commit()
        seconds = time.perf_counter() - began
        check_committed(await mq.admin.describe_group(name, consumer.group), count)
    return (count - 1) / seconds


async def poll_in_task(mq: AsyncMQ, name: str, count: int) -> float:
    async with await mq.consumer(name, new_group()) as consumer:
        await consumer.consume(timeout=30)
        left = count - 1
        began = time.perf_counter()
        while left:
            left -= _some(await consumer.poll(min(POLL, left), timeout=10), left)
        await consumer.commit()
        seconds = time.perf_counter() - began
        check_committed(await mq.admin.describe_group(name, consumer.group), count)
    return (count - 1) / seconds


def _some(messages: list[ReceivedMessage], left: int) -> int:
    """How many *messages* came, which must be some."""
    check(bool(messages), f"{left} messages did not come")
    return len(messages)


def read_by_hand(bench: Bench, name: str, count: int) -> float:
    if bench.is_postgres:
        with bench.database.connect() as connection:
            began = time.perf_counter()
            found = limits.read_postgres(connection, name)
            seconds = time.perf_counter() - began
    else:
        with closing(bench.database.open()) as connection:
            began = time.perf_counter()
            found = limits.read_sqlite(connection, name)
            seconds = time.perf_counter() - began
    check(found == count, f"by hand, {found} of {count} messages were read")
    return count / seconds
