"""Running a handler in an event loop: what is not as with threads."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from sqlmq import AsyncMQ, Message, Retry
from tests.support.handlers import IDLE_SECONDS, SOON
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

DRAIN: dict[str, Any] = {"retry": SOON, "idle_seconds": IDLE_SECONDS, "handle_signals": False}


async def send(mq: AsyncMQ, count: int, *, partitions: int = 1) -> None:
    await mq.create_topic("orders", partitions)
    producer = await mq.producer("orders")
    for partition in range(partitions):
        for number in range(count):
            await producer.produce_with_partition(Message(b"%d" % number, b"k"), partition)


async def test_a_coroutine_function_runs_in_the_event_loop(mq: AsyncMQ) -> None:
    await send(mq, 3)
    loop = asyncio.get_running_loop()
    handled: list[bytes] = []

    async def handler(message: Message) -> None:
        assert asyncio.get_running_loop() is loop
        handled.append(message.value)

    summary = await (await mq.consumer("orders", "billing")).run(handler, **DRAIN)

    assert handled == [b"0", b"1", b"2"]
    assert summary.handled == 3


async def test_another_function_runs_in_a_thread(mq: AsyncMQ) -> None:
    await send(mq, 2)
    threads: list[str] = []

    def handler(_message: Message) -> None:
        threads.append(threading.current_thread().name)

    await (await mq.consumer("orders", "billing")).run(handler, **DRAIN)

    assert threads == ["sqlmq-run-0"] * 2


async def test_handlers_of_several_partitions_run_at_the_same_time(mq: AsyncMQ) -> None:
    await send(mq, 1, partitions=3)
    are_in = 0
    all_in = asyncio.Event()

    async def handler(_message: Message) -> None:
        nonlocal are_in
        are_in += 1
        if are_in == 3:
            all_in.set()
        await asyncio.wait_for(all_in.wait(), PATIENCE_SECONDS)

    summary = await (await mq.consumer("orders", "billing")).run(handler, concurrency=3, **DRAIN)

    assert summary.handled == 3


async def test_a_task_that_is_cancelled_lets_the_message_in_hand_be_finished(mq: AsyncMQ) -> None:
    await send(mq, 3)
    handled: list[bytes] = []
    is_in, may_go = asyncio.Event(), asyncio.Event()

    async def handler(message: Message) -> None:
        is_in.set()
        await may_go.wait()
        handled.append(message.value)

    consumer = await mq.consumer("orders", "billing")
    running = asyncio.ensure_future(consumer.run(handler, handle_signals=False))
    await is_in.wait()
    running.cancel()
    await asyncio.wait([running], timeout=0.05)
    may_go.set()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert handled == [b"0"]
    assert consumer.closed
    described = await mq.admin.describe_group("orders", "billing")
    assert described.partitions[0].position == 1


async def test_a_handler_that_does_not_end_is_cancelled(mq: AsyncMQ) -> None:
    await send(mq, 2)
    consumer = await mq.consumer("orders", "billing")
    cancelled = asyncio.Event()

    async def handler(_message: Message) -> None:
        consumer.stop()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await consumer.run(handler, stop_seconds=0.05, handle_signals=False)

    await asyncio.wait_for(cancelled.wait(), PATIENCE_SECONDS)
    described = await mq.admin.describe_group("orders", "billing")
    assert described.partitions[0].position == 0


async def test_a_handler_that_takes_too_long_is_cancelled_and_has_failed(mq: AsyncMQ) -> None:
    await send(mq, 2)
    handled: list[bytes] = []

    async def handler(message: Message) -> None:
        if message.value == b"0":
            await asyncio.Event().wait()
        handled.append(message.value)

    consumer = await mq.consumer("orders", "billing")
    summary = await consumer.run(handler, **{**DRAIN, "retry": Retry(max_attempts=1)}, max_processing_seconds=0.1)

    assert handled == [b"1"]
    assert summary.dead == 1


async def test_a_single_session_is_refused(mq: AsyncMQ) -> None:
    await send(mq, 1)
    consumer = await mq.consumer("orders", "billing")
    session: Any = AsyncSession()

    async def handler(_message: Message, _session: AsyncSession) -> None: ...

    with pytest.raises(TypeError, match="takes an async_sessionmaker"):
        await consumer.run(handler, transaction=True, session=session)


async def test_a_function_in_a_thread_gets_an_ordinary_session(mq: AsyncMQ, engine: Engine) -> None:
    await send(mq, 2)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (number integer)"))

    def handler(message: Message, session: Session) -> None:
        session.execute(text("INSERT INTO effect VALUES (:n)"), {"n": int(message.value)})

    await (await mq.consumer("orders", "billing")).run(handler, transaction=True, **DRAIN)

    with engine.connect() as connection:
        assert list(connection.execute(text("SELECT number FROM effect")).scalars()) == [0, 1]
