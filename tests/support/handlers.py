"""A handler for tests of `run` that notes what it was given, and what is left after a run."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlmq import Message, ReceivedMessage, Retry
from tests.support.queue_state import QueueState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlmq import MQ, Consumer, RunSummary

SOON = Retry(max_attempts=3, backoff_seconds=0.001)
IDLE_SECONDS = 0.3
"""For runs that wait for more than what is there already."""


class Recorder:
    """A handler. *failures* is how often it fails at a value before it succeeds."""

    def __init__(self, failures: Mapping[bytes, int] | None = None) -> None:
        self._left = Counter(failures or {})
        self._lock = threading.Lock()
        self.handled: list[ReceivedMessage] = []
        self.tried: Counter[bytes] = Counter()

    def __call__(self, given: ReceivedMessage | list[ReceivedMessage]) -> None:
        messages = given if isinstance(given, list) else [given]
        with self._lock:
            self.tried.update(message.value for message in messages)
            failing = [message for message in messages if self._left[message.value] > 0]
            self._left.subtract(message.value for message in failing)
            if failing:
                raise ArithmeticError(f"told to fail at {len(failing)} message(s)")
            self.handled += messages

    @property
    def values(self) -> list[bytes]:
        return [message.value for message in self.handled]

    def of_key(self, key: bytes | None) -> list[bytes]:
        return [message.value for message in self.handled if message.key == key]


def send(mq: MQ, messages: Iterable[Message], *, topic: str = "orders", partitions: int = 1) -> None:
    mq.create_topic(topic, partitions)
    mq.producer(topic).produce_many(list(messages))


def numbered(count: int, *, keys: int = 0) -> list[Message]:
    """Messages 0, 1, ..., with the keys k0, k1, ... in turn, or none."""
    return [Message(b"%d" % i, key=b"k%d" % (i % keys) if keys else None) for i in range(count)]


def drain(consumer: Consumer, handler: Any, **options: Any) -> RunSummary:
    """Run *handler* until all that is there is handled, and tried again where it failed."""
    return consumer.run(handler, **{"retry": SOON, "idle_seconds": 0, "handle_signals": False, **options})


def parked_rows(mq: MQ) -> list[tuple[int, str, int]]:
    """Return offset, state and attempts of each parked message."""
    parked = "SELECT msg_offset, state, attempts FROM sqlmq_parked ORDER BY partition_id, msg_offset"
    return [(offset, state, attempts) for offset, state, attempts in QueueState(mq.engine, mq.schema).rows(parked)]


def position(mq: MQ, group: str = "billing") -> int:
    return sum(partition.position for partition in mq.admin.describe_group("orders", group).partitions)
