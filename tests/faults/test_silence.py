"""The network swallows everything and says nothing: whoever waits for an answer is told so in time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import pytest
from sqlalchemy import create_engine, make_url, text

from sqlmq import MQ, AsyncMQ, DatabaseUnavailableError, Message, OutcomeUnknownError
from sqlmq.background import listener
from sqlmq.errors import DatabaseError
from sqlmq.producer.batcher import MOST_TOGETHER
from tests.faults.proxy import Proxy, Road
from tests.support.waiting import slack_seconds, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import DatabaseUnderTest, MakeMQ

pytestmark = [pytest.mark.faults, pytest.mark.parametrize("database", ["postgres"], indirect=True)]

ANSWER_SECONDS = 1.0
DETECTED_SECONDS = ANSWER_SECONDS + 1.0
CLOSE_SECONDS = 5.0


class Clock:
    """How long something took."""

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


@pytest.fixture
def proxy(database: DatabaseUnderTest) -> Iterator[Proxy]:
    with Proxy(make_url(database.url)) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: Proxy) -> Iterator[MQ]:
    """An MQ that reaches the database through the proxy, by one connection at a time."""
    mq = MQ(proxy.url, response_timeout_seconds=ANSWER_SECONDS, notify=False)
    mq.create_topic("orders", 1)
    yield mq
    proxy.reset()
    with contextlib.suppress(ExceptionGroup):
        mq.close()


def test_a_producer_that_gets_no_answer_does_not_know_the_outcome_and_goes_on(behind: MQ, proxy: Proxy) -> None:
    producer = behind.producer("orders")
    producer.produce(Message(b"before"))
    proxy.silence()

    with Clock() as clock, pytest.raises(OutcomeUnknownError):
        producer.produce(Message(b"lost"))

    assert ANSWER_SECONDS <= clock.seconds <= DETECTED_SECONDS + slack_seconds()
    assert producer.produce(Message(b"after")).offset == 1


def test_a_connection_that_went_silent_while_it_rested_is_replaced_unnoticed(
    behind: MQ, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.watchdog._IDLE_SECONDS", 0.0)
    producer = behind.producer("orders")
    proxy.silence()

    with Clock() as clock:
        place = producer.produce(Message(b"1"))

    assert place.offset == 0
    assert clock.seconds <= DETECTED_SECONDS + slack_seconds()


def test_a_consumer_goes_on_by_another_connection(behind: MQ, proxy: Proxy, mq: MQ) -> None:
    consumer = behind.consumer("orders", "billing")
    assert consumer.poll(timeout=0) == []
    proxy.silence()
    mq.producer("orders").produce(Message(b"1"))

    with Clock() as clock:
        messages = consumer.poll(timeout=20)

    assert [message.value for message in messages] == [b"1"]
    # One for the connection it has, and one for the one that the pool has.
    assert clock.seconds <= 2 * DETECTED_SECONDS + slack_seconds()


def test_a_block_whose_commit_gets_no_answer_does_not_know_the_outcome(behind: MQ, proxy: Proxy) -> None:
    behind.producer("orders").produce(Message(b"1"))
    consumer = behind.consumer("orders", "billing")

    with Clock() as clock, pytest.raises(DatabaseError), consumer.transaction(timeout=10) as tx:  # noqa: PT012 - the end of it raises
        assert len(tx.messages) == 1
        proxy.silence()

    assert clock.seconds <= DETECTED_SECONDS + slack_seconds()
    with consumer.transaction(timeout=10) as tx:
        assert [message.value for message in tx.messages] == [b"1"]


def test_with_asyncio_too_the_outcome_is_not_known_in_time(behind: MQ, proxy: Proxy) -> None:
    del behind

    async def produce() -> float:
        async with AsyncMQ(proxy.url, response_timeout_seconds=ANSWER_SECONDS, notify=False) as mq:
            producer = await mq.producer("orders")
            await producer.produce(Message(b"before"))
            proxy.silence()
            with Clock() as clock, pytest.raises(OutcomeUnknownError):
                await producer.produce(Message(b"lost"))
            assert (await producer.produce(Message(b"after"))).offset == 1
            return clock.seconds

    assert asyncio.run(produce()) <= DETECTED_SECONDS + slack_seconds()


def test_a_block_for_asyncio_is_told_in_time(behind: MQ, proxy: Proxy) -> None:
    behind.producer("orders").produce(Message(b"1"))

    async def consume() -> float:
        async with (
            AsyncMQ(proxy.url, response_timeout_seconds=ANSWER_SECONDS) as mq,
            await mq.consumer("orders", "b") as consumer,
        ):
            with Clock() as clock, pytest.raises(DatabaseError):
                await take(consumer)
            async with consumer.transaction(timeout=10) as tx:
                assert [message.value for message in tx] == [b"1"]
            return clock.seconds

    async def take(consumer: object) -> None:
        async with consumer.transaction(timeout=10) as tx:  # type: ignore[attr-defined]
            assert len(tx.messages) == 1
            proxy.silence()

    assert asyncio.run(consume()) <= DETECTED_SECONDS + slack_seconds()


def test_a_listener_that_hears_nothing_more_is_replaced(proxy: Proxy, mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_PROBE_SECONDS", 0.5)
    monkeypatch.setattr(listener, "_ANSWER_SECONDS", 1.0)
    mq.create_topic("orders", 1)
    with MQ(proxy.url, response_timeout_seconds=ANSWER_SECONDS) as behind, ThreadPoolExecutor(1) as threads:
        consumer = behind.consumer("orders", "billing")
        received = threads.submit(consumer.poll, timeout=30)
        until(lambda: behind._background.listener.is_receiving, "a listener that hears")

        assert proxy.silence(lambda link: link.has_said(b"LISTEN")) == 1
        until(lambda: not behind._background.listener.is_receiving, "the loss noticed", seconds=1.5 + slack_seconds())
        until(lambda: behind._background.listener.is_receiving, "a listener that hears again", seconds=DETECTED_SECONDS)

        mq.producer("orders").produce(Message(b"1"))
        assert [message.value for message in received.result(10)] == [b"1"]


def test_a_silent_network_costs_no_member_its_lease(behind: MQ, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    del behind
    lease_seconds = 6.0
    with MQ(proxy.url, lease_seconds=lease_seconds, notify=False) as mq:
        consumer = mq.consumer("orders", "billing")
        consumer.poll(timeout=0)
        proxy.silence()
        began = time.monotonic()

        until(lambda: time.monotonic() - began > 1.2 * lease_seconds, "more than a lease")

        (member,) = mq.admin.members("orders", "billing")
        assert member.heartbeat_seconds < lease_seconds
        assert [record for record in caplog.records if getattr(record, "sqlmq_event", "") == "membership lost"] == []
        consumer.close()


def test_a_statement_that_only_waits_for_a_lock_ends_with_a_known_outcome(
    behind: MQ, database: DatabaseUnderTest, mq: MQ
) -> None:
    producer = behind.producer("orders")
    engine = create_engine(database.url)
    with engine.connect() as connection:
        connection.execute(text("SELECT FROM sqlmq_partition FOR UPDATE"))

        with pytest.raises(DatabaseError) as raised:
            producer.produce(Message(b"1"))

    engine.dispose()
    assert not isinstance(raised.value, OutcomeUnknownError)
    assert mq.admin.describe_topic("orders").messages == 0


def test_an_answer_that_comes_slowly_is_no_silence(behind: MQ, proxy: Proxy, mq: MQ) -> None:
    mq.producer("orders").produce_many([Message(b"x" * 60_000)] * 2)
    consumer = behind.consumer("orders", "billing")
    proxy.slow_down(Road(slice_bytes=4_096, bytes_per_second=60_000))

    with Clock() as clock:
        messages = consumer.poll(timeout=20)

    assert [len(message.value) for message in messages] == [60_000, 60_000]
    assert clock.seconds > ANSWER_SECONDS + 0.5
    proxy.slow_down(Road())


# Closing, whatever the network does.


@pytest.mark.parametrize("hole", ["silence", "black_hole"])
def test_closing_waits_no_longer_than_five_seconds(proxy: Proxy, make_mq: MakeMQ, hole: str) -> None:
    make_mq().create_topic("orders", 3)
    behind = MQ(proxy.url)  # with the usual patience, which is longer
    producer, consumers = behind.producer("orders"), [behind.consumer("orders", group) for group in ("a", "b", "c")]
    with ThreadPoolExecutor(4) as threads:
        for consumer in consumers:
            threads.submit(consumer.poll, timeout=60)
        until(lambda: behind._background.listener.is_receiving, "a listener that hears")
        getattr(proxy, hole)()
        sent = threads.submit(producer.produce, Message(b"1"))

        with Clock() as clock, contextlib.suppress(ExceptionGroup):
            behind.close()

        assert clock.seconds <= CLOSE_SECONDS + slack_seconds()
        error = sent.exception(CLOSE_SECONDS)
        # Where new connections are answered, it may have got one.
        assert isinstance(error, DatabaseError) or (error is None and hole == "silence")
    with contextlib.suppress(ExceptionGroup), Clock() as again:
        behind.close()
    assert again.seconds < slack_seconds()


def test_closing_while_a_thread_is_connecting_waits_no_longer_than_five_seconds(proxy: Proxy, make_mq: MakeMQ) -> None:
    make_mq().create_topic("orders", 3)
    behind = MQ(proxy.url)
    consumer = behind.consumer("orders", "billing")
    consumer.poll(timeout=0)
    proxy.black_hole()
    proxy.reset()
    with ThreadPoolExecutor(1) as threads:
        polling = threads.submit(consumer.poll, timeout=60)
        until(lambda: any(link.is_silent for link in proxy.open_links), "somebody who connects")

        with Clock() as clock, contextlib.suppress(ExceptionGroup):
            behind.close()

        assert clock.seconds <= CLOSE_SECONDS + slack_seconds()
        assert polling.exception(CLOSE_SECONDS) is not None
    proxy.reset()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "sqlmq-connect"], "all to end")


@pytest.mark.parametrize("hole", ["silence", "black_hole"])
def test_closing_a_producer_waits_no_longer_than_five_seconds(behind: MQ, proxy: Proxy, hole: str) -> None:
    behind._database.watchdog.seconds = 60.0
    producer = behind.producer("orders")
    producer.produce(Message(b"before"))
    getattr(proxy, hole)()
    # Three transactions' worth, of which the first is on its way.
    sent = [producer.submit(Message(b"%d" % number)) for number in range(2 * MOST_TOGETHER + 1)]

    with Clock() as clock:
        producer.close()

    assert clock.seconds <= CLOSE_SECONDS + slack_seconds()
    first, *_, last = [future.exception(0) for future in sent]
    assert isinstance(first, OutcomeUnknownError)
    # Known not to have been sent; or sent, where new connections are answered, and there was time for one.
    assert isinstance(last, DatabaseUnavailableError) or (last is None and hole == "silence")


def test_the_others_are_as_patient_as_before_when_a_producer_was_closed(behind: MQ, proxy: Proxy) -> None:
    producer, other = behind.producer("orders"), behind.producer("orders")
    other.produce(Message(b"before"))
    proxy.silence()
    sent = producer.submit(Message(b"lost"))
    producer.close()

    assert sent.exception(0) is not None
    assert other.produce(Message(b"after")).offset == 1


def test_closing_a_consumer_waits_no_longer_than_five_seconds(behind: MQ, proxy: Proxy) -> None:
    behind._database.watchdog.seconds = 60.0
    consumer = behind.consumer("orders", "billing")
    consumer.poll(timeout=0)
    proxy.silence()

    with Clock() as clock, pytest.raises(DatabaseUnavailableError):
        consumer.close()

    assert clock.seconds <= CLOSE_SECONDS + slack_seconds()
