"""pgqueuer, with asyncpg: jobs enqueued in lists, a worker in drain mode."""

from __future__ import annotations

import asyncio
import logging
import time

import asyncpg
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.databases import POSTGRES
from benchmarks.workload import check

PACKAGE = "pgqueuer"
KINDS = (POSTGRES,)
MESSAGES = 20_000
HOW = "asyncpg, enqueue of 1,000, run(mode=drain, batch_size=100)"


def produce_and_drain(target: str, count: int) -> tuple[float, float]:
    return asyncio.run(_produce_and_drain(target, count))


async def _produce_and_drain(target: str, count: int) -> tuple[float, float]:
    logging.getLogger("pgqueuer").setLevel(logging.ERROR)
    connection = await asyncpg.connect(target)
    try:
        driver = AsyncpgDriver(connection)
        queries = Queries(driver)
        await queries.install()
        size = min(count, 1_000)
        began = time.perf_counter()
        for _ in range(count // size):
            await queries.enqueue(["handle"] * size, [b"v" * 200] * size, [0] * size)
        produced = time.perf_counter()
        done = 0
        worker = PgQueuer(driver)

        @worker.entrypoint("handle")
        async def handle(_job: Job) -> None:
            nonlocal done
            done += 1

        await worker.run(mode=QueueExecutionMode.drain, batch_size=100)
        seconds = produced - began, time.perf_counter() - produced
    finally:
        await connection.close()
    check(done == count, f"{done} of {count} messages came")
    return seconds
