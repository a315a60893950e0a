"""Each statement of each thread that works in the background fails: it goes on, and what it is there for is done."""

from __future__ import annotations

import contextlib
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from sqlmq import MQ, Message
from sqlmq.background import listener, poller, retention
from sqlmq.errors import ConsumerClosedError
from tests.faults.cases import ALL
from tests.faults.wire import BACKGROUND, POSTGRES_FAULTS, SQLITE_FAULTS, WIRE, wired
from tests.faults.world import PARTITIONS, World
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import DatabaseUnderTest
    from tests.faults.wire import Plan

pytestmark = pytest.mark.faults

WITHOUT = {("sqlmq-notifier", "sqlite"), ("sqlmq-listener", "sqlite")}
"""Threads that a database has not."""
SECONDS = 20.0


@pytest.fixture
def world(database: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(retention, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(listener, "_PROBE_SECONDS", 0.2)
    monkeypatch.setattr(poller, "_WATCH_AGAIN_SECONDS", 0.05)
    logging.getLogger("sqlmq").setLevel(logging.CRITICAL)
    with wired():
        made = World(database)
        yield made
        made.close()
    logging.getLogger("sqlmq").setLevel(logging.NOTSET)


class Traffic:
    """A consumer of one MQ, and messages for it from another one, at once and delayed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.mq = MQ(world.database.url, commit_interval_seconds=0.02, poll_max_seconds=0.05)
        self.mq._background.heartbeat._interval_seconds = 0.05
        self.topic = world.name("traffic")
        self.mq.create_topic(self.topic, PARTITIONS)
        self.consumer = self.mq.consumer(self.topic, "billing")
        self.producer = self.mq.producer(self.topic)
        self.others = world.mq.producer(self.topic)
        # Somebody who waits for long, for whom the lookout looks, and the listener listens.
        self.waiting = self.mq.consumer(world.name("idle"), "waiting")
        self.waiter = threading.Thread(target=self._wait, daemon=True)
        self.waiter.start()
        self.sent: list[bytes] = []
        self.got: list[bytes] = []

    def _wait(self) -> None:
        with contextlib.suppress(ConsumerClosedError):
            self.waiting.poll(timeout=600)

    def close(self) -> None:
        self.mq.close()
        self.waiter.join(SECONDS)

    def flow(self) -> None:
        """Send three messages, and receive what has come."""
        for send in (self.others.produce, self.producer.produce):
            send(self.message())
        self.producer.schedule(self.message(), delay_seconds=0.01)
        self.got += [message.value for message in self.consumer.poll(timeout=0.05)]

    def message(self) -> Message:
        self.sent.append(b"%d" % len(self.sent))
        return Message(self.sent[-1], self.sent[-1])

    def has_arrived(self) -> bool:
        self.got += [message.value for message in self.consumer.poll(timeout=0.05)]
        return set(self.got) == set(self.sent)

    def cut_listeners(self) -> None:
        """Have listeners begin again, whose statements come then only."""
        self.world.state.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )


@pytest.mark.parametrize(
    ("name", "database"),
    [(name, kind) for name in BACKGROUND for kind in ("sqlite", "postgres") if (name, kind) not in WITHOUT],
    indirect=["database"],
)
def test_a_thread_goes_on_after_each_of_its_statements_has_failed(world: World, name: str) -> None:
    faults = POSTGRES_FAULTS if world.database.is_postgres else SQLITE_FAULTS
    traffic = Traffic(world)

    with contextlib.closing(traffic):
        for number in range(1, 25 if ALL else 4):
            fault = faults[number % len(faults)]
            with WIRE.failing(number, fault, lambda thread: thread.name == name) as plan:
                until(partial(_has_gone_on, traffic, plan, name, number), f"{name} goes on", seconds=SECONDS)
        until(traffic.has_arrived, "all messages", seconds=SECONDS)

    assert len(traffic.got) == len(traffic.sent), "delivered twice"
    world.check_nothing_is_held()
    world.state.check()


def _has_gone_on(traffic: Traffic, plan: Plan, name: str, number: int) -> bool:
    if name == "sqlmq-listener":
        # Again and again: one that has not begun to listen yet is not found.
        traffic.cut_listeners()
    traffic.flow()
    return plan.seen > number
