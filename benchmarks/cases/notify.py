"""What do notices gain a consumer of another process, and what do they cost its producer?

Latency: a message each 2.3 seconds to a consumer that is idle, from before `produce` to after `consume`. Throughput: one
thread that produces as fast as it can, without other consumers, and with a consumer of another process that reads along.
Each with notices and without, in turns.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import time
import uuid
from typing import TYPE_CHECKING

from benchmarks.harness.workload import check
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.harness.suite import Bench

PAUSE_SECONDS, SECONDS, QUICK_SECONDS = 2.3, 2.0, 0.3


def run(bench: Bench) -> None:
    if not bench.is_postgres:
        return  # there are no notices on SQLite
    messages = bench.scale(2, 1)
    seconds = QUICK_SECONDS if bench.quick else SECONDS

    def wait_of(way: str) -> float:
        return statistics.median(latencies(bench.url, messages, notify=way == "told")) * 1000

    bench.compare(
        "An idle consumer of another process, from produce to handler",
        {way: functools.partial(wait_of, way) for way in ("told", "polling")},
        {"polling / told": ("polling", "told")},
        unit="ms",
    )
    for beside in (False, True):
        bench.compare(
            f"One producer, {'a' if beside else 'no'} consumer in another process",
            {
                name: functools.partial(rate, bench.url, seconds, notify=notify, beside=beside)
                for name, notify in (("with notices", True), ("without", False))
            },
            {"with / without": ("with notices", "without")},
        )


def consume(url: str, topic: str, notify: bool, ready: Connection) -> None:
    """Tell how old each message is when it arrives; the clock is the machine's."""
    with MQ(url, notify=notify) as mq, mq.consumer(topic, "bench", start="latest") as consumer:
        assert consumer.poll(timeout=0.5) == []
        ready.send("ready")
        ages = []
        while (message := consumer.consume()).value != b"end":
            ages.append(time.monotonic() - float(message.value))
        ready.send(ages)


class Consuming:
    """A process that consumes a topic."""

    def __init__(self, url: str, topic: str, *, notify: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=consume, args=(url, topic, notify, theirs))
        self._process.start()
        assert self._ours.recv() == "ready"

    def ages(self) -> list[float]:
        ages: list[float] = self._ours.recv()
        self._process.join()
        return ages


def now() -> Message:
    return Message(b"%.9f" % time.monotonic())


def latencies(url: str, messages: int, *, notify: bool) -> list[float]:
    with MQ(url, notify=notify) as mq:
        topic = f"bench-{uuid.uuid4().hex[:8]}"
        producer = mq.producer(topic)
        consuming = Consuming(url, topic, notify=notify)
        time.sleep(1.5)  # until its pauses are as long as they get
        for _ in range(messages):
            producer.produce(now())
            time.sleep(PAUSE_SECONDS)
        producer.produce(Message(b"end"))
        ages = consuming.ages()
        mq.delete_topics(topic)
    return ages


def rate(url: str, seconds: float, *, notify: bool, beside: bool) -> float:
    with MQ(url, notify=notify) as mq:
        topic = f"bench-{uuid.uuid4().hex[:8]}"
        mq.create_topic(topic, 1)  # or the last message could come before others
        producer = mq.producer(topic)
        consuming = Consuming(url, topic, notify=notify) if beside else None
        count, ends_at = 0, time.perf_counter() + seconds
        while time.perf_counter() < ends_at:
            producer.produce(now())
            count += 1
        if consuming is not None:
            producer.produce(Message(b"end"))
            received = len(consuming.ages())
            check(received == count, f"{received} messages came of {count}")
        mq.delete_topics(topic)
    return count / seconds
