"""The Postgres server goes away and comes back, and nobody has to be told."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine

from sqlmq import MQ, DatabaseUnavailableError, Message, OutcomeUnknownError, Retry
from sqlmq.migrate import upgrade
from tests.support.postgres_server import PostgresServer, installations
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 45.0

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, with the tables in it."""
    server = PostgresServer(next(installations()))
    try:
        server.start()
        engine = create_engine(server.url)
        with engine.begin() as connection:
            upgrade(connection)
        engine.dispose()
        yield server
    finally:
        server.remove()


class Traffic:
    """One thread produces numbers, one consumes them, and neither is restarted, whatever happens."""

    def __init__(self, mq: MQ) -> None:
        self._producer = mq.producer("orders")
        self._consumer = mq.consumer("orders", "billing")
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self.acknowledged: list[tuple[int, int, bytes]] = []
        self.delivered: list[tuple[int, int, bytes]] = []
        self.refused: list[Exception] = []
        self.failed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,)) for work in (self._produce, self._consume)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.failed) or reached(), PATIENCE_SECONDS)
        assert self.failed == []

    def wait_for_some(self) -> None:
        """Until fifty more messages have been acknowledged, and fifty more delivered."""
        acknowledged, delivered = len(self.acknowledged) + 50, len(self.delivered) + 50
        self.wait_for(lambda: len(self.acknowledged) >= acknowledged and len(self.delivered) >= delivered)

    def end(self) -> None:
        self._ended.set()
        self._threads[0].join(PATIENCE_SECONDS)
        self.wait_for(lambda: set(self.delivered) >= set(self.acknowledged))
        self._consumer.close()
        self._threads[1].join(PATIENCE_SECONDS)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.failed.append(error)
            self._note()

    def _note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _produce(self) -> None:
        count = 0
        while not self._ended.wait(0.002):
            count += 1
            value = str(count).encode()
            try:
                result = self._producer.produce(Message(value))
            except (OutcomeUnknownError, DatabaseUnavailableError) as error:
                self.refused.append(error)
            else:
                self.acknowledged.append((result.partition, result.offset, value))
            self._note()

    def _consume(self) -> None:
        for message in self._consumer:
            self.delivered.append((message.partition, message.offset, message.value))
            self._note()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_queue_goes_on_by_itself_when_the_server_comes_back(server: PostgresServer, how: str) -> None:
    with MQ(server.url.render_as_string(hide_password=False), lease_seconds=5.0) as mq:
        traffic = Traffic(mq)

        for _ in range(2):
            traffic.wait_for_some()
            getattr(server, how)()
            server.start()
        traffic.wait_for_some()
        traffic.end()

        assert traffic.failed == []
        assert set(traffic.delivered) >= set(traffic.acknowledged)
        described = mq.admin.describe_topic("orders")
        # What is in the log was acknowledged, or its producer was told that this is not known.
        unknown = sum(isinstance(error, OutcomeUnknownError) for error in traffic.refused)
        assert len(traffic.acknowledged) <= described.messages <= len(traffic.acknowledged) + unknown


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
def test_a_run_goes_on_and_no_message_is_to_blame_for_the_server(server: PostgresServer, transaction: bool) -> None:
    with MQ(server.url) as mq:
        mq.create_topic("orders", 2)
        mq.producer("orders").produce_many([Message(b"%d" % number, b"k%d" % (number % 9)) for number in range(300)])
        handled: list[bytes] = []
        half, gone = threading.Event(), threading.Event()

        def handler(message: Message, *_session: object) -> None:
            if len(handled) == 150:
                half.set()
                gone.wait(PATIENCE_SECONDS)
            handled.append(message.value)

        consumer = mq.consumer("orders", "billing")
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(
                consumer.run, handler, transaction=transaction, retry=Retry(max_attempts=2), handle_signals=False
            )
            assert half.wait(PATIENCE_SECONDS)
            server.kill()
            gone.set()
            server.start()
            until(lambda: len(set(handled)) == 300, "all to be handled", seconds=PATIENCE_SECONDS)
            consumer.stop()
            summary = running.result(PATIENCE_SECONDS)

        group = mq.admin.describe_group("orders", "billing")
    assert summary.dead == 0
    assert all(partition.lag == 0 for partition in group.partitions)


def test_a_listener_hears_again_when_the_server_comes_back(server: PostgresServer) -> None:
    url = server.url.render_as_string(hide_password=False)
    with MQ(url, poll_min_seconds=60.0, poll_max_seconds=60.0) as waiting, MQ(url) as producing:
        consumer = waiting.consumer("orders", "billing")
        assert consumer.poll(timeout=0.5) == []
        until(lambda: waiting._background.listener.is_receiving, "a listener that hears")
        server.kill()
        until(lambda: not waiting._background.listener.is_receiving, "the loss noticed")
        server.start()
        until(lambda: waiting._background.listener.is_receiving, "a listener that hears again")

        with ThreadPoolExecutor(1) as thread:
            received = thread.submit(consumer.poll, timeout=PATIENCE_SECONDS / 2)
            until(lambda: consumer._core.is_waiting, "a consumer that waits")
            producing.producer("orders").produce(Message(b"after"))

            assert [message.value for message in received.result()] == [b"after"]


def test_a_producer_without_a_server_gives_up_in_bounded_time_and_says_why(server: PostgresServer) -> None:
    with MQ(server.url.render_as_string(hide_password=False)) as mq:
        producer = mq.producer("orders")
        server.stop()
        began = time.monotonic()

        with pytest.raises(DatabaseUnavailableError) as raised:
            producer.produce(Message(b"nowhere to go"))

        assert time.monotonic() - began < PATIENCE_SECONDS
        assert "reachable from here" in str(raised.value) or "server" in str(raised.value)
        assert str(server.url.password) not in str(raised.value)
        server.start()
        assert producer.produce(Message(b"back")).offset == 0
