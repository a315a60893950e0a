"""litequeue, on a file, with the settings it sets itself (synchronous NORMAL: the last commits may be lost with the power)."""

from __future__ import annotations

import time

from litequeue import LiteQueue

from benchmarks.databases import SQLITE
from benchmarks.workload import check

PACKAGE = "litequeue"
KINDS = (SQLITE,)
MESSAGES = 3_000
HOW = "put, 1,000 in a transaction; pop and done one by one; synchronous NORMAL"


def produce_and_drain(target: str, count: int) -> tuple[float, float]:
    queue = LiteQueue(target)
    size = min(count, 1_000)
    began = time.perf_counter()
    for _ in range(count // size):
        with queue.transaction():
            for _ in range(size):
                queue.put("v" * 200)
    produced = time.perf_counter()
    done = 0
    while (message := queue.pop()) is not None:
        queue.done(message.message_id)
        done += 1
    seconds = produced - began, time.perf_counter() - produced
    queue.conn.close()
    check(done == count, f"{done} of {count} messages came")
    return seconds
