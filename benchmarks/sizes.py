"""What does a message cost when there is more of everything: backlog, partitions, groups? It should cost the same."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.consuming import POLL, poll
from benchmarks.workload import check, check_places, fill, messages, new_group, topic
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite import Bench
    from sqlmq import Message, Producer

PARTITIONS, GROUPS = 256, 50


def run(bench: Bench) -> None:
    with MQ(bench.url) as mq:
        _backlog(bench, mq)
        _partitions(bench, mq)
        _groups(bench, mq)


def _backlog(bench: Bench, mq: MQ) -> None:
    large, small = bench.scale(1_000_000, 10_000), bench.scale(10_000, 1_000)
    transactions = bench.scale(50, 3)
    with topic(mq) as filled, topic(mq) as nearly_empty:
        producers = {large: mq.producer(filled), small: mq.producer(nearly_empty)}
        for count, producer in producers.items():
            fill(producer, count)
        thousand = messages(1_000)
        bench.compare(
            f"a backlog of {large:,} and of {small:,}, produce_many 1,000 at a time",
            {
                f"backlog {large:,}": lambda: produce(producers[large], thousand, transactions),
                f"backlog {small:,}": lambda: produce(producers[small], thousand, transactions),
            },
            {"produce: backlog large / small": (f"backlog {large:,}", f"backlog {small:,}")},
        )
        bench.compare(
            f"a backlog of {large:,} and of {small:,}, poll(1000)",
            {
                f"backlog {large:,}": lambda: poll(mq, filled, large),
                f"backlog {small:,}": lambda: poll(mq, nearly_empty, small),
            },
            {"consume: backlog large / small": (f"backlog {large:,}", f"backlog {small:,}")},
        )


def _partitions(bench: Bench, mq: MQ) -> None:
    transactions = bench.scale(50, 2)
    count = bench.scale(100_000, 3_000)
    many = f"{PARTITIONS} partitions"
    with topic(mq, PARTITIONS) as parted, topic(mq) as whole:
        to_parted, to_whole = mq.producer(parted), mq.producer(whole)
        keyed, keyless = messages(1_000), messages(1_000, with_keys=False)
        bench.compare(
            f"{many} and one, produce_many 1,000 at a time",
            {
                many: lambda: produce(to_parted, keyed, transactions),
                "1 partition": lambda: produce(to_whole, keyed, transactions),
                f"{many}, no keys": lambda: produce(to_parted, keyless, transactions),
                "1 partition, no keys": lambda: produce(to_whole, keyless, transactions),
            },
            {
                "produce: 256 partitions / 1": (many, "1 partition"),
                "produce: 256 partitions / 1, no keys": (f"{many}, no keys", "1 partition, no keys"),
            },
        )
    with topic(mq, PARTITIONS) as parted, topic(mq) as whole:
        fill(mq.producer(parted), count)
        fill(mq.producer(whole), count)
        bench.compare(
            f"{many} and one, poll(1000) over {count:,} messages",
            {many: lambda: poll_all(mq, parted, 1, count), "1 partition": lambda: poll_all(mq, whole, 1, count)},
            {"consume: 256 partitions / 1": (many, "1 partition")},
        )


def _groups(bench: Bench, mq: MQ) -> None:
    alone, each = bench.scale(100_000, 5_000), bench.scale(10_000, 1_000)
    many = f"{GROUPS} groups, {each:,} messages each"
    one = f"1 group, {alone:,} messages"
    with topic(mq) as name:
        fill(mq.producer(name), alone)
        bench.compare(
            "groups that read one after the other, poll(1000)",
            {many: lambda: poll_all(mq, name, GROUPS, each), one: lambda: poll_all(mq, name, 1, alone)},
            {"consume: 50 groups / 1": (many, one)},
        )


def produce(producer: Producer, batch: Sequence[Message], transactions: int) -> float:
    began = time.perf_counter()
    places = [producer.produce_many(batch) for _ in range(transactions)]
    seconds = time.perf_counter() - began
    check_places([place for some in places for place in some], len(batch) * transactions)
    return len(batch) * transactions / seconds


def poll_all(mq: MQ, name: str, groups: int, each: int) -> float:
    """Read the first *each* messages in each of so many new groups, by turns; return the rate of deliveries."""
    consumers = [mq.consumer(name, new_group()) for _ in range(groups)]
    try:
        first = [consumer.consume(timeout=30) for consumer in consumers]
        left = [each - 1] * groups
        ends = [{message.partition: (message.offset or 0) + 1} for message in first]
        began = time.perf_counter()
        while any(left):
            for i, consumer in enumerate(consumers):
                if left[i]:
                    batch = consumer.poll(min(POLL, left[i]), timeout=10)
                    check(bool(batch), "nothing came")
                    left[i] -= len(batch)
                    for message in batch:
                        check(ends[i].get(message.partition, 0) == message.offset, "an offset does not follow")
                        ends[i][message.partition] = message.offset + 1  # type: ignore[operator]
        for consumer in consumers:
            consumer.commit()
        seconds = time.perf_counter() - began
    finally:
        for consumer in consumers:
            consumer.close()
    return (each - 1) * groups / seconds
