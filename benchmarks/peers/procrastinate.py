"""procrastinate, with psycopg: jobs deferred in batches, a worker that ends when it has caught up."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from procrastinate import App, PsycopgConnector

from benchmarks.harness.databases import POSTGRES
from benchmarks.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from procrastinate.types import JSONValue


class ProcrastinateQueue:
    def __init__(self, runner: asyncio.Runner, app: App) -> None:
        self._runner = runner
        self._app = app
        self._done = 0

        @app.task(name="handle")
        async def handle(value: str) -> None:
            self._done += len(value) == 200

        self._handle = handle

    def produce(self, count: int) -> None:
        size = min(count, 1_000)
        for _ in range(count // size):
            self._runner.run(self._defer(size))

    async def _defer(self, size: int) -> None:
        jobs: list[dict[str, JSONValue]] = [{"value": "v" * 200}] * size
        await self._handle.batch_defer_async(*jobs)

    def drain(self, count: int) -> int:  # noqa: ARG002 - ends when nothing is left
        self._done = 0
        self._runner.run(self._app.run_worker_async(wait=False, concurrency=10, install_signal_handlers=False))
        return self._done


@contextmanager
def open_queue(target: str) -> Iterator[ProcrastinateQueue]:
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    app = App(connector=PsycopgConnector(conninfo=target))
    with asyncio.Runner() as runner:
        runner.run(_start(app))
        try:
            yield ProcrastinateQueue(runner, app)
        finally:
            runner.run(app.close_async())


async def _start(app: App) -> None:
    await app.open_async()
    await app.schema_manager.apply_schema_async()


# With a concurrency of 1 or of 50, and with more connections, it was not faster.
HOW = "batch_defer of 1,000, run_worker(wait=False, concurrency=10)"
PEERS = (Peer("procrastinate", "procrastinate", (POSTGRES,), 1_000, HOW, open_queue),)
