"""procrastinate, with psycopg: jobs deferred in batches, a worker that ends when it has caught up."""

from __future__ import annotations

import asyncio
import logging
import time

from procrastinate import App, PsycopgConnector

from benchmarks.databases import POSTGRES
from benchmarks.workload import check

PACKAGE = "procrastinate"
KINDS = (POSTGRES,)
MESSAGES = 1_000
HOW = "batch_defer of 1,000, run_worker(wait=False, concurrency=10)"


def produce_and_drain(target: str, count: int) -> tuple[float, float]:
    return asyncio.run(_produce_and_drain(target, count))


async def _produce_and_drain(target: str, count: int) -> tuple[float, float]:
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    app = App(connector=PsycopgConnector(conninfo=target))
    done = 0

    @app.task(name="handle")
    async def handle(value: str) -> None:
        nonlocal done
        done += len(value) == 200

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        size = min(count, 1_000)
        began = time.perf_counter()
        for _ in range(count // size):
            await handle.batch_defer_async(*[{"value": "v" * 200}] * size)
        produced = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=10, install_signal_handlers=False)
        seconds = produced - began, time.perf_counter() - produced
    check(done == count, f"{done} of {count} messages came")
    return seconds
