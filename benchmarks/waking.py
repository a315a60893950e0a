"""How long from ``produce`` to the handler, at 200 messages a second: in the process that produced, and in another.

The clock of a message starts when it was due to be sent, so that a slow call counts against all that had to wait for it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from typing import TYPE_CHECKING

from benchmarks.suite import Rounds
from benchmarks.workload import VALUE_BYTES, check, new_group, topic
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from benchmarks.suite import Bench
    from sqlmq import Consumer, Producer

PER_SECOND = 200
WARM_UP = 20
"""So many at first are not counted."""


def run(bench: Bench) -> None:
    count = bench.scale(1_000, 60)
    found: dict[str, list[float]] = {}
    with MQ(bench.url) as mq, topic(mq) as name:
        producer = mq.producer(name)
        for number in range(-bench.warm_up_rounds, bench.rounds):
            for where, measure in (("the same process", _here), ("another process", _elsewhere)):
                milliseconds = sorted(measure(bench.url, mq, producer, count))
                if number >= 0:
                    percentiles = statistics.quantiles(milliseconds, n=100)
                    found.setdefault(f"{where}, p50", []).append(percentiles[49])
                    found.setdefault(f"{where}, p99", []).append(percentiles[98])
    rates = {name: Rounds(tuple(values)) for name, values in found.items()}
    bench.add(f"from produce to the handler, {PER_SECOND} messages/s", rates, {}, unit="ms")


def _here(_url: str, mq: MQ, producer: Producer, count: int) -> list[float]:
    took: list[float] = []
    with mq.consumer(producer.topic, new_group()) as consumer:
        _catch_up(consumer)
        handler = threading.Thread(target=lambda: took.extend(_handle(consumer, count)))
        handler.start()
        _send(producer, count)
        handler.join()
    check(len(took) == count - WARM_UP, f"{len(took)} messages came")
    return took


def _elsewhere(url: str, _mq: MQ, producer: Producer, count: int) -> list[float]:
    # Not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_handle_elsewhere, args=(url, producer.topic, count, theirs))
    process.start()
    try:
        check(ours.poll(60) and ours.recv() == "ready", "the other process did not begin")
        _send(producer, count)
        check(ours.poll(60), "the other process did not end")
        took: list[float] = ours.recv()
    finally:
        process.join(10)
        process.kill()
    check(len(took) == count - WARM_UP, f"{len(took)} messages came")
    return took


def _handle_elsewhere(url: str, name: str, count: int, pipe: Connection) -> None:
    with MQ(url) as mq, mq.consumer(name, new_group()) as consumer:
        _catch_up(consumer)
        pipe.send("ready")
        pipe.send(_handle(consumer, count))


def _catch_up(consumer: Consumer) -> None:
    while consumer.poll(10_000, timeout=0.2):
        pass


def _handle(consumer: Consumer, count: int) -> list[float]:
    """How many milliseconds each message took, but for the first ones."""
    took = []
    for _ in range(count):
        message = consumer.consume(timeout=30)
        took.append((time.perf_counter_ns() - int(message.value)) / 1e6)
    consumer.commit()
    return took[WARM_UP:]


def _send(producer: Producer, count: int, clock: Callable[[], int] = time.perf_counter_ns) -> None:
    began = clock() + 10_000_000
    for i in range(count):
        due = began + i * 1_000_000_000 // PER_SECOND
        time.sleep(max(0.0, (due - clock()) / 1e9))
        # perf_counter is one clock for all processes of a machine.
        producer.produce(Message(str(due).encode().zfill(VALUE_BYTES), b"key-0001"))
