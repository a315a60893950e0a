"""Handlers that fail, and a group that runs them: what they leave is the same in each world, so a synchronous MQ runs them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlmq import MQ, Message, ReceivedMessage
from sqlmq.model.retry import Retry
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq import Consumer
    from tests.conftest import DatabaseUnderTest

ONCE = Retry(max_attempts=1)
"""A message that fails is a dead letter at once."""
MUCH_LATER = Retry(backoff_seconds=1000.0, max_delay_seconds=1000.0, jitter=0.0)
"""A message that fails waits longer than any test."""
AT_ONCE = Retry(max_attempts=3, backoff_seconds=0.0)


class Handler:
    """Fails at the values *failing*, and notes what it was given. If *stepwise*, each call waits for a ``step``."""

    def __init__(self, *failing: bytes, stepwise: bool = False) -> None:
        self.failing = set(failing)
        self.given: list[bytes] = []
        self._steps = threading.Semaphore(0) if stepwise else None

    def __call__(self, message: Message) -> None:
        self.given.append(message.value)
        assert self._steps is None or self._steps.acquire(timeout=PATIENCE_SECONDS)
        if message.value in self.failing:
            complaint = f"no {message.value.decode()}"
            raise ValueError(complaint)

    def step(self) -> None:
        """End one call that waits."""
        assert self._steps is not None
        self._steps.release()

    def has_begun(self, value: bytes, times: int = 1) -> None:
        until(lambda: self.given.count(value) >= times, f"{value!r} given {times} times")


class GroupRunner:
    """Runs handlers as the group `billing` of the topic `orders`, on an MQ of its own."""

    def __init__(self, database: DatabaseUnderTest, *, notify: bool = True) -> None:
        # Polls often, so that decisions about parked messages are found soon.
        self.mq = MQ(database.url, schema=database.schema, poll_max_seconds=0.05, notify=notify)

    def run(self, handler: Callable[[ReceivedMessage], None], **options: Any) -> None:
        """Handle all messages there are."""
        self.mq.consumer("orders", "billing").run(handler, **{"idle_seconds": 0, **options})

    @contextmanager
    def running(self, handler: Callable[[ReceivedMessage], None], **options: Any) -> Iterator[Consumer]:
        """Handle messages in another thread until the block ends."""
        consumer = self.mq.consumer("orders", "billing")
        with ThreadPoolExecutor(1) as threads:
            run = threads.submit(lambda: consumer.run(handler, **options))
            try:
                yield consumer
            finally:
                consumer.stop()
                run.result(PATIENCE_SECONDS)


def produce(mq: MQ, *texts: str, topic: str = "orders") -> None:
    """Append messages, written as ``key:value``, or as a value without a key, each by itself."""
    producer = mq.producer(topic)
    for text in texts:
        key, colon, value = text.rpartition(":")
        producer.produce(Message(value.encode(), key.encode() if colon else None))
