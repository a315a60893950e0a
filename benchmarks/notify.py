"""What do notices gain a consumer of another process, and what do they cost its producer?

Latency: a message each 2.3 seconds to a consumer that is idle, from before `produce` to after `consume`. Throughput: one
thread that produces as fast as it can, with nobody else there, and with a consumer of another process that reads along.
Each with notices and without, in turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
import uuid
from typing import TYPE_CHECKING

from sqlmq import MQ, Message

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MESSAGES, PAUSE_SECONDS, SECONDS, ROUNDS = 15, 2.3, 2.0, 5


def run(url: str, *, quick: bool) -> None:
    if url.startswith("sqlite"):
        print("notices: there are none on SQLite")
        return
    messages, seconds, rounds = (3, 0.3, 1) if quick else (MESSAGES, SECONDS, ROUNDS)
    waits = {notify: latencies(url, messages, notify=notify) for notify in (True, False)}
    for notify, found in waits.items():
        p50, p99 = statistics.median(found) * 1000, max(found) * 1000
        print(f"idle consumer, {'told' if notify else 'polling'}: p50 {p50:.1f} ms, worst {p99:.1f} ms")
    for beside in (False, True):
        rates: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for notify, found in rates.items():
                found.append(rate(url, seconds, notify=notify, beside=beside))
        ratio = statistics.median(a / b for a, b in zip(rates[True], rates[False], strict=True))
        medians = " and ".join(f"{statistics.median(rates[notify]):,.0f}" for notify in (True, False))
        print(f"one producer, {'a' if beside else 'no'} consumer elsewhere: {medians} messages/s, ratio {ratio:.2f}")


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
        producer = mq.producer(topic)
        consuming = Consuming(url, topic, notify=notify) if beside else None
        count, ends_at = 0, time.perf_counter() + seconds
        while time.perf_counter() < ends_at:
            producer.produce(now())
            count += 1
        if consuming is not None:
            producer.produce(Message(b"end"))
            assert len(consuming.ages()) == count
        mq.delete_topics(topic)
    return count / seconds
