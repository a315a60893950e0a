"""MQs, producers and consumers are made and closed many times. Sessions, threads, files and members must not add up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from case import Case, rest, run, until
from sqlmq import MQ, AsyncMQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 12
OBJECTS = 60
OPEN_FILES = Path("/proc/self/fd")
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


@dataclass(frozen=True)
class Usage:
    """What this process has open."""

    files: int
    threads: int
    sessions: int

    @classmethod
    def now(cls, case: Case) -> Usage:
        sessions = 0 if case.is_sqlite else int(case.scalar(SESSIONS) or 0)
        return cls(len(list(OPEN_FILES.iterdir())), threading.active_count(), sessions)

    def exceeds(self, before: Usage, *, files: int, threads: int, sessions: int = 2) -> bool:
        return (
            self.files > before.files + files
            or self.threads > before.threads + threads
            or self.sessions > before.sessions + sessions
        )


def judge(case: Case) -> None:
    rounds: dict[str, Callable[[], None]] = {
        "an MQ": lambda: use(case.url),
        "an AsyncMQ": lambda: asyncio.run(use_async(case.url)),
        "an MQ that fails": lambda: fail(case),
    }
    for name, use_once in rounds.items():
        compare(case, name, use_once)
    compare_in_one_mq(case)


def compare(case: Case, name: str, use_once: Callable[[], None]) -> None:
    use_once()
    use_once()
    gc.collect()
    rest(0.3)
    before = Usage.now(case)
    for _ in range(ROUNDS):
        use_once()
    gc.collect()
    # Sessions end a little later than the connections of this process.
    if not until(lambda: not Usage.now(case).exceeds(before, files=4, threads=2), seconds=1):
        case.fault(f"{name}: {before} became {Usage.now(case)} in {ROUNDS} rounds")


def compare_in_one_mq(case: Case) -> None:
    with MQ(case.url) as mq:
        before = Usage.now(case)
        for _ in range(OBJECTS):
            with mq.producer("leak") as producer:
                producer.submit(Message(b"x")).result(10)
            with mq.consumer("leak", "objects") as consumer:
                consumer.poll(timeout=0)
        after = Usage.now(case)
        if after.exceeds(before, files=8, threads=6, sessions=OBJECTS):
            case.fault(f"one MQ: {before} became {after} with {OBJECTS} producers and consumers")
        if members := mq.admin.members("leak", "objects"):
            case.fault(f"one MQ: {len(members)} of {OBJECTS} closed consumers are still members")


def use(url: str) -> None:
    with MQ(url) as mq:
        producer = mq.producer("leak")
        producer.produce(Message(b"x"))
        producer.submit(Message(b"y")).result(10)
        with mq.consumer("leak", "group") as consumer:
            consumer.poll(timeout=5)
        with mq.consumer("leak", "group") as consumer, consumer.transaction(timeout=0.1):
            pass
        producer.schedule(Message(b"z"), delay_seconds=1000)


async def use_async(url: str) -> None:
    async with AsyncMQ(url) as mq:
        producer = await mq.producer("leak")
        await producer.produce(Message(b"x"))
        async with await mq.consumer("leak", "asyncio") as consumer:
            await consumer.poll(timeout=5)
            async with consumer.transaction(timeout=0.1):
                pass


def fail(case: Case) -> None:
    with contextlib.suppress(KeyError), MQ(case.url) as mq:
        mq.consumer("leak", "failing").consume(timeout=10)
        raise KeyError
    missing = f"sqlite:////nonexistent{case.sqlite_path}" if case.is_sqlite else f"{case.url}_missing"
    with contextlib.suppress(Exception):
        MQ(missing).admin.topics()


if __name__ == "__main__":
    run(judge)
