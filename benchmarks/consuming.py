"""Consuming a backlog: a loop over the consumer, and polls of 1,000, against fetching the same rows by hand.

One partition, a new group in each round. What by hand returns tuples, the library returns as messages, keeps a position
for, and commits. A consumer joins its group, and gets its first message, before the clock starts.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks import limits
from benchmarks.workload import HEADERS, check, fill, new_group, topic
from sqlmq import MQ, AsyncMQ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.suite import Bench
    from sqlmq import Consumer, Message

POLL = 1_000


def run(bench: Bench) -> None:
    count = bench.scale(300_000, 5_000)
    with MQ(bench.url) as mq, topic(mq) as plain, topic(mq) as headed:
        fill(mq.producer(plain), count)
        check_order(mq, plain, count)
        by_hand = "by hand: 1,000 rows at a time, as tuples"
        bench.compare(
            f"a backlog of {count:,}",
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
        some = bench.scale(30_000, 1_000)
        bench.compare(
            f"a loop over {some:,} messages",
            {
                "async for message in consumer": lambda: asyncio.run(loop_in_task(bench.url, plain, some)),
                "for message in consumer": lambda: loop(mq, plain, some),
                "await consumer.poll(1000)": lambda: asyncio.run(poll_in_task(bench.url, plain, some)),
            },
            {
                "async for / for": ("async for message in consumer", "for message in consumer"),
                "await poll(1000) / for": ("await consumer.poll(1000)", "for message in consumer"),
            },
        )
        some = count // 3
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
def started(mq: MQ, name: str) -> Iterator[tuple[Consumer, Message]]:
    """A consumer of a new group, and its first message."""
    with mq.consumer(name, new_group()) as consumer:
        yield consumer, consumer.consume(timeout=30)


def check_order(mq: MQ, name: str, count: int) -> None:
    """Look, without a clock, at each message of the one partition."""
    with started(mq, name) as (consumer, first):
        expected = first.offset
        check(expected == 0, "the first message is not the oldest")
        while expected < count - 1:
            for message in consumer.poll(POLL, timeout=10):
                expected += 1
                check(message.offset == expected, f"offset {message.offset} came instead of {expected}")
                check(message.value.startswith(b"0"), "the value is another message's")


def loop(mq: MQ, name: str, count: int) -> float:
    with started(mq, name) as (consumer, _):
        left = count - 1
        began = time.perf_counter()
        for message in consumer:  # noqa: B007 - the last one is looked at
            left -= 1
            if not left:
                break
        consumer.commit()
        seconds = time.perf_counter() - began
    check(message.offset == count - 1, f"message {count - 1} is at offset {message.offset}")
    return (count - 1) / seconds


def poll(mq: MQ, name: str, count: int) -> float:
    with started(mq, name) as (consumer, _):
        position = 1
        began = time.perf_counter()
        while position < count:
            position = follow(consumer.poll(POLL, timeout=10), position)
        consumer.commit()
        seconds = time.perf_counter() - began
    return (count - 1) / seconds


def poll_headers(mq: MQ, name: str, count: int) -> float:
    """As ``poll``, with a handler that asks each message for a header."""
    with started(mq, name) as (consumer, _):
        position = 1
        began = time.perf_counter()
        while position < count:
            messages = consumer.poll(POLL, timeout=10)
            traced = sum(message.headers["trace"] == HEADERS["trace"] for message in messages)
            check(traced == len(messages), "a message has other headers")
            position = follow(messages, position)
        consumer.commit()
        seconds = time.perf_counter() - began
    return (count - 1) / seconds


def follow(messages: list[Message], position: int) -> int:
    """Check that *messages* follow *position* without a gap, and return where they end."""
    check(bool(messages), f"nothing came at {position}")
    end = position + len(messages)
    check((messages[0].offset, messages[-1].offset) == (position, end - 1), f"a gap after {position}")
    return end


async def loop_in_task(url: str, name: str, count: int) -> float:
    async with AsyncMQ(url) as mq, await mq.consumer(name, new_group()) as consumer:
        await consumer.consume(timeout=30)
        left = count - 1
        began = time.perf_counter()
        async for message in consumer:  # noqa: B007 - the last one is looked at
            left -= 1
            if not left:
                break
        await consumer.commit()
        seconds = time.perf_counter() - began
        check(message.offset == count - 1, f"message {count - 1} is at offset {message.offset}")
    return (count - 1) / seconds


async def poll_in_task(url: str, name: str, count: int) -> float:
    async with AsyncMQ(url) as mq, await mq.consumer(name, new_group()) as consumer:
        await consumer.consume(timeout=30)
        position = 1
        began = time.perf_counter()
        while position < count:
            position = follow(await consumer.poll(POLL, timeout=10), position)
        await consumer.commit()
        seconds = time.perf_counter() - began
    return (count - 1) / seconds


def read_by_hand(bench: Bench, name: str, count: int) -> float:
    if bench.is_postgres:
        with bench.database.connect() as connection:
            limits.read_postgres(connection, name, 1)
            began = time.perf_counter()
            limits.read_postgres(connection, name, count)
            return count / (time.perf_counter() - began)
    connection = bench.database.open()
    began = time.perf_counter()
    limits.read_sqlite(connection, name, count)
    seconds = time.perf_counter() - began
    connection.close()
    return count / seconds
