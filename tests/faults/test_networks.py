"""Slow networks, and connections that are cut or reset: all comes right, and nobody has to be told."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from sqlmq import MQ, AsyncMQ, Message
from tests.faults.proxy import Proxy, Road
from tests.support.traffic import Traffic
from tests.support.waiting import receive, until, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import DatabaseUnderTest

RESETS = int(os.environ.get("SQLMQ_RESETS", "6"))
RECOVERED_SECONDS = 5.0

pytestmark = [pytest.mark.faults, pytest.mark.parametrize("database", ["postgres"], indirect=True)]

SENT = [b"%d" % number * 50 for number in range(40)]
SLOW = Road(latency_seconds=0.01)
SLICED = Road(slice_bytes=1)
NARROW = Road(slice_bytes=512, bytes_per_second=64_000)


@pytest.fixture
def proxy(database: DatabaseUnderTest) -> Iterator[Proxy]:
    with Proxy(make_url(database.url)) as proxy:
        yield proxy


@pytest.mark.parametrize("road", [SLOW, SLICED, NARROW], ids=["latency", "slices", "bandwidth"])
def test_over_a_bad_road_everything_arrives_as_it_was_sent(proxy: Proxy, road: Road) -> None:
    proxy.slow_down(road)
    with MQ(proxy.url) as mq:
        mq.create_topic("orders", 1)
        producer = mq.producer("orders")
        consumer = mq.consumer("orders", "billing")

        for value in SENT[:10]:
            producer.produce(Message(value))
        producer.produce_many([Message(value) for value in SENT[10:]])

        assert values(receive(consumer, len(SENT))) == SENT


def test_over_a_bad_road_everything_arrives_with_asyncio_too(proxy: Proxy) -> None:
    async def send_and_take() -> list[bytes]:
        async with AsyncMQ(proxy.url) as mq:
            await mq.create_topic("orders", 1)
            producer = await mq.producer("orders")
            await producer.produce_many([Message(value) for value in SENT])
            async with (
                await mq.consumer("orders", "billing") as consumer,
                consumer.transaction(max_messages=100, timeout=10) as tx,
            ):
                return [message.value for message in tx]

    proxy.slow_down(SLICED)

    assert asyncio.run(send_and_take()) == SENT


@pytest.mark.parametrize("after_bytes", [1, 700, 3_000])
def test_a_result_that_is_cut_in_the_middle_is_asked_for_again(proxy: Proxy, mq: MQ, after_bytes: int) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(value) for value in SENT])
    with MQ(proxy.url) as behind:
        consumer = behind.consumer("orders", "billing")
        proxy.lose_answer_to(b"CROSS JOIN LATERAL", after_bytes=after_bytes)

        assert values(receive(consumer, len(SENT))) == SENT

    assert proxy.lost == 1


@pytest.mark.slow
@pytest.mark.timeout(120 + RESETS * 10)
def test_everybody_goes_on_when_connections_are_reset(proxy: Proxy) -> None:
    chosen = random.Random(11)
    traffic = Traffic(proxy.url.render_as_string(hide_password=False))
    traffic.wait_for_progress(time.monotonic())
    took: list[float] = []

    for number in range(RESETS):
        victims = proxy.open_links if number % 2 else [chosen.choice(proxy.open_links)]
        moment = time.monotonic()
        proxy.reset(lambda link, victims=victims: link in victims)  # type: ignore[misc]
        traffic.wait_for_progress(moment)
        took.append(max(traffic.seconds_until_progress(moment).values()))
    until(lambda: traffic._mq._background.listener.is_receiving, "a listener that hears", seconds=RECOVERED_SECONDS)
    traffic.end()

    traffic.check()
    print(f"{RESETS} resets, everybody went on after at most {max(took):.2f} s")
    assert max(took) <= RECOVERED_SECONDS
