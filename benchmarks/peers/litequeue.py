"""litequeue, on a file. It sets synchronous to NORMAL, which loses the last commits with the power; here it is FULL."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from litequeue import LiteQueue

from benchmarks.harness.databases import SQLITE
from benchmarks.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator


class LitequeueQueue:
    def __init__(self, queue: LiteQueue) -> None:
        self._queue = queue

    def produce(self, count: int) -> None:
        size = min(count, 1_000)
        for _ in range(count // size):
            with self._queue.transaction():
                for _ in range(size):
                    self._queue.put("v" * 200)

    def drain(self, count: int) -> int:  # noqa: ARG002 - ends when nothing is left
        done = 0
        while (message := self._queue.pop()) is not None:
            self._queue.done(message.message_id)
            done += 1
        return done


@contextmanager
def open_queue(target: str) -> Iterator[LitequeueQueue]:
    queue = LiteQueue(target)
    with closing(queue.conn):
        queue.conn.execute("PRAGMA synchronous = FULL")
        yield LitequeueQueue(queue)


HOW = "put, 1,000 in a transaction; pop and done one by one (it has no batches); synchronous FULL"
PEERS = (Peer("litequeue", "litequeue", (SQLITE,), 3_000, HOW, open_queue),)
