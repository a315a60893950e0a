"""asyncio in its rarer forms: eager tasks, uvloop, debug mode, several loops in turn, a notebook's cells as tasks."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, TypeVar

from case import Case, run
from sqlmq import AsyncMQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from sqlmq import AsyncConsumer, AsyncProducer, ReceivedMessage

    Main = Coroutine[Any, Any, None]
    RunLoop = Callable[[Main], None]

T = TypeVar("T")

TOPIC = "loops"
SENT = 40
WHOLE_SECONDS = 60


def judge(case: Case) -> None:
    for name, run_loop in loops().items():
        use_in(case, name, run_loop)
    case.attempt("several loops in turn", lambda: use_loops_in_turn(case))
    case.attempt("a notebook", lambda: use_in_cells(case))


def loops() -> dict[str, RunLoop]:
    """Return the ways to run an event loop that this Python has."""
    found: dict[str, RunLoop] = {
        "plain": asyncio.run,
        "debug": lambda main: asyncio.run(main, debug=True),
    }
    if sys.version_info >= (3, 12):

        def run_eager(main: Main) -> None:
            with asyncio.Runner() as runner:
                runner.get_loop().set_task_factory(asyncio.eager_task_factory)
                runner.run(main)

        found["eager"] = run_eager
    try:
        import uvloop
    except ImportError:
        pass
    else:
        found["uvloop"] = uvloop.run
    return found


def use_in(case: Case, name: str, run_loop: RunLoop) -> None:
    case.attempt(name, lambda: run_loop(use(case, name)))


async def use(case: Case, name: str) -> None:
    async with AsyncMQ(case.url) as mq:
        await asyncio.wait_for(produce_and_consume(case, name, mq), WHOLE_SECONDS)


async def produce_and_consume(case: Case, name: str, mq: AsyncMQ) -> None:
    producer = await mq.producer(TOPIC)
    await asyncio.gather(*[producer.produce(Message(b"%d" % number, key=b"k")) for number in range(SENT // 2)])
    await asyncio.gather(*[producer.submit(Message(b"submitted")) for _ in range(SENT // 2)])
    async with await mq.consumer(TOPIC, name) as consumer:
        received = 0
        async for _message in consumer:
            received += 1
            if received == SENT // 2:
                break
        async with consumer.transaction(timeout=10) as transaction:
            assert transaction.messages

    async def handle(_message: ReceivedMessage) -> None:
        await asyncio.sleep(0)

    running = await mq.consumer(TOPIC, f"{name}-run")
    summary = await running.run(handle, idle_seconds=0.7, concurrency=3, handle_signals=False)
    if summary.handled < SENT:
        case.fault(f"{name}: run handled {summary.handled} of at least {SENT} messages")


def use_loops_in_turn(case: Case) -> None:
    """Use the same objects in one loop after the other."""
    mq = AsyncMQ(case.url)

    async def open_and_produce() -> tuple[AsyncProducer, AsyncConsumer]:
        producer, consumer = await mq.producer("turns"), await mq.consumer("turns", "group")
        await producer.produce(Message(b"1"))
        return producer, consumer

    async def produce_and_commit(producer: AsyncProducer, consumer: AsyncConsumer) -> None:
        await producer.produce(Message(b"2"))
        for _ in range(2):
            await consumer.consume(timeout=10)
        await consumer.commit()

    async def transact_and_close(consumer: AsyncConsumer) -> None:
        async with consumer.transaction(timeout=1):
            pass
        await mq.close()

    producer, consumer = asyncio.run(open_and_produce())
    asyncio.run(produce_and_commit(producer, consumer))
    asyncio.run(transact_and_close(consumer))


def use_in_cells(case: Case) -> None:
    """Consume and commit in tasks of their own, as the cells of a notebook are."""
    loop = asyncio.new_event_loop()

    def cell(work: Coroutine[Any, Any, T]) -> T:
        return loop.run_until_complete(loop.create_task(work))

    async def open_and_produce() -> tuple[AsyncMQ, AsyncConsumer]:
        mq = AsyncMQ(case.url)
        producer = await mq.producer("cells")
        for number in range(3):
            await producer.produce(Message(b"%d" % number, key=b"k"))
        return mq, await mq.consumer("cells", "group")

    # A cell is a coroutine that awaits the call, not the call itself.
    async def consume() -> bytes:
        return (await consumer.consume(timeout=5)).value

    async def commit() -> None:
        await consumer.commit()

    mq, consumer = cell(open_and_produce())
    received = []
    for _ in range(3):
        received.append(cell(consume()))
        cell(commit())
    cell(mq.close())
    loop.close()
    if received != [b"0", b"1", b"2"]:
        case.fault(f"a notebook: consume() and commit() in cells of their own give {received}")


if __name__ == "__main__":
    run(judge)
