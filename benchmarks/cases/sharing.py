"""One producer for many: 64 threads, or 1,000 tasks, that share it, against a transaction for each of them.

By hand each thread has a connection of its own; tasks take turns on 64 of them, for a server has not thousands. On SQLite
both wait for the one writer by a lock in the process, which is faster than SQLite's own waiting.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import psycopg

from benchmarks.harness import limits
from benchmarks.harness.workload import check, check_length, keys_and_values, messages, new_topic
from sqlmq import MQ, AsyncMQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.suite import Bench
    from sqlmq import Producer, ProducerResult

THREADS, TASKS, CONNECTIONS = 64, 1_000, 64


def run(bench: Bench) -> None:
    with MQ(bench.url) as mq:
        name = new_topic(mq)
        producer = mq.producer(name)
        producer.produce_many(messages(10))  # makes the tables on SQLite
        by_hand = limits.postgres_by_hand if bench.is_postgres else limits.sqlite_by_hand
        with by_hand(bench.database) as hand:
            _threads(bench, mq, producer, hand)
            _tasks(bench, name, hand)


def _threads(bench: Bench, mq: MQ, producer: Producer, hand: limits.PostgresByHand | limits.SqliteByHand) -> None:
    bench.compare(
        f"{THREADS} threads, one message a call",
        {
            "one producer": lambda: _share(mq, producer, bench.scale(200, 10)),
            "a transaction each": lambda: _each(bench, hand, bench.scale(40, 2)),
        },
        {"64 threads: one producer / a transaction each": ("one producer", "a transaction each")},
    )


def _share(mq: MQ, producer: Producer, each: int) -> float:
    before = mq.admin.describe_topic(producer.topic).messages
    batch = messages(each)
    places: list[ProducerResult] = []

    def produce(_number: int) -> None:
        places.extend([producer.produce(message) for message in batch])

    seconds = in_threads(produce)
    check(len(set(places)) == THREADS * each, "two messages have one place")
    check_length(mq, producer.topic, before + THREADS * each)
    return THREADS * each / seconds


def _each(bench: Bench, hand: limits.PostgresByHand | limits.SqliteByHand, each: int) -> float:
    contents = keys_and_values(each)
    with ExitStack() as closing:
        if isinstance(hand, limits.PostgresByHand):
            connections = [closing.enter_context(bench.database.connect()) for _ in range(THREADS)]

            def produce(number: int) -> None:
                for key, value in contents:
                    hand.append(connections[number], [key], [value])
        else:
            files = [bench.database.open() for _ in range(THREADS)]
            for file in files:
                closing.callback(file.close)

            def produce(number: int) -> None:
                for row in contents:
                    with hand.turn:
                        hand.append(files[number], [row])

        seconds = in_threads(produce)
    hand.check_grew(THREADS * each)
    return THREADS * each / seconds


def in_threads(work: Callable[[int], None]) -> float:
    """Run *work* in all threads at once, and return how many seconds it took."""
    errors: list[BaseException] = []
    start = threading.Barrier(THREADS + 1)

    def thread(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(THREADS)]
    for one in threads:
        one.start()
    start.wait()
    began = time.perf_counter()
    for one in threads:
        one.join()
    seconds = time.perf_counter() - began
    if errors:
        raise errors[0]
    return seconds


def _tasks(bench: Bench, name: str, hand: limits.PostgresByHand | limits.SqliteByHand) -> None:
    bench.compare(
        f"{TASKS:,} tasks, one message a call",
        {
            "one producer": lambda: asyncio.run(_share_by_tasks(bench.url, name, bench.scale(20, 1))),
            "a transaction each": lambda: asyncio.run(_each_by_tasks(bench, hand, bench.scale(2, 1))),
        },
        {"1,000 tasks: one producer / a transaction each": ("one producer", "a transaction each")},
    )


async def _share_by_tasks(url: str, name: str, each: int) -> float:
    batch = messages(each)
    places: list[ProducerResult] = []
    async with AsyncMQ(url) as mq, await mq.producer(name) as producer:
        before = (await mq.admin.describe_topic(name)).messages
        await producer.produce_many(messages(10))

        async def produce() -> None:
            for message in batch:
                places.append(await producer.produce(message))  # noqa: PERF401 - as a task would

        began = time.perf_counter()
        await asyncio.gather(*(produce() for _ in range(TASKS)))
        seconds = time.perf_counter() - began
        check(len(set(places)) == TASKS * each, "two messages have one place")
        found = (await mq.admin.describe_topic(name)).messages - before
        check(found == TASKS * each + 10, f"{found} messages came")
    return TASKS * each / seconds


async def _each_by_tasks(bench: Bench, hand: limits.PostgresByHand | limits.SqliteByHand, each: int) -> float:
    contents = keys_and_values(each)
    async with AsyncExitStack() as closing:
        if isinstance(hand, limits.PostgresByHand):
            free: asyncio.Queue[psycopg.AsyncConnection[object]] = asyncio.Queue()
            for _ in range(CONNECTIONS):
                connection = await psycopg.AsyncConnection.connect(bench.database.conninfo, autocommit=True)
                free.put_nowait(await closing.enter_async_context(connection))

            async def produce() -> None:
                for key, value in contents:
                    connection = await free.get()
                    await hand.append_async(connection, [key], [value])
                    free.put_nowait(connection)
        else:
            file = bench.database.open()
            closing.callback(file.close)
            turn = asyncio.Lock()

            async def produce() -> None:
                for row in contents:
                    async with turn:
                        await asyncio.to_thread(hand.append, file, [row])

        began = time.perf_counter()
        await asyncio.gather(*(produce() for _ in range(TASKS)))
        seconds = time.perf_counter() - began
    hand.check_grew(TASKS * each)
    return TASKS * each / seconds
