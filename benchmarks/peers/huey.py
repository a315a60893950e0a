"""huey, with its storages in Postgres and SQLite: tasks dequeued and executed by threads of this process, no results.

Its threads share a connection, so that more than a few do not help.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from huey import Huey, PostgresHuey, SqliteHuey

from benchmarks.harness.databases import POSTGRES, SQLITE
from benchmarks.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator


THREADS = 4


class HueyQueue:
    def __init__(self, huey: Huey) -> None:
        self._huey = huey
        self._handled: list[bytes] = []

        @huey.task()
        def handle(value: bytes) -> None:
            self._handled.append(value)

        self._handle = handle

    def produce(self, count: int) -> None:
        for _ in range(count):
            self._huey.enqueue(self._handle.s(b"v" * 200))

    def drain(self, count: int) -> int:  # noqa: ARG002 - ends when nothing is left
        self._handled.clear()
        threads = [threading.Thread(target=self._work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(self._handled)

    def _work(self) -> None:
        while (task := self._huey.dequeue()) is not None:
            self._huey.execute(task)


@contextmanager
def open_queue(target: str) -> Iterator[HueyQueue]:
    logging.getLogger("huey").setLevel(logging.ERROR)
    huey = (
        PostgresHuey("bench", dsn=target, results=False, blocking=False, immediate=False)
        if "://" in target
        else SqliteHuey("bench", filename=target, results=False, immediate=False, fsync=True)
    )
    try:
        yield HueyQueue(huey)
    finally:
        huey.storage.close()


HOW = "enqueue one by one (it has no batches), dequeue and execute in 4 threads, no results: at most once"
PEERS = (Peer("huey", "huey", (POSTGRES, SQLITE), 2_000, HOW, open_queue),)
