"""People decide at random about messages that are being handled: nothing is lost, repeated, or out of order."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import MQ, Message, ReceivedMessage
from sqlmq.model.retry import Retry
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest, MakeMQ

PARTITIONS = 2
KEYS = 8
MESSAGES = 160
DECISIONS = 60
GROUP = ("orders", "billing")

Place = tuple[int, int]


class Unreliable:
    """A handler that fails as often as not, until it is repaired; notes down what it has done.

    Now and then it takes so long that something is decided meanwhile.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.is_repaired = False
        self.done: list[tuple[bytes, Place]] = []
        self.decided = threading.Event()
        self.discarded: set[Place] = set()
        self.begun_after_discard: Counter[Place] = Counter()

    def __call__(self, message: ReceivedMessage) -> None:
        place = (message.partition, message.offset)
        with self._lock:
            if place in self.discarded:
                self.begun_after_discard[place] += 1
            is_slow, is_failing = self._random.random() < 0.3, self._random.random() < 0.5
        if self.is_repaired:
            is_slow = is_failing = False
        if is_slow:
            self.decided.clear()
            self.decided.wait(0.05)
        if is_failing:
            raise ValueError
        assert message.key is not None
        with self._lock:
            self.done.append((message.key, place))


def decide(mq: MQ, handler: Unreliable, chance: random.Random) -> None:
    """Retry or discard some of what is parked, until enough was decided."""
    parked = mq.admin.parked(*GROUP)
    decided = 0
    while decided < DECISIONS:
        for one in chance.sample(found := parked.list(), min(3, len(found))):
            decided += 1
            if chance.random() < 0.6:
                parked.retry(*one.place)
            elif parked.discard(*one.place):
                handler.discarded.add(one.place)
            handler.decided.set()
        if not found and mq.admin.describe_group(*GROUP).lag == 0:
            break


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {"retry": Retry(max_attempts=None, backoff_seconds=0.001)},
        {"retry": Retry(max_attempts=None, backoff_seconds=0.001), "on_failure": "dead"},
        {"retry": Retry(max_attempts=2, backoff_seconds=0.001), "on_failure": "stop"},
    ],
    ids=["aside", "in-place", "stopping"],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_each_message_is_done_once_or_discarded_and_each_key_stays_in_order(
    mq: MQ, make_mq: MakeMQ, database: DatabaseUnderTest, options: dict[str, Any], seed: int
) -> None:
    del database
    mq.create_topic("orders", PARTITIONS)
    keys = [b"%d" % (number % KEYS) for number in range(MESSAGES)]
    places = {
        (placed.partition, placed.offset)
        for placed in mq.producer("orders").produce_many([Message(b"", key) for key in keys])
    }
    handler = Unreliable(seed)
    consumer = make_mq(poll_max_seconds=0.05).consumer(*GROUP)
    run = threading.Thread(target=lambda: consumer.run(handler, concurrency=PARTITIONS, **options))
    run.start()
    try:
        decide(mq, handler, random.Random(seed))
        handler.is_repaired = True
        mq.admin.parked(*GROUP).retry(everything=True)
        until(
            lambda: mq.admin.describe_group(*GROUP).lag == 0 and not mq.admin.parked(*GROUP).list(),
            "everything is done",
        )
    finally:
        consumer.stop()
        run.join()

    done = [place for _, place in handler.done]
    assert set(done) | handler.discarded == places
    # One may have been on its way to the handler.
    assert max(handler.begun_after_discard.values(), default=0) <= 1, "a discarded message came back"
    assert len(done) == len(set(done)), "handled twice"
    for key in set(keys):
        of_key = [place for of, place in handler.done if of == key]
        assert of_key == sorted(of_key), f"key {key!r} out of order"
