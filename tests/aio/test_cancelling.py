"""A task that is cancelled, wherever it is, loses nothing and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sqlmq import AsyncConsumer, AsyncMQ, AsyncProducer, DelayedMessage, Message, ProducerResult, ReceivedMessage
from sqlmq.errors import ConsumerClosedError
from tests.aio.interrupting import cancelled_everywhere
from tests.support.delayed import LONG
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from tests.aio.conftest import MakeAsyncMQ


async def log_of(mq: AsyncMQ, topic: str = "orders") -> dict[ProducerResult, bytes]:
    """All that is in the log, by its place. Works at once, or the database is locked."""
    end = await (await mq.producer(topic)).produce_with_partition(Message(b"end"), 0, timeout=PATIENCE_SECONDS)
    count = (await mq.admin.describe_topic(topic)).messages
    log: dict[ProducerResult, bytes] = {}
    async with await mq.consumer(topic, f"reader-{random.random()}") as reader:
        while len(log) < count:
            for message in await reader.poll(timeout=PATIENCE_SECONDS):
                assert message.partition is not None
                assert message.offset is not None
                log[ProducerResult(topic, message.partition, message.offset)] = message.value
    del log[end]
    return log


@pytest.mark.parametrize(
    "method", ["produce", "produce_with_partition", "produce with timeout", "submit", "produce_many"]
)
async def test_a_cancelled_producer_has_lost_nothing_that_was_acknowledged(mq: AsyncMQ, method: str) -> None:
    producer = await mq.producer("orders")
    sent: list[bytes] = []
    acknowledged: dict[ProducerResult, bytes] = {}

    async def produce() -> None:
        value = b"%d" % len(sent)
        sent.append(value)
        message = Message(value, b"k")
        calls: dict[str, Callable[[], Any]] = {
            "produce": lambda: producer.produce(message),
            "produce_with_partition": lambda: producer.produce_with_partition(message, 1),
            "produce with timeout": lambda: producer.produce(message, timeout=PATIENCE_SECONDS),
            "submit": lambda: producer.submit(message),
            "produce_many": lambda: producer.produce_many([message]),
        }
        result = await calls[method]()
        acknowledged[result[0] if isinstance(result, list) else result] = value

    for _ in range(5):
        async for _result in cancelled_everywhere(produce):
            pass

    await producer.close()
    log = await log_of(mq)
    assert acknowledged
    assert {place: log.get(place) for place in acknowledged} == acknowledged
    assert [value for value, count in Counter(log.values()).items() if count > 1] == []


async def test_a_cancelled_task_has_stored_its_delayed_message_or_not(mq: AsyncMQ) -> None:
    producer = await mq.producer("orders")
    stored: list[DelayedMessage] = []

    async def delay() -> None:
        stored.append(await producer.schedule(Message(b"%d" % len(stored), b"k"), delay_seconds=LONG))

    async for _result in cancelled_everywhere(delay):
        pass

    waiting = [one.id for one in await mq.admin.delayed("orders")]
    assert stored
    assert {one.id for one in stored} <= set(waiting)
    assert len(waiting) == len(set(waiting))


@pytest.mark.parametrize(
    "method", ["consume and commit", "poll and commit", "consume_chan", "wait for what is not there"]
)
async def test_a_cancelled_consumer_skips_nothing(mq: AsyncMQ, method: str) -> None:
    await mq.create_topic("orders", 2)
    producer = await mq.producer("orders")
    consumer = await mq.consumer("orders", "billing")
    sent = [b"%d" % i for i in range(200)]
    await producer.produce_many([Message(value, value) for value in sent])
    received: list[bytes] = []

    async def consume() -> None:
        message = await consumer.consume(timeout=PATIENCE_SECONDS)
        received.append(message.value)
        await consumer.commit()

    async def poll() -> None:
        messages = await consumer.poll(2, timeout=PATIENCE_SECONDS)
        received.extend(message.value for message in messages)
        await consumer.commit()

    async def consume_two() -> None:
        count = len(received)
        async for message in consumer.consume_chan():
            received.append(message.value)
            if len(received) == count + 2:
                break

    async def wait_for_nothing() -> None:
        async with await mq.consumer("nothing", "billing") as other:
            await asyncio.gather(*(_poll(other, 0.02) for _ in range(2)))

    calls: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "consume and commit": consume,
        "poll and commit": poll,
        "consume_chan": consume_two,
        "wait for what is not there": wait_for_nothing,
    }

    for _ in range(3):
        async for _result in cancelled_everywhere(calls[method]):
            assert consumer._core.wakeups.waiters == 0

    # What a call got and did not return comes again, and so does what its task had not finished.
    await producer.produce_with_partition(Message(b"end"), 0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(set(received)) < len(sent) + 1:
            received += [message.value for message in await consumer.poll(timeout=PATIENCE_SECONDS)]
    await consumer.commit()
    assert set(received) == {*sent, b"end"}
    assert consumer._core.buffer._in_flight == {}
    assert (await mq.admin.describe_group("orders", "billing")).lag == 0
    await log_of(mq)


async def _poll(consumer: AsyncConsumer, seconds: float) -> list[ReceivedMessage]:
    return await consumer.poll(timeout=seconds)


async def test_a_call_on_the_mq_that_is_cancelled_leaves_nothing_behind(mq: AsyncMQ) -> None:
    async def make_and_use() -> None:
        await mq.create_topic("orders")
        await mq.admin.describe_topic("orders")
        async with await mq.producer("orders") as producer, await mq.consumer("orders", "billing") as consumer:
            await producer.produce(Message(b""))
            await consumer.poll(timeout=0)
        await mq.admin.describe_group("orders", "billing")
        await mq.delete_topics("orders")

    async for _result in cancelled_everywhere(make_and_use):
        assert [made for made in mq._sync._resources.made if not made.closed] == []

    await log_of(mq)


@pytest.mark.parametrize("closed", ["mq", "producer", "consumer"])
async def test_what_is_closed_by_a_cancelled_task_is_closed(make_mq: MakeAsyncMQ, closed: str) -> None:
    made: list[tuple[AsyncMQ, AsyncProducer, AsyncConsumer]] = []

    async def prepare() -> None:
        mq = make_mq()
        made.append((mq, await mq.producer("orders"), await mq.consumer("orders", "billing")))
        made[-1][1].submit(Message(b"42"))

    async def close() -> None:
        mq, producer, consumer = made[-1]
        objects: dict[str, AsyncMQ | AsyncProducer | AsyncConsumer] = {
            "mq": mq,
            "producer": producer,
            "consumer": consumer,
        }
        await objects[closed].close()

    await prepare()
    async for _result in cancelled_everywhere(close):
        mq, producer, consumer = made[-1]
        assert producer.closed == (closed != "consumer")
        assert consumer.closed == (closed != "producer")
        await close()
        await mq.close()
        await prepare()

    assert (await made[-1][0].admin.describe_topic("orders")).messages >= len(made) - 1


@pytest.mark.slow
async def test_tasks_that_are_cancelled_at_any_moment_lose_nothing(mq: AsyncMQ) -> None:
    await mq.create_topic("orders", 3)
    producer, consumer = await mq.producer("orders"), await mq.consumer("orders", "billing")
    acknowledged: set[bytes] = set()
    received: set[bytes] = set()

    async def produce(number: int) -> None:
        value = b"%d" % number
        await producer.produce(Message(value))
        acknowledged.add(value)

    async def consume() -> None:
        async for message in consumer:
            received.add(message.value)

    for number in range(300):
        tasks = [asyncio.create_task(produce(number)), asyncio.create_task(consume()), asyncio.create_task(consume())]
        await asyncio.wait(tasks, timeout=random.random() * 0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    assert acknowledged <= set((await log_of(mq)).values())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not acknowledged <= received:
            received |= {message.value for message in await consumer.poll(timeout=PATIENCE_SECONDS)}
    assert consumer._core.wakeups.waiters == 0


# --- Timeouts ---


async def test_a_timeout_of_asyncio_ends_the_wait(mq: AsyncMQ) -> None:
    consumer = await mq.consumer("orders", "billing")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await consumer.consume()

    await (await mq.producer("orders")).produce(Message(b"42"))
    assert (await consumer.consume(timeout=PATIENCE_SECONDS)).value == b"42"


async def test_timeouts_inside_each_other_end_each_their_own(mq: AsyncMQ) -> None:
    consumer = await mq.consumer("orders", "billing")

    async with asyncio.timeout(PATIENCE_SECONDS) as outer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await consumer.consume(timeout=PATIENCE_SECONDS)

    assert not outer.expired()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancelled_produce_that_waits_is_not_sent(mq: AsyncMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    await mq.create_topic("orders", 1)
    producer = await mq.producer("orders")
    may_go, is_on_its_way = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    append = producer._core.append_batch

    def hold(routed: Sequence[Any]) -> list[ProducerResult]:
        loop.call_soon_threadsafe(is_on_its_way.set)
        asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(PATIENCE_SECONDS)
        return append(routed)

    monkeypatch.setattr(producer._core, "append_batch", hold)
    first = producer.submit(Message(b"first"))
    await is_on_its_way.wait()
    second = asyncio.create_task(producer.produce(Message(b"second")))
    third = asyncio.create_task(producer.produce(Message(b"third"), timeout=0.02))
    await asyncio.wait([third])
    second.cancel()
    await asyncio.wait([second])
    may_go.set()

    assert (await first).offset == 0
    assert second.cancelled()
    with pytest.raises(TimeoutError, match="was not sent"):
        await third
    assert list((await log_of(mq)).values()) == [b"first"]


async def test_a_task_that_waits_is_told_of_the_close(make_mq: MakeAsyncMQ) -> None:
    mq = make_mq(poll_min_seconds=60, poll_max_seconds=60)
    consumer = await mq.consumer("orders", "billing")
    tasks = [asyncio.create_task(_poll(consumer, PATIENCE_SECONDS)) for _ in range(20)]
    while consumer._core.wakeups.waiters < len(tasks):
        await asyncio.wait(tasks, timeout=0.01)

    await consumer.close()

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(error) for error in errors} == {ConsumerClosedError}


async def test_a_cancelled_tail_skips_nothing(mq: AsyncMQ) -> None:
    await mq.create_topic("orders", 1)
    producer = await mq.producer("orders")
    watched = mq.admin.tail("orders", offset=0)
    seen: list[bytes] = []
    sent: list[bytes] = []

    async def send_and_see() -> None:
        sent.append(b"%d" % len(sent))
        await producer.produce(Message(sent[-1]))
        seen.append((await anext(watched)).value)

    async for _result in cancelled_everywhere(send_and_see):
        pass

    await producer.produce(Message(b"end"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while b"end" not in seen:
            seen.append((await anext(watched)).value)
    end = (await mq.admin.describe_topic("orders")).partitions[0].end_offset
    assert len(seen) == len(set(seen)) == end
