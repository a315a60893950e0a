"""huey, with its storages in Postgres and SQLite: tasks dequeued and executed in this thread, no results kept."""

from __future__ import annotations

import logging
import time

from huey import PostgresHuey, SqliteHuey

from benchmarks.databases import POSTGRES, SQLITE
from benchmarks.workload import check

PACKAGE = "huey"
KINDS = (POSTGRES, SQLITE)
MESSAGES = 2_000
HOW = "enqueue one by one (it has no batches), dequeue and execute, no results"


def produce_and_drain(target: str, count: int) -> tuple[float, float]:
    logging.getLogger("huey").setLevel(logging.ERROR)
    huey = (
        PostgresHuey("bench", dsn=target, results=False, blocking=False)
        if "://" in target
        else SqliteHuey("bench", filename=target, results=False)
    )
    done = 0

    @huey.task()
    def handle(_value: bytes) -> None:
        nonlocal done
        done += 1

    began = time.perf_counter()
    for _ in range(count):
        huey.enqueue(handle.s(b"v" * 200))
    produced = time.perf_counter()
    while (task := huey.dequeue()) is not None:
        huey.execute(task)
    seconds = produced - began, time.perf_counter() - produced
    huey.storage.close()
    check(done == count, f"{done} of {count} messages came")
    return seconds
