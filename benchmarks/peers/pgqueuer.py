"""pgqueuer, with asyncpg: jobs enqueued in lists, a worker in drain mode."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.harness.databases import POSTGRES
from benchmarks.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator


class PgqueuerQueue:
    def __init__(self, runner: asyncio.Runner, driver: AsyncpgDriver) -> None:
        self._runner = runner
        self._driver = driver
        self._queries = Queries(driver)
        runner.run(self._queries.install())

    def produce(self, count: int) -> None:
        self._runner.run(self._produce(count))

    async def _produce(self, count: int) -> None:
        size = min(count, 1_000)
        for _ in range(count // size):
            await self._queries.enqueue(["handle"] * size, [b"v" * 200] * size, [0] * size)

    def drain(self, count: int) -> int:  # noqa: ARG002 - ends when nothing is left
        return self._runner.run(self._drain())

    async def _drain(self) -> int:
        done = 0
        worker = PgQueuer(self._driver)

        @worker.entrypoint("handle")
        async def handle(_job: Job) -> None:
            nonlocal done
            done += 1

        await worker.run(mode=QueueExecutionMode.drain, batch_size=1_000)
        return done


@contextmanager
def open_queue(target: str) -> Iterator[PgqueuerQueue]:
    logging.getLogger("pgqueuer").setLevel(logging.ERROR)
    with asyncio.Runner() as runner:
        connection = runner.run(_connect(target))
        try:
            yield PgqueuerQueue(runner, AsyncpgDriver(connection))
        finally:
            runner.run(connection.close())


async def _connect(target: str) -> asyncpg.Connection:
    return await asyncpg.connect(target)


# 100 at a time was half as fast.
HOW = "asyncpg, enqueue of 1,000, run(mode=drain, batch_size=1000)"
PEERS = (Peer("pgqueuer", "pgqueuer", (POSTGRES,), 20_000, HOW, open_queue),)
