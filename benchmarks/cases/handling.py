"""Running a handler: what counting attempts costs, and how long other keys take while one is set aside.

The rates are of handlers that do nothing, on a backlog, against a loop over a consumer. The latencies are from ``produce``
to the handler, of messages whose keys are well, at 200 messages a second: while nothing fails, and while every twentieth
message belongs to a key that is set aside, whose first message fails at each attempt, twice a second.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING

from benchmarks.cases.consuming import loop
from benchmarks.harness.suite import Rounds, ratio
from benchmarks.harness.workload import VALUE_BYTES, check, fill, new_group, new_topic
from sqlmq import MQ, Message, Retry

if TYPE_CHECKING:
    from benchmarks.harness.suite import Bench

PARTITIONS = 8
PER_SECOND = 200
KEYS = 20
WARM_UP = 20
BAD_KEY = b"key-0007"
WELL, SET_ASIDE = "all keys are well", "one key is set aside"


def run(bench: Bench) -> None:
    count, few = bench.scale(50_000, 2_000), bench.scale(2_000, 200)
    with MQ(bench.url) as mq:
        topic, small = new_topic(mq, PARTITIONS), new_topic(mq, PARTITIONS)
        fill(mq.producer(topic), count)
        fill(mq.producer(small), few)
        bench.compare(
            f"a handler that does nothing, a backlog of {count:,} in {PARTITIONS} partitions",
            {
                "for message in consumer": lambda: loop(mq, topic, count),
                "run(handler)": lambda: handle(mq, topic, count),
                "run(handler, batch_size=100)": lambda: handle(mq, topic, count, batch_size=100),
            },
            {
                "run / for": ("run(handler)", "for message in consumer"),
                "run, in batches / for": ("run(handler, batch_size=100)", "for message in consumer"),
            },
        )
        bench.compare(
            f"a handler that does nothing, in transactions, {few:,} messages",
            {
                "run(handler, transaction=True)": lambda: handle(mq, small, few, transaction=True),
                "run(handler, transaction=True, batch_size=100)": lambda: handle(
                    mq, small, few, transaction=True, batch_size=100
                ),
                "consumer.transaction(max_messages=1)": lambda: in_transactions(mq, small, few),
            },
            {
                "run / consumer.transaction(max_messages=1)": (
                    "run(handler, transaction=True)",
                    "consumer.transaction(max_messages=1)",
                )
            },
        )
        latencies(bench, mq)


def handle(mq: MQ, topic: str, count: int, *, batch_size: int | None = None, transaction: bool = False) -> float:
    """Run a handler over *count* messages; messages a second."""
    handled = 0
    consumer = mq.consumer(topic, new_group())

    def handler(given: Message | list[Message], _session: object = None) -> None:
        nonlocal handled
        handled += len(given) if isinstance(given, list) else 1
        if handled == count:
            consumer.stop()

    began = time.perf_counter()
    summary = consumer.run(handler, batch_size=batch_size, transaction=transaction, handle_signals=False)
    seconds = time.perf_counter() - began
    check(summary.handled == count, f"{summary.handled} of {count} were handled")
    check(mq.admin.describe_group(topic, consumer.group).lag == 0, "not all was committed")
    return count / seconds


def in_transactions(mq: MQ, topic: str, count: int) -> float:
    """One message in a transaction, *count* times; messages a second."""
    handled = 0
    with mq.consumer(topic, new_group()) as consumer:
        began = time.perf_counter()
        while handled < count:
            with consumer.transaction(max_messages=1, timeout=30) as tx:
                handled += len(tx.messages)
        seconds = time.perf_counter() - began
    return count / seconds


def latencies(bench: Bench, mq: MQ) -> None:
    count = bench.scale(600, 60)
    took: dict[str, list[float]] = {}
    for number in range(-bench.warm_up_rounds, bench.rounds):
        found = {way: statistics.quantiles(latency(mq, count, way), n=100) for way in (WELL, SET_ASIDE)}
        if number < 0:
            continue
        for name, place in (("p50", 49), ("p99", 98)):
            for way, percentiles in found.items():
                took.setdefault(f"{way}, {name}", []).append(percentiles[place])
    rates = {name: Rounds(tuple(values)) for name, values in took.items()}
    bench.add(
        f"from produce to the handler, {PER_SECOND} messages/s in {KEYS} keys, of those that are well",
        rates,
        {
            f"{name}: set aside / well": ratio(rates[f"{SET_ASIDE}, {name}"], rates[f"{WELL}, {name}"])
            for name in ("p50", "p99")
        },
        unit="ms",
    )


def latency(mq: MQ, count: int, way: str) -> list[float]:
    """How many milliseconds each message of the other keys took, but for the first ones."""
    topic = new_topic(mq)
    producer, consumer = mq.producer(topic), mq.consumer(topic, new_group())
    took: list[float] = []
    attempts = 0

    def handler(message: Message) -> None:
        nonlocal attempts
        if message.key == BAD_KEY:
            attempts += 1
            if way == SET_ASIDE:
                raise ArithmeticError
            return
        took.append((time.perf_counter_ns() - int(message.value)) / 1e6)

    retry = Retry(max_attempts=None, backoff_seconds=0.5, max_delay_seconds=0.5)
    running = threading.Thread(target=lambda: consumer.run(handler, retry=retry, handle_signals=False))
    running.start()
    clock = time.perf_counter_ns
    began = clock() + 100_000_000
    for i in range(count):
        due = began + i * 1_000_000_000 // PER_SECOND
        time.sleep(max(0.0, (due - clock()) / 1e9))
        producer.produce(Message(str(due).encode().zfill(VALUE_BYTES), b"key-%04d" % (i % KEYS)))
    expected = count - count // KEYS
    give_up = time.monotonic() + 30
    while len(took) < expected and time.monotonic() < give_up:
        time.sleep(0.01)
    consumer.stop()
    running.join(30)
    check(len(took) == expected, f"{len(took)} of {expected} messages came")
    check(attempts > 0, "the key in question was not tried")
    return took[WARM_UP:]
