"""Waits for a condition or for messages, each with a deadline, never for a fixed time."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from tests.support.queue_state import check_dense, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlmq import MQ, Consumer, Message, ReceivedMessage

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""Far more than a step of a test takes on a busy machine."""


def slack_seconds() -> float:
    """Return how far a bound may be exceeded because the machine is busy: 2 s, more if processes wait for processors.

    So a bound is sharp on a machine that runs only the tests, and steady on one that does not.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return 2.0 * max(1.0, load / (os.cpu_count() or 1))


def until(condition: Callable[[], bool], what: str, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as *condition* holds; fail after *seconds*, and name *what* was waited for."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        pause.wait(0.01)


def receive(consumer: Consumer, count: int, *, seconds: float = PATIENCE_SECONDS) -> list[ReceivedMessage]:
    """Poll *consumer* until *count* messages have come. Those of the last poll stay unfinished."""
    deadline = time.monotonic() + seconds
    messages: list[ReceivedMessage] = []
    while len(messages) < count:
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages within {seconds} seconds"
        messages += consumer.poll(count - len(messages), timeout=0.5)
    return messages


def finish(consumer: Consumer, count: int) -> list[ReceivedMessage]:
    """Receive *count* messages and commit them."""
    messages = receive(consumer, count)
    consumer.commit()
    return messages


def read_topic(mq: MQ, topic: str) -> dict[int, list[ReceivedMessage]]:
    """Read all messages of *topic*, by partition, in a new group; fail if an offset is missing."""
    count = mq.admin.describe_topic(topic).messages
    with mq.consumer(topic, f"readers-{len(mq.admin.groups(topic))}") as consumer:
        messages = receive(consumer, count)
    check_dense(map(place_of, messages), {})
    found: dict[int, list[ReceivedMessage]] = {}
    for message in messages:
        found.setdefault(message.partition, []).append(message)
    return found


def read_texts(mq: MQ, topic: str) -> dict[int, list[str]]:
    """Read the values of *topic* in the same way."""
    return {number: [message.value.decode() for message in found] for number, found in read_topic(mq, topic).items()}


def values(messages: Iterable[Message]) -> list[bytes]:
    return [message.value for message in messages]


def settle(*consumers: Consumer) -> None:
    """Poll with all *consumers* of a group without messages in turn until each has its share of the partitions."""

    def is_shared_out() -> bool:
        for consumer in consumers:
            consumer.poll(timeout=0)
        counts = [len(consumer.partitions) for consumer in consumers]
        owned = [number for consumer in consumers for number in consumer.partitions]
        partitions = len(consumers[0]._core.coordinator._subscription.topic.partition_ids)
        return sorted(owned) == list(range(partitions)) and max(counts) - min(counts) <= 1

    until(is_shared_out, "partitions shared out evenly")


def at_once(actions: Iterable[Callable[[], T]]) -> list[T]:
    """Run each of *actions* in a thread, all at the same moment; return their results, or raise the first error."""
    todo = list(actions)
    barrier = threading.Barrier(len(todo))

    def run(action: Callable[[], T]) -> T:
        barrier.wait(PATIENCE_SECONDS)
        return action()

    with ThreadPoolExecutor(len(todo)) as threads:
        return list(threads.map(run, todo))
