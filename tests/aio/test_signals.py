"""Signals that arrive while handlers run in an event loop, and who hears them."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from sqlmq import AsyncMQ, Message
from tests.support.handlers import SOON
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator


async def send(mq: AsyncMQ, count: int) -> None:
    await mq.create_topic("orders", 1)
    await (await mq.producer("orders")).produce_many([Message(b"%d" % number) for number in range(count)])


async def raise_sigint(_message: Message) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _signal_handlers() -> Iterator[None]:
    """The handlers before the test are those after it."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


sends_signals = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as Unix does")


@sends_signals
@pytest.mark.usefixtures("_signal_handlers")
async def test_one_signal_stops_all_runs_of_a_process(mq: AsyncMQ) -> None:
    await send(mq, 1)
    are_in = asyncio.Semaphore(0)

    async def handler(_message: Message) -> None:
        are_in.release()

    runs = [
        asyncio.create_task((await mq.consumer("orders", group)).run(handler, retry=SOON))
        for group in ("billing", "mail", "search")
    ]
    for _ in runs:
        await asyncio.wait_for(are_in.acquire(), PATIENCE_SECONDS)
    signal.raise_signal(signal.SIGTERM)
    summaries = await asyncio.wait_for(asyncio.gather(*runs), PATIENCE_SECONDS)

    assert [summary.handled for summary in summaries] == [1, 1, 1]


@sends_signals
@pytest.mark.usefixtures("_signal_handlers")
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "meanwhile"])
async def test_a_signal_handler_of_the_event_loop_hears_the_signal_too(mq: AsyncMQ, *, is_before: bool) -> None:
    await send(mq, 1)
    loop = asyncio.get_running_loop()
    is_in, is_heard = asyncio.Event(), asyncio.Event()

    async def handler(_message: Message) -> None:
        is_in.set()

    consumer = await mq.consumer("orders", "billing")
    if is_before:
        loop.add_signal_handler(signal.SIGTERM, is_heard.set)
    running = asyncio.create_task(consumer.run(handler, retry=SOON))
    await asyncio.wait_for(is_in.wait(), PATIENCE_SECONDS)
    if not is_before:
        loop.add_signal_handler(signal.SIGTERM, is_heard.set)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(is_heard.wait(), PATIENCE_SECONDS)
    is_heard.clear()
    consumer.stop()  # a handler from meanwhile has the signal alone
    await asyncio.wait_for(running, PATIENCE_SECONDS)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(is_heard.wait(), PATIENCE_SECONDS)

    assert loop.remove_signal_handler(signal.SIGTERM)


@sends_signals
@pytest.mark.usefixtures("_signal_handlers")
async def test_ctrl_c_ends_a_run_of_the_main_task_with_its_summary(mq: AsyncMQ) -> None:
    await send(mq, 2)

    summary = await (await mq.consumer("orders", "billing")).run(raise_sigint, retry=SOON)

    assert summary.handled == 1


@sends_signals
@pytest.mark.usefixtures("_signal_handlers")
async def test_ctrl_c_cancels_the_main_task_that_only_waits_beside_a_run(mq: AsyncMQ) -> None:
    await send(mq, 2)

    running = asyncio.create_task((await mq.consumer("orders", "billing")).run(raise_sigint, retry=SOON))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.Event().wait(), PATIENCE_SECONDS)
    main = asyncio.current_task()
    assert main is not None
    main.uncancel()
    summary = await asyncio.wait_for(running, PATIENCE_SECONDS)

    assert summary.handled == 1
